"""GitLab's commit statuses, on a fake with its pipelines and the states of their jobs."""

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from gateway.provider_apis import gitlab, gitlab_statuses
from gateway.provider_apis.operation import ApiRefused, ApiUnavailable
from gateway.provider_apis.statuses import CommitStatus, StatusApi, StatusMemory, StatusState
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.fake import refusal
from testing.provider_apis.gitlab import FakeGitLab
from testing.provider_apis.gitlab_pipelines import LOCKED
from tests.provider_apis.running import Token, run_in_process

GOOD = "glpat-good"
PROJECT = "acme/ml/digits"
COMMIT = "1f" * 20
TRAIN = CommitStatus(
    commit=COMMIT,
    context="pushgate/train",
    state="waiting",
    description="waits for a runner",
    url="https://gate.example/deliveries/d1",
    ref="refs/heads/main",
)
STATES: list[StatusState] = list(gitlab_statuses.STATES)
FINAL = [state for state in STATES if gitlab_statuses.STATES[state] not in {"pending", "running"}]
API: StatusApi = gitlab_statuses


@dataclass
class Sender:
    """Sets the statuses of one context, and remembers what it must."""

    fake: FakeGitLab = field(
        default_factory=lambda: FakeGitLab(
            tokens={token: {PROJECT} for token in (GOOD, "developer", "reader")},
            developers={"developer"},
            readers={"reader"},
        )
    )
    token: str = GOOD
    project: str = PROJECT
    memory: StatusMemory = field(default_factory=dict)

    def set(self, state: StatusState, *, is_recorded: bool = True, ref: str = TRAIN.ref) -> None:
        """Set a status; one that is not recorded is of a process that dies before it could."""
        place = Place(f"https://git.acme.example/{self.project}.git")
        operation = API.set_status(place, replace(TRAIN, state=state, ref=ref), self.memory)
        identity = Token(gitlab, [self.token])
        memory = run_in_process(operation, gitlab.base_url(place), identity, fake=self.fake)
        if is_recorded:
            self.memory = json.loads(json.dumps(memory))

    @property
    def shown(self) -> str:
        """Return the state that a merge request shows."""
        return self.fake.pipelines.newest(COMMIT, "main").shown[TRAIN.context]


@pytest.mark.parametrize("last", ["waiting", "running", "succeeded", "failed", "superseded", "skipped"])
@pytest.mark.parametrize(
    "before",
    [
        [],
        ["waiting"],
        ["running"],
        ["waiting", "running"],
        ["waiting", "running", "succeeded"],
        ["waiting", "failed", "waiting", "running"],
    ],
)
def test_the_last_state_is_shown(before: list[StatusState], last: StatusState) -> None:
    """After any others, and if it is set twice; nothing else stays unfinished."""
    sender = Sender()
    for state in (*before, last, last):
        sender.set(state)
    assert sender.shown == gitlab_statuses.STATES[last]
    assert sender.fake.statuses == {(COMMIT, TRAIN.context): gitlab_statuses.STATES[last]}
    assert len(sender.fake.pipelines.unfinished) == (last not in FINAL)
    assert len(sender.fake.pipelines.all) == 1


def test_what_is_sent() -> None:
    """GitLab gets the short name of the ref, and a description of at most 255 characters."""
    sender = Sender()
    place = Place(f"https://git.acme.example/{PROJECT}.git")
    request = next(API.set_status(place, replace(TRAIN, description="no such step\n" * 50), {}))
    assert (request.method, request.path) == ("POST", f"/projects/acme%2Fml%2Fdigits/statuses/{COMMIT}")
    body = dict(request.body or {})
    assert len(body.pop("description")) == 255
    assert body == {
        "name": "pushgate/train",
        "ref": "main",
        "state": "pending",
        "target_url": "https://gate.example/deliveries/d1",
    }
    sender.set("running", ref="refs/tags/v1")
    assert sender.fake.pipelines.newest(COMMIT).ref == "v1"


def test_a_state_that_was_sent_and_not_recorded_is_sent_again() -> None:
    """GitLab refuses the second request, and shows the state that it has."""
    sender = Sender()
    for state in ("waiting", "running", "succeeded"):
        sender.set(state, is_recorded=False)
        sender.set(state)
        assert sender.shown == gitlab_statuses.STATES[state]
    # GitLab has no objection to another success.
    assert (sender.fake.status_writes, sender.fake.pipelines.unfinished) == (4, [])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (409, LOCKED),
        (400, "Failed to obtain a lock"),
        (400, "PG::QueryCanceled: ERROR: canceling statement due to statement timeout"),
    ],
)
def test_what_gitlab_is_too_busy_for_is_tried_again(status: int, said: str) -> None:
    """It is no refusal."""
    sender = Sender()
    sender.set("running")
    sender.fake.instead.append(refusal(status, said))
    with pytest.raises(ApiUnavailable, match=said):
        sender.set("succeeded")
    assert sender.shown == "running"
    sender.set("succeeded")
    assert (sender.shown, sender.fake.status_writes) == ("success", 2)


