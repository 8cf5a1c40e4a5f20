"""Identities: shared by connections, used at one server, sealed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid, NotFound, SettingError
from gateway.store import connections, identities, identity_checks
from gateway.store.database import Database
from gateway.store.identities import Identity
from testing import records
from testing.records import NOW

BOT = Identity(
    id="i1",
    name="bot",
    provider="github",
    kind="token",
    user=None,
    settings={},
    api_url="https://github.example/api/v3",
    expires_at=None,
    created_at=NOW,
    updated_at=NOW,
)


def add(database: Database, keyring: Keyring, **changes: Any) -> Identity:
    """Store an identity, whose token has its id."""
    identity = replace(BOT, **changes)
    with database.writing() as conn:
        identities.add(conn, keyring, identity, f"token of {identity.id}")
    return identity


def test_an_identity_is_kept_changed_and_deleted(database: Database, keyring: Keyring) -> None:
    """By its id or its name; its token stays unless another is given, and others are left alone."""
    bot = add(database, keyring)
    other = add(database, keyring, id="i2", name="another", expires_at=NOW, user="ada")
    with pytest.raises(Conflict, match="the name bot is taken"):
        add(database, keyring, id="i3")
    with database.writing() as conn:
        assert [identities.get(conn, text) for text in ("i1", "bot", "another")] == [bot, bot, other]
        assert identities.page(conn, after=None, limit=1) == [other]
        assert identities.page(conn, after="another", limit=9) == [bot]
        assert identities.first_expiry(conn) == NOW
        assert identities.expiring(conn, before=NOW) == []
        assert identities.expiring(conn, before=NOW + timedelta(days=1)) == [other]
        renamed = replace(bot, name="robot", expires_at=NOW)
        identities.change(conn, keyring, renamed)
        assert identities.get(conn, "robot") == renamed
        assert identities.unseal(conn, keyring, "i1").secret == "token of i1"
        identities.change(conn, keyring, renamed, secret="new")
        assert identities.unseal(conn, keyring, "i1").secret == "new"
        assert identities.unseal(conn, keyring, "i2").secret == "token of i2"
        identities.delete(conn, "i1")
        assert identities.page(conn, after=None, limit=9) == [other]
        for gone in (identities.get, identities.delete, lambda *a: identities.unseal(a[0], keyring, a[1])):
            with pytest.raises(NotFound, match="i1"):
                gone(conn, "i1")
    with pytest.raises(Conflict, match="taken"):
        add(database, keyring, id="i4", name="another")


def test_an_identity_that_is_used_stays(database: Database, keyring: Keyring) -> None:
    """The refusal names the connections; deleted ones do not count."""
    add(database, keyring)
    for number in range(7):
        records.connection(database, f"c{number}", name=f"c{number}", identity="i1")
    records.connection(database, "other", identity="i2")
    with database.writing() as conn:
        connections.remove(conn, "c2", now=NOW)
    with (
        pytest.raises(Conflict, match="bot is used by c0, c1, c3, c4, c5 and 1 more"),
        database.writing() as conn,
    ):
        identities.delete(conn, "i1")
    with database.writing() as conn:
        for number in (0, 1, 3, 4, 5, 6):
            connections.remove(conn, f"c{number}", now=NOW)
        identities.delete(conn, "i1")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"url": "git@github.example:acme/digits.git"}, None),
        ({"url": "https://evil.example/acme/digits.git"}, "is for github.example, but .* is at evil.example"),
        ({"url": "https://api.github.example/acme/digits.git"}, "but .* is at api.github.example"),
        ({"provider": "gitea"}, "bot is for github, but the connection acme/digits for gitea"),
    ],
)
def test_a_token_is_for_one_provider_and_one_server(
    embedded: Database, keyring: Keyring, changes: dict[str, Any], expected: str | None
) -> None:
    """Neither a connection nor an identity can be moved so that it would be sent elsewhere."""
    add(embedded, keyring)
    connection = records.connection(embedded, identity="i1", **changes)
    with embedded.writing() as conn:
        if expected is None:
            identities.use(conn, connection)
            identities.change(conn, keyring, BOT)
            return
        with pytest.raises(Invalid, match=expected):
            identities.use(conn, connection)
        with pytest.raises(Invalid, match=expected):
            identities.change(conn, keyring, BOT)


@pytest.mark.parametrize(
    ("provider", "api_url", "host"),
    [
        ("github", None, "github.com"),
        ("bitbucket", "https://api.bitbucket.org/2.0", "bitbucket.org"),
        ("azure-devops", "https://acme.visualstudio.com", "dev.azure.com"),
    ],
)
def test_an_api_beside_its_repositories_fits_them(provider: str, api_url: str | None, host: str) -> None:
    """Public services have several names."""
    identity = replace(BOT, provider=provider, api_url=api_url)
    url = f"https://{host}/acme/digits"
    identities.check_fits(identity, provider=provider, url=url, what="the connection digits")


def test_tokens_are_rewrapped_each_for_its_identity(database: Database, keyring: Keyring) -> None:
    """After that the previous secret key is no longer needed."""
    for number in (2, 1):
        add(database, keyring, id=f"i{number}", name=f"{number}")
    new = Keyring("n" * 32)
    with database.writing() as conn:
        assert identities.rewrap(conn, Keyring("n" * 32, "k" * 32)) == 2
        assert [identities.unseal(conn, new, each).secret for each in ("i1", "i2")] == [
            "token of i1",
            "token of i2",
        ]
        with pytest.raises(SettingError):
            identities.unseal(conn, keyring, "i1")


def test_a_check_of_a_token_that_was_replaced_meanwhile_is_dropped(
    database: Database, keyring: Keyring
) -> None:
    """The new token is checked at once; an end that the provider does not show stays as it was entered."""
    bot = add(database, keyring, expires_at=NOW + timedelta(days=9))
    seen: dict[str, Any] = {"rights": ["repo"], "expires_at": None, "reason": None, "now": NOW}
    with database.writing() as conn:
        old = identity_checks.claim(conn, now=NOW, until=NOW + timedelta(minutes=5))
        assert old is not None
        assert not identity_checks.is_due(conn, now=NOW)
        identities.change(conn, keyring, replace(bot, updated_at=NOW + timedelta(seconds=1)), secret="new")
        identity_checks.record(conn, old, **{**seen, "reason": "it was revoked"})
        identity_checks.postpone(conn, old, until=NOW + timedelta(hours=6))
        assert identities.get(conn, "i1").reason is None
        new = identity_checks.claim(conn, now=NOW + timedelta(seconds=1), until=NOW + timedelta(minutes=6))
        assert new is not None
        identity_checks.record(conn, new, **seen)
        identity_checks.postpone(conn, new, until=NOW + timedelta(hours=6))
        assert identity_checks.claim(conn, now=NOW + timedelta(hours=5), until=NOW) is None
        found = identities.get(conn, "i1")
    assert (found.rights, found.checked_at, found.expires_at) == (["repo"], NOW, bot.expires_at)
