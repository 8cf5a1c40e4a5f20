"""Gitea's and Forgejo's commit statuses, on a fake that counts them as the versions do."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.provider_apis import gitea, gitea_statuses
from gateway.provider_apis.operation import ApiRefused, ApiUnavailable
from gateway.provider_apis.statuses import CommitStatus, StatusApi, StatusState
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.gitea import FakeGitea
from tests.provider_apis.running import Token, run_in_process

GOOD = "0f1e2d3c"
COMMIT = "1f" * 20
TRAIN = CommitStatus(
    commit=COMMIT,
    context="pushgate/train",
    state="waiting",
    description="waits for a runner",
    url="https://gate.example/deliveries/d1",
    ref="refs/heads/main",
)
API: StatusApi = gitea_statuses
STATES: list[StatusState] = list(API.STATES)


@pytest.fixture
def fake() -> FakeGitea:
    """Return a server with one repository."""
    return FakeGitea(
        tokens={token: {"acme/digits"} for token in (GOOD, "reader", "unscoped")},
        readers={"reader"},
        unscoped={"unscoped"},
    )


def send(
    fake: FakeGitea, status: CommitStatus, *, token: str = GOOD, repository: str = "acme/digits"
) -> None:
    """Set a status."""
    place = Place(f"https://git.acme.example/{repository}.git")
    identity = Token(gitea, [token])
    run_in_process(API.set_status(place, status, {}), gitea.base_url(place), identity, fake=fake)


@pytest.mark.parametrize("last", STATES)
def test_the_last_state_counts_in_every_version(fake: FakeGitea, last: StatusState) -> None:
    """Only what has succeeded, or needs no execution, permits a merge."""
    for state in ("waiting", "running", "failed", "succeeded", last, last):
        send(fake, replace(TRAIN, state=state))
    assert fake.statuses == {(COMMIT, "pushgate/train"): API.STATES[last]}
    counts = set()
    for version in ((1, 20), (1, 25), (1, 26)):
        fake.version = version
        counts.add(fake.combined(COMMIT))
    match last:
        case "succeeded" | "skipped":
            assert counts == {"success"}
        case "waiting" | "running":
            assert counts == {"pending"}
        case _:
            assert counts <= {"error", "failure"}


def test_what_is_sent(fake: FakeGitea) -> None:
    """The description is one line."""
    send(fake, replace(TRAIN, description="no such step\n" * 50))
    [(commit, body)] = fake.sent
    assert (commit, len(body.pop("description"))) == (COMMIT, 255)
    assert body == {
        "context": "pushgate/train",
        "state": "pending",
        "target_url": "https://gate.example/deliveries/d1",
    }


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        ("wrong", "acme/digits", "it is wrong, expired or revoked (invalid username, password or token)"),
        (
            "unscoped",
            "acme/digits",
            "(token does not have at least one of required scope(s), required=[",
        ),
        (
            "reader",
            "acme/digits",
            f"identity bot needs the right “{gitea_statuses.STATUS_RIGHT}” at git.acme.example (user should",
        ),
        (
            GOOD,
            "acme/other",
            "git.acme.example has no such repository or commit, or identity bot may",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeGitea, token: str, repository: str, reason: str) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused) as refused:
        send(fake, TRAIN, token=token, repository=repository)
    assert reason in str(refused.value)
    assert GOOD not in str(refused.value)
    assert fake.statuses == {}


def test_a_commit_that_is_gone(fake: FakeGitea) -> None:
    """Gitea answers with an internal error, so that it is tried again; Forgejo says that it is gone."""
    fake.missing.add(COMMIT)
    with pytest.raises(ApiUnavailable, match="answered 500"):
        send(fake, TRAIN)
    fake.is_forgejo = True
    with pytest.raises(ApiRefused, match=f"no such repository or commit, .*sha not found: {COMMIT}"):
        send(fake, TRAIN)


@settings(max_examples=20)
@given(
    sent=st.lists(
        st.tuples(st.sampled_from(STATES), st.sampled_from(["train", "test"]), st.sampled_from(["1f", "2e"])),
        max_size=8,
    )
)
def test_each_context_of_each_commit_has_its_last_state(sent: list[tuple[StatusState, str, str]]) -> None:
    """Whatever comes before, and in other contexts."""
    fake = FakeGitea(tokens={GOOD: {"acme/digits"}})
    for state, trigger, digits in sent:
        send(fake, replace(TRAIN, state=state, context=f"pushgate/{trigger}", commit=digits * 20))
    last = {(digits * 20, f"pushgate/{trigger}"): API.STATES[state] for state, trigger, digits in sent}
    assert fake.statuses == last
    assert fake.status_writes == len(sent)
