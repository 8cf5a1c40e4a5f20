"""Azure DevOps' statuses of commits and pull requests, on a fake that behaves as Azure DevOps does."""

from typing import Any

import pytest
from starlette.responses import Response

from gateway.provider_apis import azure_devops, azure_devops_statuses
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation, T
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.azure_devops import FakeAzureDevOps
from testing.provider_apis.azure_statuses import AzureStatuses
from tests.provider_apis.running import Token, run_in_process
from tests.provider_apis.verdicts import COMMIT, ORDERS, STATES, all_orders, in_turn, verdict, words

GOOD = "canary-pat"
LATER = "2e" * 20
TRAIN = "pushgate/train"
PROJECT = "https://git.acme.example/tfs/Default/Machine%20Learning"
PLACE = Place(f"{PROJECT}/_git/digits")
SHOWN = words(
    pending=["waiting", "running"],
    succeeded=["succeeded"],
    failed=["failed"],
    error=["error", "superseded", "cancelled", "lost"],
    notApplicable=["skipped"],
)


@pytest.fixture
def fake() -> FakeAzureDevOps:
    """Return Azure DevOps with one repository, and a pull request of two pushes."""
    tokens = {token: {"machine learning/digits"} for token in (GOOD, "reader", "blind")}
    git = AzureStatuses(pull_requests={7: [COMMIT, LATER]})
    return FakeAzureDevOps(tokens=tokens, readers={"reader"}, blind={"blind"}, git=git)