def test_a_status_moves_to_the_newest_pipeline() -> None:
    """GitLab CI creates it after the first status; the job in the earlier pipeline ends as well."""
    sender = Sender()
    sender.set("waiting")
    first, second = (
        sender.fake.pipelines.newest(COMMIT),
        sender.fake.pipelines.run_ci(PROJECT, COMMIT, "main"),
    )
    sender.set("running")
    assert (first.source, second.shown) == ("external", {"test": "success", TRAIN.context: "running"})
    sender.fake.pipelines.run_ci(PROJECT, COMMIT, "main")
    sender.set("succeeded")
    assert [one.shown[TRAIN.context] for one in sender.fake.pipelines.all] == ["success"] * 3
    assert (sender.fake.status_writes, sender.memory) == (5, {})
    sender.set("waiting")
    assert (sender.shown, len(sender.fake.pipelines.unfinished)) == ("pending", 1)


def test_an_earlier_pipeline_may_be_gone() -> None:
    """It is archived after a time that the administrator sets."""
    sender = Sender()
    sender.set("waiting")
    sender.fake.pipelines.all[0].is_archived = True
    sender.set("succeeded")
    assert (sender.shown, sender.memory) == ("success", {})


def test_a_status_moves_to_another_ref() -> None:
    """A tag on a pushed commit has its own pipeline; the final state is in both."""
    sender = Sender()
    sender.set("waiting")
    sender.set("waiting", ref="refs/tags/v1")
    sender.set("failed", ref="refs/tags/v1")
    shown = {one.ref: one.shown for one in sender.fake.pipelines.all}
    assert shown == {"main": {TRAIN.context: "failed"}, "v1": {TRAIN.context: "failed"}}


def test_a_full_pipeline_is_left() -> None:
    """GitLab creates another one, unless the status in it is unfinished."""
    sender = Sender()
    sender.fake.pipelines.max_jobs = 2
    sender.fake.pipelines.run_ci(PROJECT, COMMIT, "main")
    sender.set("running")
    sender.set("failed")
    assert len(sender.fake.pipelines.all) == 1
    sender.set("waiting")
    sender.set("succeeded")
    assert (len(sender.fake.pipelines.all), sender.shown) == (2, "success")
    assert sender.fake.pipelines.unfinished == []


def test_an_old_server_shows_a_success_for_a_skipped_execution() -> None:
    """It has no such state, and does not show the pipelines."""
    sender = Sender()
    sender.fake.version = (16, 2)
    sender.set("running")
    sender.set("skipped")
    assert (sender.shown, sender.fake.pipelines.unfinished) == ("success", [])
    sender.fake.instead.append(JSONResponse({"error": "state does not have a valid value"}, 400))
    with pytest.raises(ApiRefused, match="state does not have a valid value"):
        sender.set("failed")


@pytest.mark.parametrize(
    ("sender", "reason"),
    [
        (
            Sender(token="developer"),
            "for a protected branch or tag, also to be allowed to push or merge there” at git.acme.example",
        ),
        (Sender(token="reader"), "(The request requires higher privileges than provided by the access token"),
        (Sender(token="wrong"), "it is wrong, expired or revoked (Token was revoked."),
        (Sender(project="acme/other"), "git.acme.example has no such commit, or identity bot may not see it"),
        (Sender(), "(404 Commit Not Found)"),
    ],
)
def test_a_refusal_names_what_is_missing(sender: Sender, reason: str) -> None:
    """In one sentence, without the credential."""
    sender.fake.pipelines.protected.add("main")
    if sender.token == GOOD:
        sender.fake.pipelines.missing.add(COMMIT)
    with pytest.raises(ApiRefused) as refused:
        sender.set("waiting")
    assert reason in str(refused.value)
    assert GOOD not in str(refused.value)
    assert sender.fake.statuses == {}


def test_a_developer_may_set_the_statuses_of_other_branches() -> None:
    """Only protected branches need more."""
    sender = Sender(token="developer")
    sender.fake.pipelines.protected.add("release")
    sender.set("succeeded")
    assert sender.shown == "success"


def test_a_job_of_gitlab_ci_with_the_same_name_is_left_alone() -> None:
    """GitLab refuses a status with its name."""
    sender = Sender()
    sender.fake.pipelines.run_ci(PROJECT, COMMIT, "main", jobs=(TRAIN.context,))
    with pytest.raises(ApiRefused, match=r"400 \(name: has already been taken\)"):
        sender.set("failed")
    assert sender.shown == "success"


@settings(max_examples=20)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(STATES),
            st.sampled_from(["main", "v1"]),
            st.sampled_from(["none", "new pipeline", "busy", "not recorded"]),
        ),
        max_size=5,
    ),
    last=st.sampled_from(FINAL),
)
def test_any_sequence_ends_in_its_last_state(
    steps: list[tuple[StatusState, str, str]], last: StatusState
) -> None:
    """Whatever states, refs, pipelines and failures come before; and no pipeline waits for ever.

    Except where an answer is lost: nobody knows then which pipeline has the status.
    """
    sender = Sender()
    for state, ref, event in (*steps, (last, "main", "none")):
        full = f"refs/heads/{ref}"
        match event:
            case "new pipeline":
                sender.fake.pipelines.run_ci(PROJECT, COMMIT, ref)
            case "busy":
                sender.fake.instead.append(refusal(409, LOCKED))
                with pytest.raises(ApiUnavailable):
                    sender.set(state, ref=full)
            case "not recorded":
                sender.set(state, is_recorded=False, ref=full)
        sender.set(state, ref=full)
        shown = sender.fake.pipelines.newest(COMMIT, ref).shown[TRAIN.context]
        assert shown == gitlab_statuses.STATES[state]
    is_known = all(event != "not recorded" for _, _, event in steps)
    assert sender.fake.pipelines.unfinished == [] or not is_known
