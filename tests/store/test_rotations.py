"""Rotations of tokens: one process at a time, and never over a token that was given meanwhile."""

from dataclasses import replace
from datetime import timedelta

from gateway.crypto.keyring import Keyring
from gateway.store import identities, rotations
from gateway.store.database import Database
from gateway.store.identities import Unsealed
from testing.records import NOW
from tests.store.test_identities import BOT, add


def test_one_process_rotates_a_token(database: Database, keyring: Keyring) -> None:
    """Until it has finished, given up or died; whoever has read an older token does not begin."""
    token = Unsealed(identity=add(database, keyring, rotates=True), secret="token of i1")
    with database.writing() as conn:
        first = rotations.start(conn, keyring, token, now=NOW)
        assert first is not None
        assert rotations.started_at(conn, "i1") == NOW
        assert rotations.start(conn, keyring, token, now=NOW + timedelta(minutes=9)) is None
        second = rotations.start(conn, keyring, token, now=NOW + timedelta(minutes=10))
        assert second is not None
        rotations.abandon(conn, first)
        assert not rotations.finish(conn, keyring, first, "late", expires_at=None, now=NOW)
        assert rotations.start(conn, keyring, token, now=NOW + timedelta(minutes=11)) is None
        rotations.abandon(conn, second)
        third = rotations.start(conn, keyring, token, now=NOW + timedelta(minutes=11))
        assert third is not None
        later = NOW + timedelta(days=1)
        assert rotations.finish(conn, keyring, third, "new", expires_at=later, now=later)
        found = identities.unseal(conn, keyring, "i1")
        assert found.secret == "new"
        assert found.identity == replace(token.identity, expires_at=later, updated_at=later)
        assert rotations.started_at(conn, "i1") is None
        assert rotations.start(conn, keyring, token, now=later) is None


def test_a_token_that_was_given_meanwhile_stays(database: Database, keyring: Keyring) -> None:
    """Other changes of the identity do not disturb the rotation."""
    token = Unsealed(identity=add(database, keyring, rotates=True), secret="token of i1")
    other = add(database, keyring, id="i2", name="other")
    with database.writing() as conn:
        assert rotations.rotating(conn) == ["i1"]
        started = rotations.start(conn, keyring, token, now=NOW)
        assert started is not None
        identities.change(conn, keyring, replace(token.identity, name="robot"))
        assert rotations.started_at(conn, "i1") == NOW
        identities.change(conn, keyring, replace(token.identity, updated_at=NOW), secret="given")
        assert not rotations.finish(conn, keyring, started, "rotated", expires_at=None, now=NOW)
        assert identities.unseal(conn, keyring, "i1").secret == "given"
        rotations.expires(conn, Unsealed(identity=token.identity, secret="given"), NOW)
        assert identities.get(conn, "i1").expires_at == NOW
        changed = replace(BOT, updated_at=NOW + timedelta(days=1))
        rotations.expires(conn, Unsealed(identity=changed, secret="given"), None)
        assert identities.get(conn, "i1").expires_at == NOW
        assert identities.get(conn, "i2") == other
        never = Unsealed(identity=other, secret="token of i2")
        assert rotations.start(conn, keyring, never, now=NOW) is None
