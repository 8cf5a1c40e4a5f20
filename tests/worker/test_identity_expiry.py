"""Tokens of identities are rotated before they end, and those that cannot be are announced."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.crypto.keyring import Keyring
from gateway.errors import StoreUnavailable
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.sign_in import SignIn
from gateway.store import identities, rotations
from gateway.store.identities import Identity, Unsealed
from gateway.worker import token_rotation
from gateway.worker.identity_expiry import IdentityExpiry
from gateway.worker.token_rotation import TokenRotation
from testing.provider_apis.fake import refusal, serving
from testing.provider_apis.gitlab_tokens import AccessToken, FakeGitLabTokens
from tests.worker.stages import FaultyDatabase

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
KEYRING = Keyring("k" * 32)
OLD = "glpat-canary-5f1d"


@pytest.fixture
def fake() -> Iterator[FakeGitLabTokens]:
    """Serve GitLab with a token of 30 days, which has 10 left."""
    fake = FakeGitLabTokens(tokens={OLD: {"acme/digits"}})
    issue(fake)
    with serving(fake):
        yield fake


def issue(fake: FakeGitLabTokens, *scopes: str, days_left: int = 10, lifetime: int = 30) -> None:
    """Give the token these scopes and this end."""
    ends = (TODAY + timedelta(days=days_left)).date()
    made = ends - timedelta(days=lifetime)
    fake.access_tokens[OLD] = AccessToken(ends, created_at=made, scopes=scopes or ("self_rotate",))


def add(database: FaultyDatabase, api_url: str, secret: str = OLD, **changes: Any) -> Unsealed:
    """Store an identity."""
    values: dict[str, Any] = {
        "id": "i1",
        "name": "bot",
        "provider": "gitlab",
        "kind": "token",
        "user": None,
        "settings": {},
        "api_url": f"{api_url}/api/v4",
        "expires_at": None,
        "rotates": True,
        "created_at": TODAY,
        "updated_at": TODAY,
        **changes,
    }
    identity = Identity(**values)
    with database.writing() as conn:
        identities.add(conn, KEYRING, identity, secret)
    return Unsealed(identity=identity, secret=secret)


def stored(database: FaultyDatabase) -> Unsealed:
    """Return the identity as it is now."""
    with database.reading() as conn:
        return identities.unseal(conn, KEYRING, "i1")


def run(database: FaultyDatabase) -> list[Any]:
    """Run the daily task; return what it logs."""
    apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True))
    rotation = TokenRotation(database=database, keyring=KEYRING, apis=apis, sign_in=SignIn({}))
    with capture_logs() as logged:
        asyncio.run(IdentityExpiry(database=database, rotation=rotation).run(datetime.now(UTC)))
    return logged


def test_a_token_is_rotated_before_it_ends(database: FaultyDatabase, fake: FakeGitLabTokens) -> None:
    """Once: the new one lives as long as the old one did, and nothing is announced."""
    add(database, fake.url)
    logged = run(database)
    assert [line["event"] for line in logged] == ["a token is being rotated", "a token was rotated"]
    found = stored(database)
    assert list(fake.tokens) == [found.secret]
    assert found.identity.expires_at == TODAY + timedelta(days=30)
    assert run(database) == []
    assert stored(database) == found
    assert not any(secret in str(logged) for secret in (OLD, found.secret))


@pytest.mark.parametrize(
    ("scopes", "days_left", "lifetime", "reason"),
    [
        ((), 16, 33, None),
        ((), 5, 7, None),
        (("read_repository",), 14, 365, "GitLab rotates only a token with the scope self_rotate or api"),
        ((), 14, 366, "answered 400 (400 Bad request - Expiration date must be before"),
    ],
    ids=["not due", "short, not due", "missing scope", "shorter limit"],
)
def test_when_a_token_stays(
    database: FaultyDatabase,
    fake: FakeGitLabTokens,
    scopes: tuple[str, ...],
    days_left: int,
    lifetime: int,
    reason: str | None,
) -> None:
    """Its end is read from GitLab; if it cannot be rotated, the warning says why, each day."""
    issue(fake, *scopes, days_left=days_left, lifetime=lifetime)
    add(database, fake.url)
    for _ in range(2):
        warnings = [line for line in run(database) if line["log_level"] == "warning"]
        if reason is None:
            assert warnings == []
        else:
            [warning] = warnings
            assert warning["event"] == "an identity expires soon: renew its token"
            assert reason in warning["reason"]
    assert stored(database).secret == OLD
    assert stored(database).identity.expires_at == TODAY + timedelta(days=days_left)


def test_a_new_token_waits_for_the_database(
    database: FaultyDatabase, fake: FakeGitLabTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitLab has revoked the old one: the process holds the new one until it is stored."""
    monkeypatch.setattr(token_rotation, "_RETRY_SECONDS", 0.0)
    add(database, fake.url)
    database.failing[rotations.finish] = StoreUnavailable("the disk is full")
    logged = run(database)
    assert [line["event"] for line in logged[1:]] == [
        "a rotated token cannot be stored yet: do not kill this process",
        "a token was rotated",
    ]
    assert list(fake.tokens) == [stored(database).secret]


def test_a_process_that_was_killed_while_it_rotated(database: FaultyDatabase, fake: FakeGitLabTokens) -> None:
    """The token is lost. The warning says so, and the revoked one is not rotated again."""
    token = add(database, fake.url)
    with database.writing() as conn:
        assert rotations.start(conn, KEYRING, token, now=TODAY) is not None
    fake.tokens = {"glpat-lost": fake.tokens.pop(OLD)}
    [warning] = run(database)
    assert warning["event"] == "a token cannot be checked"
    assert "Pushgate was stopped while it rotated this token at 20" in warning["reason"]
    assert list(fake.tokens) == ["glpat-lost"]
    with database.writing() as conn:
        identities.change(conn, KEYRING, token.identity, secret="glpat-lost")
    fake.access_tokens["glpat-lost"] = fake.access_tokens[OLD]
    assert [line["event"] for line in run(database)] == ["a token is being rotated", "a token was rotated"]


def test_a_rotation_whose_answer_was_lost_is_repeated(
    database: FaultyDatabase, fake: FakeGitLabTokens
) -> None:
    """If GitLab did not rotate the token, the old one still works; but not while the first may go on."""
    token = add(database, fake.url)
    with database.writing() as conn:
        assert rotations.start(conn, KEYRING, token, now=datetime.now(UTC)) is not None
    assert run(database) == []
    with database.writing() as conn:
        assert rotations.start(conn, KEYRING, token, now=datetime.now(UTC) + timedelta(hours=1))
    fake.instead.append(refusal(502, "Bad Gateway"))
    [warning] = run(database)
    assert warning["reason"] == "127.0.0.1 answered 502; try again later"


def test_an_end_is_logged_before_it_comes(database: FaultyDatabase) -> None:
    """For two weeks, and after it; an identity without an end is fine."""
    add(database, "https://gitlab.example", rotates=False)
    now = datetime.now(UTC)
    for days in (15, 13, -1):
        ends = now + timedelta(days=days)
        changes: Any = {"id": f"i{days}", "name": f"of {days}", "expires_at": ends, "rotates": False}
        add(database, "https://gitlab.example", **changes)
    assert [(line["identity"], line["event"].partition(":")[0]) for line in run(database)] == [
        ("of -1", "an identity has expired"),
        ("of 13", "an identity expires soon"),
    ]
