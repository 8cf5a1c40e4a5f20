"""GitHub's webhooks, on a fake that behaves as GitHub does."""

from collections.abc import Iterator

import pytest

from gateway.provider_apis import github
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from tests.provider_apis.running import Token, run

GOOD = "github_pat_good"
WANTED = Webhook(url="http://127.0.0.1:9/hooks/c1", secret="canary-5f1d", events=github.EVENTS)


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    """Serve GitHub with one repository."""
    fake = FakeGitHub(tokens={GOOD: {"acme/digits"}, "reader": {"acme/digits"}}, readers={"reader"})
    with serving(fake):
        yield fake


def do(fake: FakeGitHub, operation: Operation[T], *tokens: str) -> T:
    """Run an operation with the good token, or with the given ones."""
    clone_url = f"{fake.url}/acme/digits.git"
    return run(operation, github.base_url(Place(clone_url)), Token(github, list(tokens) or [GOOD]))


def test_a_webhook_is_created_found_changed_tested_and_deleted(fake: FakeGitHub) -> None:
    """The secret is sent, and never shown again."""
    place = Place(f"{fake.url}/Acme/digits.git")
    made = do(fake, github.create(place, WANTED))
    assert (made.url, made.events, made.is_active, made.has_secret) == (WANTED.url, WANTED.events, True, True)
    assert fake.hooks["acme/digits"][0]["config"]["secret"] == WANTED.secret
    fake.hooks["acme/digits"][0].update(active=False, events=["push"])
    [found] = do(fake, github.webhooks(place))
    assert compare([found], WANTED).differences == ("switched off", "missing events")
    changed = do(fake, github.change(place, found.id, WANTED))
    [found] = do(fake, github.webhooks(place))
    assert changed == found
    assert compare([found], WANTED).differences == ()
    assert found.problem == "502 failed to connect to host"
    assert do(fake, github.test(place, found.id))
    assert fake.pings == [int(found.id)] * 2
    do(fake, github.delete(place, found.id))
    do(fake, github.delete(place, found.id))
    assert do(fake, github.webhooks(place)) == []


def test_webhooks_are_read_to_the_last_page(fake: FakeGitHub) -> None:
    """A page has at most 100."""
    fake.hooks["acme/digits"] = [
        {"id": number, "active": True, "events": ["push"], "config": {"url": f"https://a.example/{number}"}}
        for number in range(250)
    ]
    found = do(fake, github.webhooks(Place(f"{fake.url}/acme/digits")))
    assert [hook.id for hook in found] == [str(number) for number in range(250)]
    assert len(fake.requests) == 3


def test_a_failed_delivery_is_found_in_the_log_and_delivered_again(fake: FakeGitHub) -> None:
    """The log has all attempts, the newest first; another attempt has the same guid and the same body."""
    place = Place(f"{fake.url}/acme/digits")
    made = do(fake, github.create(place, WANTED))
    [hook] = fake.hooks["acme/digits"]
    first = fake.log(hook, "push", b"{}", 503, "Service Unavailable")
    for _ in range(150):
        fake.log(hook, "issues", b"{}", 200)
    page = do(fake, github.delivery_log(place, made.id, None))
    assert len(page.attempts) == 100
    assert all(attempt.has_succeeded for attempt in page.attempts)
    page = do(fake, github.delivery_log(place, made.id, page.next))
    *_, failed, ping = page.attempts
    assert (page.next, ping.event, ping.status) == (None, "ping", "502 failed to connect to host")
    assert (failed.id, failed.guid, failed.event, failed.at) == (str(first.id), first.guid, "push", first.at)
    assert (failed.has_succeeded, failed.status) == (False, "503 Service Unavailable")
    do(fake, github.redeliver(place, made.id, failed.id))
    again = do(fake, github.delivery_log(place, made.id, None)).attempts[0]
    assert (again.guid, again.event) == (first.guid, "push")
    with pytest.raises(ApiRefused, match="no such repository"):
        do(fake, github.redeliver(place, made.id, "1"))


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        (
            "wrong",
            "digits",
            "refuses the credential of identity bot: it is wrong, expired or revoked (Bad cred",
        ),
        (
            "reader",
            "digits",
            "identity bot needs the right “Webhooks: read and write” at 127.0.0.1 (Resource",
        ),
        (
            GOOD,
            "other",
            "127.0.0.1 has no such repository, or identity bot may not see it; check the URL and",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeGitHub, token: str, repository: str, reason: str) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused) as refused:
        do(fake, github.webhooks(Place(f"{fake.url}/acme/{repository}")), token)
    assert reason in str(refused.value)
    assert GOOD not in str(refused.value)


def test_the_reason_of_an_invalid_webhook_is_githubs_own(fake: FakeGitHub) -> None:
    """It is in the first of the errors."""
    do(fake, github.create(Place(f"{fake.url}/acme/digits"), WANTED))
    with pytest.raises(ApiRefused, match=r"422 \(Hook already exists on this repository\)"):
        do(fake, github.create(Place(f"{fake.url}/acme/digits"), WANTED))


@pytest.mark.parametrize(
    ("clone_url", "base_url"),
    [
        ("https://github.com/acme/digits.git", "https://api.github.com"),
        ("git@github.com:acme/digits.git", "https://api.github.com"),
        ("ssh://git@ssh.github.com:443/acme/digits.git", "https://api.github.com"),
        ("https://git.acme.example:8443/acme/digits", "https://git.acme.example:8443/api/v3"),
        ("ssh://git@git.acme.example:7999/acme/digits", "https://git.acme.example/api/v3"),
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str, base_url: str) -> None:
    """On github.com and on Enterprise Server."""
    assert github.base_url(Place(clone_url)) == base_url
