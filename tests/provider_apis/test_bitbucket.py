"""Bitbucket Cloud's webhooks, on a fake that behaves as Bitbucket does."""

from collections.abc import Iterator

import pytest

from gateway.provider_apis import bitbucket
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.bitbucket import FakeBitbucket
from testing.provider_apis.fake import serving
from tests.provider_apis.running import Token, run

GOOD = "ATCTT3xFfGN0good"
API_TOKEN = "ATATT3xFfGF0good"
WANTED = Webhook(url="https://push.example/hooks/c1", secret="canary-5f1d", events=bitbucket.EVENTS)


@pytest.fixture
def fake() -> Iterator[FakeBitbucket]:
    """Serve Bitbucket with one repository."""
    repositories = {"acme/digits"}
    fake = FakeBitbucket(
        tokens={GOOD: repositories, API_TOKEN: repositories, "reader": repositories}, readers={"reader"}
    )
    with serving(fake):
        yield fake


def do(fake: FakeBitbucket, operation: Operation[T], token: str = GOOD, *, user: str | None = None) -> T:
    """Run an operation with a token."""
    base_url = bitbucket.base_url(Place(f"{fake.url}/acme/digits.git"))
    return run(operation, base_url, Token(bitbucket, [token], user=user))


def test_a_webhook_is_created_found_changed_and_deleted(fake: FakeBitbucket) -> None:
    """Its id is a UUID in braces, and its secret is never shown again."""
    place = Place(f"{fake.url}/Acme/digits.git")
    made = do(fake, bitbucket.create(place, WANTED))
    assert (made.url, made.events, made.is_active, made.has_secret) == (WANTED.url, WANTED.events, True, True)
    assert next(bitbucket.delete(place, made.id)).path.endswith(f"/hooks/%7B{made.id[1:-1]}%7D")
    assert fake.hooks["acme/digits"][0]["secret"] == WANTED.secret
    fake.hooks["acme/digits"][0].update(active=False, events=["repo:push"], secret=None)
    [found] = do(fake, bitbucket.webhooks(place))
    assert compare([found], WANTED).differences == ("switched off", "no secret", "missing events")
    changed = do(fake, bitbucket.change(place, found.id, WANTED))
    [found] = do(fake, bitbucket.webhooks(place))
    assert changed == found
    assert compare([found], WANTED).differences == ()
    do(fake, bitbucket.delete(place, found.id))
    do(fake, bitbucket.delete(place, found.id))
    assert do(fake, bitbucket.webhooks(place)) == []


def test_bitbucket_cloud_has_no_test_delivery(fake: FakeBitbucket) -> None:
    """So nothing is requested."""
    assert not do(fake, bitbucket.test(Place(f"{fake.url}/acme/digits"), "{1}"))
    assert fake.requests == []


def test_webhooks_are_read_to_the_last_page(fake: FakeBitbucket) -> None:
    """Each page names the next."""
    ids = [f"{{{number}}}" for number in range(250)]
    fake.hooks["acme/digits"] = [{"uuid": id_, "url": "https://a.example"} for id_ in ids]
    found = do(fake, bitbucket.webhooks(Place(f"{fake.url}/acme/digits")))
    assert [hook.id for hook in found] == ids
    assert len(fake.requests) == 3


def test_an_api_token_is_sent_with_the_address_of_its_account(fake: FakeBitbucket) -> None:
    """An access token has no user."""
    operation = bitbucket.webhooks(Place(f"{fake.url}/acme/digits"))
    assert do(fake, operation, API_TOKEN, user="bot@acme.example") == []
    with pytest.raises(ApiRefused, match=r"API token of Atlassian \(ATATT…\) needs the e-mail address"):
        do(fake, bitbucket.webhooks(Place(f"{fake.url}/acme/digits")), API_TOKEN)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        ("wrong", "digits", r"it is wrong, expired or revoked \(Token is invalid, expired, or not supported"),
        ("reader", "digits", r"needs the right “Webhooks: .* privilege scopes\. Required: webhook\)"),
        (
            GOOD,
            "other",
            r"no such repository, or identity .* \(Repository acme/other not",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(
    fake: FakeBitbucket, token: str, repository: str, reason: str
) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused, match=reason) as refused:
        do(fake, bitbucket.webhooks(Place(f"{fake.url}/acme/{repository}")), token)
    assert GOOD not in str(refused.value)


def test_the_reason_of_an_invalid_webhook_names_the_field(fake: FakeBitbucket) -> None:
    """Bitbucket's message is only “Bad request”."""
    invalid = Webhook(url="", secret="s", events=bitbucket.EVENTS)
    with pytest.raises(ApiRefused, match=r"answered 400 \(url: This field may not be null\.\)"):
        do(fake, bitbucket.create(Place(f"{fake.url}/acme/digits"), invalid))


@pytest.mark.parametrize(
    "clone_url",
    [
        "https://ada@bitbucket.org/acme/digits.git",
        "git@bitbucket.org:acme/digits.git",
        "ssh://git@altssh.bitbucket.org:443/acme/digits.git",
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str) -> None:
    """It has a host of its own."""
    assert bitbucket.base_url(Place(clone_url)) == "https://api.bitbucket.org/2.0"
    assert next(bitbucket.webhooks(Place(clone_url))).path == "/repositories/acme/digits/hooks"
