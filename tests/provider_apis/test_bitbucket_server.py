"""Bitbucket Data Center's webhooks, on a fake that behaves as Bitbucket does."""

from collections.abc import Iterator

import pytest

from gateway.provider_apis import bitbucket_server
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.bitbucket_server import FakeBitbucketServer
from testing.provider_apis.fake import serving
from tests.provider_apis.running import Token, run

GOOD = "BBDC-good"


@pytest.fixture
def fake() -> Iterator[FakeBitbucketServer]:
    """Serve Data Center with a project's repository and a user's."""
    repositories = {"ml/digits", "~ada/digits"}
    fake = FakeBitbucketServer(tokens={GOOD: repositories, "reader": repositories}, readers={"reader"})
    with serving(fake):
        yield fake


def do(fake: FakeBitbucketServer, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    base_url = bitbucket_server.base_url(Place(f"{fake.url}/scm/ml/digits.git"))
    return run(operation, base_url, Token(bitbucket_server, [token]))


def test_a_webhook_is_created_found_changed_tested_and_deleted(fake: FakeBitbucketServer) -> None:
    """The secret is sent, and never shown again; the ping is not signed."""
    place = Place(f"{fake.url}/scm/~ada/digits.git")
    wanted = Webhook(url=f"{fake.url}/hooks/c1", secret="canary-5f1d", events=bitbucket_server.EVENTS)
    made = do(fake, bitbucket_server.create(place, wanted))
    assert (made.url, made.events, made.is_active, made.has_secret) == (wanted.url, wanted.events, True, True)
    [stored] = fake.hooks["~ada/digits"]
    assert stored["configuration"] == {"secret": wanted.secret}
    stored.update(active=False, events=["repo:refs_changed"], configuration={})
    [found] = do(fake, bitbucket_server.webhooks(place))
    assert compare([found], wanted).differences == ("switched off", "no secret", "missing events")
    changed = do(fake, bitbucket_server.change(place, found.id, wanted))
    [found] = do(fake, bitbucket_server.webhooks(place))
    assert changed == found
    assert compare([found], wanted).differences == ()
    assert do(fake, bitbucket_server.test(place, found.id))
    [ping] = [answered for answered in fake.requests if answered.path == "/hooks/c1"]
    assert ping.headers["x-event-key"] == "diagnostics:ping"
    assert "x-hub-signature" not in ping.headers
    do(fake, bitbucket_server.delete(place, found.id))
    do(fake, bitbucket_server.delete(place, found.id))
    assert do(fake, bitbucket_server.webhooks(place)) == []


def test_webhooks_are_read_to_the_last_page_without_those_of_the_project(fake: FakeBitbucketServer) -> None:
    """A repository inherits its project's webhooks, which its own API cannot change."""
    fake.hooks["ml/digits"] = [
        {"id": number, "url": "https://a.example", "configuration": {}, "scopeType": scope}
        for number, scope in enumerate(["project", *["repository"] * 249])
    ]
    found = do(fake, bitbucket_server.webhooks(Place(f"{fake.url}/scm/ml/digits.git")))
    assert [hook.id for hook in found] == [str(number) for number in range(1, 250)]
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("token", "repository", "reason", "statuses"),
    [
        ("wrong", "digits", r"it is wrong, expired or revoked \(Authentication failed\.", [401, 401]),
        ("reader", "digits", r"needs the right “Repository admin” at .* \(You are not permitted", [401]),
        (GOOD, "other", r"no such repository, .* \(Repository ml/other does not exist\.\)", [404]),
    ],
)
def test_a_refusal_names_what_is_missing(
    fake: FakeBitbucketServer, token: str, repository: str, reason: str, statuses: list[int]
) -> None:
    """Data Center answers 401 also to a user without the right, whose credential is good."""
    with pytest.raises(ApiRefused, match=reason):
        do(fake, bitbucket_server.webhooks(Place(f"{fake.url}/scm/ml/{repository}")), token)
    assert [answered.status for answered in fake.requests] == statuses


def test_the_reason_of_an_invalid_webhook_is_bitbuckets_own(fake: FakeBitbucketServer) -> None:
    """An old server lacks some events."""
    invalid = Webhook(url="https://a.example", secret="s", events=frozenset({"pr:unknown"}))
    with pytest.raises(ApiRefused, match=r"answered 400 \(pr:unknown is not a known webhook event\)"):
        do(fake, bitbucket_server.create(Place(f"{fake.url}/scm/ml/digits"), invalid))


@pytest.mark.parametrize(
    ("clone_url", "base_url"),
    [
        ("https://git.acme.example/scm/ML/digits.git", "https://git.acme.example"),
        ("https://git.acme.example:8443/scm/~ml/digits.git", "https://git.acme.example:8443"),
        ("https://git.acme.example/bitbucket/scm/ML/digits.git", "https://git.acme.example/bitbucket"),
        ("ssh://git@git.acme.example:7999/ML/digits.git", "https://git.acme.example"),
        ("ssh://git@git.acme.example:7999/~ml/digits.git", "https://git.acme.example"),
        ("git@git.acme.example:ML/digits.git", "https://git.acme.example"),
        ("ssh://git@git.acme.example:7999/scm/digits.git", "https://git.acme.example"),
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str, base_url: str) -> None:
    """Only URLs of http have `scm` before the project."""
    assert bitbucket_server.base_url(Place(clone_url)) == f"{base_url}/rest/api/latest"
    project = "~ml" if "~" in clone_url else "scm" if "7999/scm/" in clone_url else "ML"
    assert (
        next(bitbucket_server.webhooks(Place(clone_url))).path == f"/projects/{project}/repos/digits/webhooks"
    )