def do(fake: FakeAzureDevOps, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    return run_in_process(operation, azure_devops.base_url(PLACE), Token(azure_devops, [token]), fake=fake)


def test_the_last_state_is_shown_in_each_order(fake: FakeAzureDevOps) -> None:
    """Azure DevOps keeps the earlier ones, and shows the newest of each context."""
    do(fake, all_orders(azure_devops_statuses, PLACE))
    expected = {f"pushgate/{first}-{last}": SHOWN[last] for first, last in ORDERS}
    assert fake.statuses == {(COMMIT, context): state for context, state in expected.items()}
    assert fake.status_writes == len(fake.requests) == 2 * len(STATES) ** 2

    def listed() -> Operation[bytes]:
        path = f"{azure_devops.repository_path(PLACE)}/commits/{COMMIT}/statuses"
        query = {"latestOnly": "true", "api-version": "5.0"}
        return (yield ApiRequest(method="GET", path=path, right="any", query=query)).content

    assert do(fake, listed()).count(b'"state"') == len(ORDERS)


def test_the_last_state_is_shown_at_a_pull_request_in_each_order(fake: FakeAzureDevOps) -> None:
    """Its page shows only statuses of its own; its iterations are read once for each context."""
    do(fake, all_orders(azure_devops_statuses, PLACE, commit=LATER, pull_request=7))
    expected = {f"pushgate/{first}-{last}": SHOWN[last] for first, last in ORDERS}
    assert fake.git.page(7) == expected
    assert fake.statuses == {(LATER, context): state for context, state in expected.items()}
    assert len(fake.requests) == len(STATES) ** 2 * (1 + 2 * 2)


def test_a_policy_names_genre_and_name(fake: FakeAzureDevOps) -> None:
    """As a branch policy requires a status; an aggregate has no genre."""
    for context in (TRAIN, "pushgate/a/b", "pushgate"):
        do(fake, in_turn(azure_devops_statuses, PLACE, verdict("failed", context)))
    statuses = [status for _, status in fake.git.of_commits]
    assert statuses[0] == {
        "id": 1,
        "state": "failed",
        "description": "it is failed",
        "targetUrl": "https://push.example/dashboard/deliveries/d1",
        "context": {"genre": "pushgate", "name": "train"},
    }
    contexts = [status["context"] for status in statuses[1:]]
    assert contexts == [{"genre": "pushgate", "name": "a/b"}, {"name": "pushgate"}]


def test_an_earlier_push_does_not_change_what_the_newest_shows(fake: FakeAzureDevOps) -> None:
    """Its verdict may come last."""
    early, late = verdict("waiting", pull_request=7), verdict("waiting", commit=LATER, pull_request=7)
    memory = do(fake, in_turn(azure_devops_statuses, PLACE, early))
    assert memory == {"iteration": 1}
    do(fake, in_turn(azure_devops_statuses, PLACE, late))
    failed = verdict("failed", pull_request=7)
    do(fake, azure_devops_statuses.set_status(PLACE, failed, memory))
    assert fake.git.page(7) == {TRAIN: "pending"}
    assert fake.statuses == {(COMMIT, TRAIN): "failed", (LATER, TRAIN): "pending"}


def test_a_policy_that_resets_statuses_is_satisfied(fake: FakeAzureDevOps) -> None:
    """It refuses a status that is of no iteration; a commit that came back is in the newest one."""
    fake.git.needs_iterations = True
    fake.git.pull_requests[7].append(COMMIT)
    one = verdict("succeeded", pull_request=7)
    assert do(fake, in_turn(azure_devops_statuses, PLACE, one)) == {"iteration": 3}
    assert fake.git.page(7) == {TRAIN: "succeeded"}
    elsewhere = verdict("succeeded", commit="3d" * 20, pull_request=7)
    with pytest.raises(ApiRefused, match="Policy configuration requires status to be posted on iteration"):
        do(fake, in_turn(azure_devops_statuses, PLACE, elsewhere))


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_status_without_an_iteration_is_of_the_whole_pull_request(
    fake: FakeAzureDevOps, *, is_hidden: bool
) -> None:
    """If Azure DevOps does not show them, or not yet the one of the commit."""
    operation = azure_devops_statuses.set_status(
        PLACE, verdict("failed", commit="3d" * 20, pull_request=7), {}
    )
    if is_hidden:
        next(operation)
        operation.send(None)  # type: ignore[arg-type]
        request = operation.throw(ApiRefused("no", status=403))
        assert request.body is not None
        assert "iterationId" not in request.body
        return
    assert do(fake, operation) == {}
    assert fake.git.page(7) == {TRAIN: "failed"}


def test_a_pull_request_of_a_fork_shows_its_status(fake: FakeAzureDevOps) -> None:
    """The repository of the target does not have the commit."""
    fake.git.gone.add(LATER)
    do(fake, in_turn(azure_devops_statuses, PLACE, verdict("failed", commit=LATER, pull_request=7)))
    assert fake.git.page(7) == {TRAIN: "failed"}
    assert fake.statuses == {}


def test_a_pull_request_shows_its_status_even_if_the_commit_may_not() -> None:
    """The two take different permissions; what is missing is an error all the same."""
    operation = azure_devops_statuses.set_status(PLACE, verdict("failed", pull_request=7), {"iteration": 2})
    next(operation)
    assert operation.throw(ApiRefused("TF401027", status=403)).path.endswith("/pullRequests/7/statuses")
    with pytest.raises(ApiRefused, match="TF401027"):
        operation.send(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("token", "name", "changed", "reason"),
    [
        ("wrong", "digits", {}, "it is wrong, expired or revoked, or it lacks the right “scopes Code"),
        ("blind", "digits", {}, r"or it lacks the right “scopes Code \(read\) and Code \(status\)"),
        ("reader", "digits", {}, r"needs the right “scopes .* \(TF401027: You need the Git 'GenericCon"),
        ("reader", "digits", {"pull_request": 7}, r"TF401027: You need the Git 'PullRequestContribute'"),
        (GOOD, "other", {}, r"has no such commit, .* \(TF401019: The Git repository with name or"),
        (GOOD, "digits", {"commit": "4c" * 20}, r"has no such commit, .* \(TF401175: "),
        (GOOD, "digits", {"pull_request": 8}, r"no such pull request, .* \(TF401180: "),
    ],
)
def test_a_refusal_names_what_is_missing(
    fake: FakeAzureDevOps, token: str, name: str, changed: dict[str, Any], reason: str
) -> None:
    """Azure DevOps answers a token without the scope as it answers a wrong one."""
    fake.git.gone.add("4c" * 20)
    with pytest.raises(ApiRefused, match=reason) as refused:
        do(
            fake,
            in_turn(azure_devops_statuses, Place(f"{PROJECT}/_git/{name}"), verdict("failed", **changed)),
            token,
        )
    assert refused.value.status in {403, 404}
    assert GOOD not in str(refused.value)


def test_a_page_to_sign_in_at_is_no_status(fake: FakeAzureDevOps) -> None:
    """It comes with the status 203, which is no error."""
    page = Response("<html>Sign In</html>", 203, media_type="text/html; charset=utf-8")
    fake.instead.extend([page, page])
    with pytest.raises(ApiRefused, match="it is wrong, expired or revoked, or it lacks"):
        do(fake, in_turn(azure_devops_statuses, PLACE, verdict("failed")))
    assert fake.status_writes == 0


def test_long_texts_are_shortened_to_one_line(fake: FakeAzureDevOps) -> None:
    """Names of contexts stay whole."""
    context = f"pushgate/{'a' * 200}"
    one = verdict("failed", context, description="no such\nstep " * 100)
    do(fake, in_turn(azure_devops_statuses, PLACE, one))
    [(_, status)] = fake.git.of_commits
    assert (status["context"]["name"], len(status["description"])) == ("a" * 200, 255)
    assert status["description"].startswith("no such step no such step")
