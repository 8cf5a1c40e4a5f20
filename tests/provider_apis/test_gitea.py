"""Gitea's and Forgejo's webhooks, on a fake that behaves as they do."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

import providers.gitea
from gateway.provider_apis import gitea, gogs_like
from gateway.provider_apis.operation import ApiAnswer, ApiRefused, ApiRequest, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.fake import serving
from testing.provider_apis.gitea import COMMIT, FakeGitea
from tests.provider_apis.running import Token, run

GOOD = "0f1e2d3c"


@pytest.fixture
def fake() -> Iterator[FakeGitea]:
    """Serve Gitea with two repositories, one of them empty."""
    seen = {"acme/digits", "acme/new"}
    fake = FakeGitea(
        tokens=dict.fromkeys((GOOD, "reader", "unscoped"), seen),
        readers={"reader"},
        unscoped={"unscoped"},
        empty={"acme/new"},
    )
    with serving(fake):
        yield fake


def wanted(fake: FakeGitea) -> Webhook:
    """Return a webhook whose deliveries the fake itself records."""
    return Webhook(url=f"{fake.url}/hooks/c1", secret="canary-5f1d", events=gitea.EVENTS)


def do(fake: FakeGitea, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation."""
    return run(operation, gitea.base_url(Place(f"{fake.url}/acme/digits.git")), Token(gitea, [token]))


def test_a_webhook_is_created_found_replaced_tested_and_deleted(fake: FakeGitea) -> None:
    """A change replaces it, with a new secret; no answer has the secret."""
    place, hook = Place(f"{fake.url}/Acme/digits.git"), wanted(fake)
    made = do(fake, gitea.create(place, hook))
    assert (made.url, made.events, made.is_active, made.has_secret) == (hook.url, gitea.EVENTS, True, None)
    fake.hooks["acme/digits"][0].update(active=False, events=["push"], branch_filter="main")
    fake.hooks["acme/digits"][0]["config"]["secret"] = "canary-old"
    [found] = do(fake, gitea.webhooks(place))
    assert compare([found], hook).differences == ("switched off", "missing events", "branch filter")
    changed = do(fake, gitea.change(place, found.id, hook))
    assert [one.method for one in fake.requests[-2:]] == ["POST", "DELETE"]
    [found] = do(fake, gitea.webhooks(place))
    assert (found, compare([found], hook).differences) == (changed, ())
    assert fake.hooks["acme/digits"][0]["config"]["secret"] == hook.secret
    do(fake, gitea.delete(place, found.id))
    do(fake, gitea.delete(place, found.id))
    assert do(fake, gitea.webhooks(place)) == []


def requested(place: Place, webhook_id: str) -> Operation[int]:
    """Request a test delivery, as the button of the website does; return the status."""
    path = f"{gogs_like.hook_path(place, webhook_id)}/tests"
    answer = yield ApiRequest(method="POST", path=path, right="none", may_be_missing=True)
    return answer.status


def test_a_test_delivery_is_a_signed_push_and_never_requested(fake: FakeGitea) -> None:
    """Of the newest commit, which would be executed; an empty repository has none."""
    place, hook = Place(f"{fake.url}/acme/digits.git"), wanted(fake)
    made = do(fake, gitea.create(place, hook))
    before = len(fake.requests)
    assert not do(fake, gitea.test(place, made.id))
    assert len(fake.requests) == before
    assert do(fake, requested(place, made.id)) == 204
    sent = next(one for one in fake.requests if one.path == "/hooks/c1")
    request = providers.gitea.verify(
        headers=sent.headers,
        body=sent.body,
        secrets=[hook.secret.encode()],
        auth={},
        now=datetime.now(UTC),
    )
    assert [update.after for update in providers.gitea.parse(request).updates] == [COMMIT]
    new = do(fake, gitea.create(Place(f"{fake.url}/acme/new"), hook))
    assert do(fake, requested(Place(f"{fake.url}/acme/new"), new.id)) == 404


@pytest.mark.parametrize(("count", "requests"), [(50, 1), (120, 3)])
def test_webhooks_are_read_to_the_last_page(fake: FakeGitea, count: int, requests: int) -> None:
    """The number of all webhooks is in a header."""
    config = {"url": "https://a.example", "content_type": "json"}
    fake.hooks["acme/digits"] = [
        {"id": number, "active": True, "events": ["push"], "config": config} for number in range(count)
    ]
    found = do(fake, gitea.webhooks(Place(f"{fake.url}/acme/digits")))
    assert [hook.id for hook in found] == [str(number) for number in range(count)]
    assert len(fake.requests) == requests


def test_the_webhooks_of_an_old_server_without_pages_are_counted_once() -> None:
    """It answers each page with all webhooks, and does not say how many there are."""
    hooks = b'[{"id": 1, "active": true, "events": ["push"], "config": {"url": "https://a.example"}}]'
    operation = gitea.webhooks(Place("https://git.acme.example/acme/digits"))
    next(operation)
    operation.send(ApiAnswer(status=200, headers={}, content=hooks))
    with pytest.raises(StopIteration) as done:
        operation.send(ApiAnswer(status=200, headers={}, content=hooks))
    assert [hook.id for hook in done.value.value] == ["1"]


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        ("wrong", "digits", "it is wrong, expired or revoked (invalid username, password or token)"),
        (
            "unscoped",
            "digits",
            f"the right “{gitea.RIGHTS['repository']}” at 127.0.0.1 (token does not have at least one of",
        ),
        ("reader", "digits", "(user should be an owner or a collaborator with admin write of a repository)"),
        (GOOD, "other", "127.0.0.1 has no such repository, or identity bot may not see it; check the"),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeGitea, token: str, repository: str, reason: str) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused) as refused:
        do(fake, gitea.webhooks(Place(f"{fake.url}/acme/{repository}")), token)
    assert reason in str(refused.value)
    assert GOOD not in str(refused.value)


def test_the_reason_of_an_invalid_webhook_is_giteas_own(fake: FakeGitea) -> None:
    """It is the message of the answer."""
    hook = Webhook(url="ftp://gate.example/hooks/c1", secret="canary-5f1d", events=gitea.EVENTS)
    with pytest.raises(ApiRefused, match=r"422 \(Invalid url\)"):
        do(fake, gitea.create(Place(f"{fake.url}/acme/digits"), hook))


@pytest.mark.parametrize(
    ("clone_url", "base_url"),
    [
        ("https://codeberg.org/acme/digits.git", "https://codeberg.org/api/v1"),
        ("git@git.acme.example:acme/digits.git", "https://git.acme.example/api/v1"),
        ("ssh://git@git.acme.example:2222/acme/digits.git", "https://git.acme.example/api/v1"),
        ("http://git.acme.example:3000/acme/digits", "http://git.acme.example:3000/api/v1"),
        ("https://acme.example/git/acme/digits.git", "https://acme.example/git/api/v1"),
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str, base_url: str) -> None:
    """Also in a folder of a web server."""
    assert gitea.base_url(Place(clone_url)) == base_url
    request = next(gitea.delete(Place(clone_url), "7/.."))
    assert request.path == "/repos/acme/digits/hooks/7%2F.."
