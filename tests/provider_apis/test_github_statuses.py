"""GitHub's commit statuses and check runs, on a fake that behaves as GitHub does."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.provider_apis import github, github_checks, github_statuses
from gateway.provider_apis.operation import ApiLimited, ApiRefused
from gateway.provider_apis.status_apis import status_api
from gateway.provider_apis.statuses import Annotation, CommitStatus, StatusApi, StatusState
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.github_app import FakeGitHubWithApp, Installation, IssuedToken
from tests.provider_apis.running import Token, run

GOOD = "github_pat_good"
SHA = "5e" * 20
STATUS = CommitStatus(
    commit=SHA,
    context="pushgate/train",
    state="waiting",
    description="waiting for a runner",
    url="https://gate.example/deliveries/d1",
    ref="refs/heads/main",
    execution="e1",
)


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    """Serve GitHub with one repository."""
    fake = FakeGitHub(tokens={GOOD: {"acme/digits"}, "reader": {"acme/digits"}}, readers={"reader"})
    with serving(fake):
        yield fake


@pytest.fixture
def app() -> Iterator[FakeGitHubWithApp]:
    """Serve GitHub with an App, and a token of its installation."""
    fake = FakeGitHubWithApp()
    here = Installation(1, "acme", ["acme/digits"], {"checks": "write"})
    fake.issued.append(
        IssuedToken(GOOD, here, here.repositories, {"checks": "write"}, fake.now.replace(year=2999))
    )
    with serving(fake):
        yield fake


def send(
    fake: FakeGitHub,
    api: StatusApi,
    memory: Mapping[str, Any] | None = None,
    token: str = GOOD,
    **changes: Any,
) -> Mapping[str, Any]:
    """Set a status, and return what the next one must know."""
    place = Place(f"{fake.url}/acme/digits.git")
    operation = api.set_status(place, replace(STATUS, **changes), memory or {})
    return run(operation, github.base_url(place), Token(github, [token]))


def test_identities_set_statuses_and_apps_write_check_runs() -> None:
    """Nobody else may write check runs."""
    assert status_api("github", "token") is github_statuses
    assert status_api("github", "github-app") is github_checks


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("waiting", "pending"),
        ("succeeded", "success"),
        ("failed", "failure"),
        ("error", "error"),
        ("superseded", "error"),
        ("cancelled", "error"),
        ("lost", "error"),
        ("skipped", "success"),
    ],
)
def test_a_status_is_set(fake: FakeGitHub, state: StatusState, shown: str) -> None:
    """With a description that GitHub takes, and a link for people."""
    send(fake, github_statuses, state=state, description="word " * 40)
    assert fake.statuses == {(SHA, "pushgate/train"): shown}
    [[posted]] = fake.verdicts.posted.values()
    assert posted["target_url"] == STATUS.url
    assert posted["description"].startswith("word word")
    assert len(posted["description"]) <= 140
    assert [(one.method, one.status) for one in fake.requests] == [("POST", 201)]
    # It would be sent for nothing.
    assert github_statuses.STATES["running"] == github_statuses.STATES["waiting"]


def test_a_status_that_github_refuses_is_refused_for_good(fake: FakeGitHub) -> None:
    """Because the commit is gone, the context is full, or the token lacks the right."""
    for _ in range(1000):
        fake.verdicts.set_status(SHA, {"state": "success", "context": "Pushgate/Train"})
    reason = r"422 \(Validation failed: This SHA and context has reached the maximum number of statuses\.\)"
    with pytest.raises(ApiRefused, match=reason):
        send(fake, github_statuses)
    fake.verdicts.missing.add(SHA)
    with pytest.raises(ApiRefused, match=rf"answered 422 \(No commit found for SHA: {SHA}\)"):
        send(fake, github_statuses)
    reason = r"needs the right “Commit statuses: read and write; .*Resource not accessible by personal access"
    with pytest.raises(ApiRefused, match=reason):
        send(fake, github_statuses, token="reader")
    with pytest.raises(ApiRefused, match="You must authenticate via a GitHub App"):
        send(fake, github_checks, commit="5f" * 20)


def test_the_secondary_limit_is_waited_for(fake: FakeGitHub) -> None:
    """GitHub refuses the 81st status of a minute, and the 501st of an hour."""
    now = 1000.0
    fake.limit.clock = lambda: now
    assert [fake.limit.refusal() is None for _ in range(81)] == [True] * 80 + [False]
    with pytest.raises(ApiLimited) as limited:
        send(fake, github_statuses)
    assert limited.value.seconds == 60
    accepted = 80
    for _ in range(600):
        now += 2
        accepted += fake.limit.refusal() is None
    assert accepted == 500


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("waiting", "queued"),
        ("running", "in_progress"),
        ("succeeded", "success"),
        ("failed", "failure"),
        ("error", "failure"),
        ("superseded", "cancelled"),
        ("cancelled", "cancelled"),
        ("lost", "timed_out"),
        ("skipped", "skipped"),
    ],
)
def test_a_check_run_is_created(app: FakeGitHubWithApp, state: StatusState, shown: str) -> None:
    """In any state, with the execution that it is of, and a page for people."""
    send(app, github_checks, state=state)
    assert (
        app.statuses
        == {(SHA, "pushgate/train"): shown}
        == {(SHA, "pushgate/train"): github_checks.STATES[state]}
    )
    [check] = app.verdicts.check_runs
    assert check["status"] == (shown if state in {"waiting", "running"} else "completed")
    assert (check["external_id"], check["details_url"]) == ("e1", STATUS.url)
    assert check["output"] == {"title": STATUS.description, "summary": STATUS.description}


def test_a_check_run_is_changed_until_it_is_completed(app: FakeGitHubWithApp) -> None:
    """Another execution has another one, because a conclusion is never changed."""
    memory = send(app, github_checks)
    memory = send(app, github_checks, memory, state="running")
    memory = send(app, github_checks, memory, state="failed", summary="## Loss\n\n0.3")
    [check] = app.verdicts.check_runs
    assert (check["conclusion"], check["output"]["summary"]) == ("failure", "## Loss\n\n0.3")
    memory = send(app, github_checks, memory, execution="e2")
    assert app.statuses == {(SHA, "pushgate/train"): "queued"}
    send(app, github_checks, memory, execution="e2", state="succeeded")
    assert app.statuses == {(SHA, "pushgate/train"): "success"}
    assert [check["external_id"] for check in app.verdicts.check_runs] == ["e1", "e2"]
    assert [one.method for one in app.requests] == ["POST", "PATCH", "PATCH", "POST", "PATCH"]


def test_a_check_run_that_is_gone_is_created_again(app: FakeGitHubWithApp) -> None:
    """Or that the identity's earlier App has created, which no other may change."""
    memory = send(app, github_checks)
    app.verdicts.check_runs.clear()
    memory = send(app, github_checks, memory, state="running")
    assert app.statuses == {(SHA, "pushgate/train"): "in_progress"}
    app.app_id += 1
    send(app, github_checks, memory, state="succeeded")
    assert app.statuses == {(SHA, "pushgate/train"): "success"}
    assert [one.status for one in app.requests] == [201, 404, 201, 403, 201]


