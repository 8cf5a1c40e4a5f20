"""Bitbucket Data Center's build statuses, on a fake that behaves as Bitbucket does."""

import pytest

from gateway.provider_apis import bitbucket_server, bitbucket_server_statuses
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.bitbucket_server import FakeBitbucketServer
from tests.provider_apis.running import Token, run_in_process
from tests.provider_apis.verdicts import COMMIT, ORDERS, STATES, all_orders, in_turn, verdict, words

GOOD = "BBDC-good"
PLACE = Place("https://git.acme.example/scm/ml/digits.git")
PATH = f"/rest/api/latest/projects/ml/repos/digits/commits/{COMMIT}/builds"
OLD_PATH = f"/rest/build-status/1.0/commits/{COMMIT}"
SHOWN = words(
    INPROGRESS=["waiting", "running"],
    SUCCESSFUL=["succeeded", "skipped"],
    FAILED=["failed", "error"],
    CANCELLED=["superseded", "cancelled"],
    UNKNOWN=["lost"],
)
SHOWN_BEFORE_8 = words(
    INPROGRESS=["waiting", "running"],
    SUCCESSFUL=["succeeded", "skipped"],
    FAILED=["failed", "error", "superseded", "cancelled", "lost"],
)


@pytest.fixture
def fake() -> FakeBitbucketServer:
    """Return Data Center with one repository."""
    tokens = {GOOD: {"ml/digits"}, "reader": {"ml/digits"}}
    return FakeBitbucketServer(tokens=tokens, readers={"reader"}, gone={"2e" * 20})


def do(fake: FakeBitbucketServer, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    identity = Token(bitbucket_server, [token])
    return run_in_process(operation, bitbucket_server.base_url(PLACE), identity, fake=fake)


@pytest.mark.parametrize(
    ("version", "shown"), [((8, 0), SHOWN), ((7, 21), SHOWN_BEFORE_8), ((7, 3), SHOWN_BEFORE_8)]
)
def test_the_last_state_is_shown_in_each_order(
    fake: FakeBitbucketServer, version: tuple[int, int], shown: dict[str, str]
) -> None:
    """Servers before 8.0 lack two states, and those before 7.4 another API."""
    fake.version = version
    do(fake, all_orders(bitbucket_server_statuses, PLACE))
    assert fake.statuses == {(COMMIT, f"pushgate/{first}-{last}"): shown[last] for first, last in ORDERS}
    assert fake.status_writes == 2 * len(STATES) ** 2


def test_a_status_names_its_branch_and_what_required_builds_name(fake: FakeBitbucketServer) -> None:
    """Bitbucket finds the pull requests by the full name of the branch; to read the repository suffices."""
    do(fake, in_turn(bitbucket_server_statuses, PLACE, verdict("failed")), "reader")
    assert fake.builds["ml/digits", COMMIT, "pushgate/train"] == {
        "key": "pushgate/train",
        "parent": "pushgate/train",
        "name": "pushgate/train",
        "ref": "refs/heads/topic/x",
        "state": "FAILED",
        "description": "it is failed",
        "url": "https://push.example/dashboard/deliveries/d1",
    }


@pytest.mark.parametrize(
    ("version", "requests", "memory"),
    [
        ((8, 0), [(PATH, 204)] * 4, {}),
        ((7, 21), [(PATH, 204), (PATH, 400), *[(PATH, 204)] * 3], {"lacks_states": True}),
        ((7, 3), [(PATH, 404), *[(OLD_PATH, 204)] * 4], {"lacks_api": True}),
    ],
)
def test_what_an_old_server_lacks_is_found_out_once(
    fake: FakeBitbucketServer,
    version: tuple[int, int],
    requests: list[tuple[str, int]],
    memory: dict[str, bool],
) -> None:
    """It costs one request, and is remembered for the context."""
    fake.version = version
    verdicts = [verdict(state) for state in ("waiting", "superseded", "running", "cancelled")]
    assert do(fake, in_turn(bitbucket_server_statuses, PLACE, *verdicts)) == memory
    assert [(one.path, one.status) for one in fake.requests] == requests


@pytest.mark.parametrize("context_path", ["", "/bitbucket"])
def test_the_old_api_is_beneath_the_context_path(context_path: str) -> None:
    """As the other APIs of the server."""
    home = Place(f"https://git.acme.example{context_path}/scm/ml/digits.git")
    operation = bitbucket_server_statuses.set_status(home, verdict("failed"), {"lacks_api": True})
    assert next(operation).path == f"../../build-status/1.0/commits/{COMMIT}"
    assert bitbucket_server.base_url(home).endswith(f"{context_path}/rest/api/latest")


@pytest.mark.parametrize(
    ("token", "repository", "commit", "reason"),
    [
        ("wrong", "digits", COMMIT, "it is wrong, expired or revoked"),
        (GOOD, "other", COMMIT, r"no such commit, .* \(Repository ml/other does not exist\.\)"),
        (GOOD, "digits", "2e" * 20, r"no such commit, .* \(Commit '2e2e.*' does not exist in repository"),
    ],
)
def test_the_old_api_is_no_way_around_a_refusal(
    fake: FakeBitbucketServer, token: str, repository: str, commit: str, reason: str
) -> None:
    """It accepts any commit, so that a status could seem to be set."""
    operation = bitbucket_server_statuses.set_status(
        Place(f"https://git.acme.example/scm/ml/{repository}.git"), verdict("cancelled", commit=commit), {}
    )
    with pytest.raises(ApiRefused, match=reason):
        do(fake, operation, token)
    assert fake.statuses == {}
    assert all(one.path.endswith("/builds") for one in fake.requests)


@pytest.mark.parametrize(("state", "requests"), [("failed", 1), ("cancelled", 2)])
def test_an_invalid_status_is_refused(fake: FakeBitbucketServer, state: str, requests: int) -> None:
    """Only one with a new state may be valid with another one."""
    operation = bitbucket_server_statuses.set_status(PLACE, verdict(state, url="d1"), {})  # type: ignore[arg-type]
    with pytest.raises(ApiRefused, match=r"answered 400 \(Please specify a valid url\)"):
        do(fake, operation)
    assert len(fake.requests) == requests


def test_long_texts_are_shortened_to_one_line(fake: FakeBitbucketServer) -> None:
    """Bitbucket refuses longer names, but no name of a trigger is that long."""
    context = f"pushgate/{'a' * 200}"
    one = verdict("failed", context, description="no such\nstep " * 100)
    do(fake, in_turn(bitbucket_server_statuses, PLACE, one))
    [build] = fake.builds.values()
    assert (build["key"], build["name"], len(build["description"])) == (context, context, 255)
    assert build["description"].startswith("no such step no such step")
