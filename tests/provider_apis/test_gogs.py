"""Gogs' webhooks, on a fake that behaves as Gogs does."""

from collections.abc import Iterator

import pytest

from gateway.provider_apis import gogs
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.fake import serving
from testing.provider_apis.gogs import FakeGogs
from tests.provider_apis.running import Token, run

GOOD = "0f1e2d3c"
WANTED = Webhook(url="https://gate.example/hooks/c1", secret="canary-5f1d", events=gogs.EVENTS)


@pytest.fixture
def fake() -> Iterator[FakeGogs]:
    """Serve Gogs with one repository."""
    fake = FakeGogs(tokens={GOOD: {"acme/digits"}, "reader": {"acme/digits"}}, readers={"reader"})
    with serving(fake):
        yield fake


def do(fake: FakeGogs, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation."""
    return run(operation, gogs.base_url(Place(f"{fake.url}/acme/digits.git")), Token(gogs, [token]))


def test_a_webhook_is_created_found_replaced_and_deleted(fake: FakeGogs) -> None:
    """A change replaces it, with a new secret. There is no test delivery."""
    place = Place(f"{fake.url}/acme/digits.git")
    made = do(fake, gogs.create(place, WANTED))
    fake.hooks["acme/digits"][0].update(active=False, events=["push"])
    [found] = do(fake, gogs.webhooks(place))
    assert (found.id, found.has_secret) == (made.id, None)
    assert compare([found], WANTED).differences == ("switched off", "missing events")
    changed = do(fake, gogs.change(place, found.id, WANTED))
    assert [one.method for one in fake.requests[-2:]] == ["POST", "DELETE"]
    [found] = do(fake, gogs.webhooks(place))
    assert (found, compare([found], WANTED).differences) == (changed, ())
    assert fake.hooks["acme/digits"][0]["config"]["secret"] == WANTED.secret
    assert not do(fake, gogs.test(place, found.id))
    do(fake, gogs.delete(place, found.id))
    do(fake, gogs.delete(place, found.id))
    assert do(fake, gogs.webhooks(place)) == []


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        ("wrong", "digits", "the credential of identity bot: it is wrong, expired or revoked"),
        ("reader", "digits", "identity bot needs the right “Admin Access to the repository” at 127.0.0.1"),
        (GOOD, "other", "check the URL and the right “Admin Access to the repository”"),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeGogs, token: str, repository: str, reason: str) -> None:
    """Although Gogs does not explain it."""
    with pytest.raises(ApiRefused) as refused:
        do(fake, gogs.webhooks(Place(f"{fake.url}/acme/{repository}")), token)
    assert str(refused.value).endswith(reason)