def test_a_check_run_names_the_wrong_lines(app: FakeGitHubWithApp) -> None:
    """GitHub takes 50 annotations, and a summary of 65,535 bytes."""
    wrong = [Annotation(path="valohai.yaml", line=line, message="no such step") for line in range(1, 61)]
    send(
        app,
        github_checks,
        state="error",
        annotations=tuple(wrong),
        summary="é" * 40_000,
        description="x " * 99,
    )
    [check] = app.verdicts.check_runs
    assert len(check["annotations"]) == 50
    assert check["annotations"][1] == {
        "path": "valohai.yaml",
        "start_line": 2,
        "end_line": 2,
        "annotation_level": "failure",
        "message": "no such step",
    }
    assert len(check["output"]["title"]) <= 140
    summary = check["output"]["summary"]
    assert 65_530 < len(summary.encode()) <= 65_535
    assert summary.endswith("é\n\n…")


def test_a_check_run_that_github_refuses_is_refused_for_good(app: FakeGitHubWithApp) -> None:
    """Because the commit is gone, the repository is not seen, or the App lacks the permission."""
    app.verdicts.missing.add(SHA)
    with pytest.raises(ApiRefused, match="No commit found for SHA"):
        send(app, github_checks)
    with pytest.raises(ApiRefused, match="No commit found for SHA"):
        send(app, github_checks, {"open": 7})
    app.issued = [replace(app.issued[0], permissions={"metadata": "read"})]
    reason = r"needs the right “Checks: read and write” at .* \(Resource not accessible by integration\)"
    for memory in ({}, {"open": 7}):
        with pytest.raises(ApiRefused, match=reason):
            send(app, github_checks, memory)
