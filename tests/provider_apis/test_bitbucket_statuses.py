"""Bitbucket Cloud's build statuses, on a fake that behaves as Bitbucket does."""

from hashlib import sha1

import pytest

from gateway.provider_apis import bitbucket, bitbucket_statuses
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.statuses import CommitStatus
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.bitbucket import FakeBitbucket
from tests.provider_apis.running import Token, run_in_process
from tests.provider_apis.verdicts import COMMIT, ORDERS, STATES, all_orders, in_turn, verdict, words

GOOD = "ATCTT3xFfGN0good"
PLACE = Place("https://bitbucket.org/Acme/digits.git")
SHOWN = words(
    INPROGRESS=["waiting", "running"],
    SUCCESSFUL=["succeeded", "skipped"],
    FAILED=["failed", "error", "lost"],
    STOPPED=["superseded", "cancelled"],
)


@pytest.fixture
def fake() -> FakeBitbucket:
    """Return Bitbucket with one repository."""
    tokens = {token: {"acme/digits"} for token in (GOOD, "reader", "blind")}
    return FakeBitbucket(tokens=tokens, readers={"reader"}, blind={"blind"})


def do(fake: FakeBitbucket, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    return run_in_process(operation, bitbucket.base_url(PLACE), Token(bitbucket, [token]), fake=fake)


def put(fake: FakeBitbucket, one: CommitStatus, token: str = GOOD) -> None:
    """Set one status."""
    do(fake, bitbucket_statuses.set_status(PLACE, one, {}), token)


def test_the_last_state_is_shown_in_each_order(fake: FakeBitbucket) -> None:
    """Also that of a re-run after a final state; each order takes two requests."""
    do(fake, all_orders(bitbucket_statuses, PLACE))
    assert fake.statuses == {(COMMIT, f"pushgate/{first}-{last}"): SHOWN[last] for first, last in ORDERS}
    assert fake.status_writes == len(fake.requests) == 2 * len(STATES) ** 2


def test_a_status_is_shown_at_pull_requests_of_its_branch(fake: FakeBitbucket) -> None:
    """A tag has none, and must not be taken for a branch of the same name."""
    put(fake, verdict("failed", "pushgate/a"))
    put(fake, verdict("failed", "pushgate/b", ref="refs/tags/topic/x"))
    by_branch, by_tag = fake.builds.values()
    assert by_branch == {
        "key": "pushgate/a",
        "state": "FAILED",
        "name": "pushgate/a",
        "description": "it is failed",
        "url": "https://push.example/dashboard/deliveries/d1",
        "refname": "topic/x",
        "author": GOOD,
    }
    assert "refname" not in by_tag


@pytest.mark.parametrize(("length", "is_hashed"), [(40, False), (41, True), (300, True)])
def test_a_long_context_has_a_hash_as_its_key(fake: FakeBitbucket, length: int, *, is_hashed: bool) -> None:
    """Contexts that begin alike keep keys of their own; people still read their names."""
    contexts = [f"pushgate/{'a' * (length - 10)}{end}" for end in "xy"]
    for context in contexts:
        do(fake, in_turn(bitbucket_statuses, PLACE, *(verdict(one, context) for one in STATES[:3])))
    keys = [sha1(context.encode()).hexdigest() if is_hashed else context for context in contexts]  # noqa: S324
    assert [key for _, _, key in fake.builds] == keys
    assert [build["name"][:200] for build in fake.builds.values()] == [context[:200] for context in contexts]


def test_long_texts_are_shortened_to_one_line(fake: FakeBitbucket) -> None:
    """Bitbucket refuses a longer name."""
    put(fake, verdict("failed", f"pushgate/{'a' * 300}", description="no such\nstep " * 100))
    [build] = fake.builds.values()
    assert [len(build["name"]), len(build["description"])] == [255, 255]
    assert build["description"].startswith("no such step no such step")


def test_a_link_that_bitbucket_refuses_is_explained(fake: FakeBitbucket) -> None:
    """Bitbucket Cloud accepts only hosts with a domain, and IP addresses."""
    put(fake, verdict("failed", url="http://127.0.0.1:8000/dashboard/deliveries/d1"))
    with pytest.raises(
        ApiRefused, match=r"no link to http://localhost:8000/.*: set PUSHGATE_PUBLIC_URL"
    ) as no:
        put(fake, verdict("failed", url="http://localhost:8000/dashboard/deliveries/d1"))
    assert no.value.status == 400


@pytest.mark.parametrize(
    ("token", "commit", "reason"),
    [
        ("wrong", COMMIT, "it is wrong, expired or revoked"),
        (
            "blind",
            COMMIT,
            r"needs the right “Repositories: read and write.*privilege scopes\. Required: repo",
        ),
        (GOOD, "2e" * 20, r"has no such commit, or identity bot may not see it; .*\(Commit not found\)"),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeBitbucket, token: str, commit: str, reason: str) -> None:
    """A commit that was force-pushed away is final, too."""
    fake.gone.add("2e" * 20)
    with pytest.raises(ApiRefused, match=reason):
        put(fake, verdict("failed", commit=commit), token)
    assert fake.statuses == {}


def test_a_status_of_another_user_stays(fake: FakeBitbucket) -> None:
    """Only its author or an administrator may change it, which the reason says."""
    put(fake, verdict("waiting"))
    with pytest.raises(ApiRefused, match="of the user who first set the status"):
        put(fake, verdict("failed"), "reader")
    assert fake.statuses == {(COMMIT, "pushgate/train"): "INPROGRESS"}
    put(fake, verdict("waiting", "pushgate/test"), "reader")
    put(fake, verdict("failed", "pushgate/test"), "reader")
    put(fake, verdict("succeeded", "pushgate/test"))
    assert fake.statuses[COMMIT, "pushgate/test"] == "SUCCESSFUL"


@pytest.mark.parametrize("url", [None, "", "x", "ftp://push.example/d1"])
def test_the_fake_demands_a_link(fake: FakeBitbucket, url: str | None) -> None:
    """As Bitbucket does."""
    request = next(bitbucket_statuses.set_status(PLACE, verdict("failed"), {}))
    body = {key: value for key, value in {**(request.body or {}), "url": url}.items() if value is not None}

    def without_link() -> Operation[None]:
        yield type(request)(method="POST", path=request.path, right=request.right, body=body)

    with pytest.raises(ApiRefused, match=r"400 \(url: (This field is required|Enter a valid URL)"):
        do(fake, without_link())
