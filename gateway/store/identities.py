"""Identities: what Pushgate is at a provider, shared by connections. Their secrets are sealed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Select, func, insert, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid, NotFound
from gateway.store import envelopes
from gateway.store.bulk_sql import among
from gateway.store.connections import Connection, lock_names
from gateway.store.rows import from_row
from gateway.store.tables import connections, identities
from providers import PROVIDERS
from providers.clone_urls import host_of

_MAX_NAMED = 5

Kind = Literal["token", "github-app", "entra"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A credential at a provider, without its secret.

    Its kind decides what the secret and the `settings` are: see gateway/api/identity_kinds.py. `user` is the
    user of a token, where the provider wants one. Without `api_url` the identity is for the provider's own
    service. If it `rotates`, Pushgate replaces its token before that ends: see gateway/store/rotations.py.
    `rights` are those of a token in the provider's words, None if they are unknown. `reason` is why the
    provider refused the identity, at `checked_at`.
    """

    id: str
    name: str
    provider: str
    kind: Kind
    user: str | None
    settings: Mapping[str, str]
    api_url: str | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    rotates: bool = False
    rights: Sequence[str] | None = None
    reason: str | None = None
    checked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """An identity with its secret."""

    identity: Identity
    secret: str = field(repr=False)


def add(conn: sqlalchemy.Connection, keyring: Keyring, identity: Identity, secret: str) -> None:
    """Store a new identity. Raise `Conflict` if its name is taken."""
    _check_name(conn, identity)
    values = asdict(identity) | {
        "sealed": sealed(keyring, identity.id, secret),
        "due_at": identity.created_at,
    }
    conn.execute(insert(identities).values(**values))


def add_named(conn: sqlalchemy.Connection, keyring: Keyring, identity: Identity, secret: str) -> Identity:
    """Store a new identity, and return it; if its name is taken, a part of its id makes another."""
    try:
        add(conn, keyring, identity, secret)
    except Conflict:
        identity = replace(identity, name=f"{identity.name}-{identity.id[:6]}")
        add(conn, keyring, identity, secret)
    return identity


def get(
    conn: sqlalchemy.Connection, id_or_name: str, *, for_use: bool = False, locked: bool = False
) -> Identity:
    """Return the identity with this id, or else with this name. Raise `NotFound`.

    With `for_use`, nobody can change or delete it until the transaction ends; if it is `locked`, nobody else.
    """
    query = _select().where(or_(identities.c.id == id_or_name, identities.c.name == id_or_name))
    query = query.order_by(identities.c.id != id_or_name).limit(1)
    if for_use or locked:
        query = query.with_for_update(read=not locked)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"no identity has the id or the name {id_or_name}")
    return from_row(Identity, row)


def named(conn: sqlalchemy.Connection, id_or_name: str | None) -> str | None:
    """Return the id of an identity that a request names; None if it names none. Raise `Invalid`."""
    try:
        return None if id_or_name is None else get(conn, id_or_name).id
    except NotFound as error:
        raise Invalid(f"identity: {error}") from None


def page(conn: sqlalchemy.Connection, *, after: str | None, limit: int) -> list[Identity]:
    """Return up to `limit` identities by name, those behind the name `after`."""
    query = _select().order_by(identities.c.name).limit(limit)
    if after is not None:
        query = query.where(identities.c.name > after)
    return [from_row(Identity, row) for row in conn.execute(query)]


def of(conn: sqlalchemy.Connection, ids: Collection[str]) -> dict[str, Identity]:
    """Return identities by their ids."""
    rows = conn.execute(_select().where(among(conn, identities.c.id, ids)))
    return {row.id: from_row(Identity, row) for row in rows}


def usage(conn: sqlalchemy.Connection, ids: Collection[str]) -> dict[str, int]:
    """Return how many connections and sources use each identity that is used."""
    named = connections.c.identity.in_(ids), connections.c.deleted_at.is_(None)
    query = select(connections.c.identity, func.count()).where(*named).group_by(connections.c.identity)
    return {row[0]: row[1] for row in conn.execute(query)}


def change(
    conn: sqlalchemy.Connection, keyring: Keyring, identity: Identity, *, secret: str | None = None
) -> None:
    """Store the changes of an identity. Without `secret`, the stored secret stays.

    Raise `Conflict` if its new name is taken, and `Invalid` if a connection that uses it is on another host.
    """
    if get(conn, identity.id).name != identity.name:
        _check_name(conn, identity)
    values: dict[str, Any] = asdict(identity) | {"due_at": identity.updated_at}
    if secret is not None:
        values |= {"sealed": sealed(keyring, identity.id, secret), "rotation_started_at": None}
        values |= {"rights": None, "reason": None, "checked_at": None}
    conn.execute(update(identities).where(identities.c.id == identity.id).values(**values))
    for row in conn.execute(_users(identity.id)):
        check_fits(identity, provider=row.provider, url=row.url, what=_named(row.kind, row.name))


def delete(conn: sqlalchemy.Connection, identity_id: str) -> None:
    """Delete an identity and its secret. Raise `Conflict`, naming them, if connections use it."""
    locked = conn.execute(_select().where(identities.c.id == identity_id).with_for_update()).one_or_none()
    if locked is None:
        raise NotFound(f"no identity has the id {identity_id}")
    used_by = [row.name for row in conn.execute(_users(identity_id))]
    if used_by:
        more = len(used_by) - _MAX_NAMED
        named = ", ".join(used_by[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise Conflict(
            f"the identity {locked.name} is used by {named}: first give them another identity, or none"
        )
    # Deleted connections keep their identity until their webhooks are removed.
    conn.execute(update(connections).where(connections.c.identity == identity_id).values(identity=None))
    conn.execute(sqlalchemy.delete(identities).where(identities.c.id == identity_id))


def unseal(conn: sqlalchemy.Connection, keyring: Keyring, identity_id: str) -> Unsealed:
    """Return an identity with its secret. Raise `NotFound`, or `SettingError` for another secret key."""
    row = conn.execute(select(identities).where(identities.c.id == identity_id)).one_or_none()
    if row is None:
        raise NotFound(f"no identity has the id {identity_id}")
    secret = keyring.open(row.sealed, context=_context(identity_id)).decode()
    return Unsealed(identity=from_row(Identity, row), secret=secret)


def sealed(keyring: Keyring, identity_id: str, secret: str) -> bytes:
    """Return the secret of an identity as it is stored."""
    return keyring.seal(secret.encode(), context=_context(identity_id))


def first_expiry(conn: sqlalchemy.Connection) -> datetime | None:
    """Return when the first identity expires, or has expired; None if none ever does."""
    found: datetime | None = conn.execute(select(func.min(identities.c.expires_at))).scalar()
    return found


def expiring(conn: sqlalchemy.Connection, *, before: datetime) -> list[Identity]:
    """Return the identities that expire before a moment, the first to expire first."""
    query = _select().where(identities.c.expires_at < before).order_by(identities.c.expires_at)
    return [from_row(Identity, row) for row in conn.execute(query)]


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all secrets under the current wrapping key; return the number of secrets."""
    return envelopes.rewrap(conn, keyring, identities.c.sealed, key=identities.c.id, context=_context)


def use(conn: sqlalchemy.Connection, connection: Connection) -> None:
    """Lock the identity that a connection names. Raise `Invalid` if it does not fit the connection."""
    if connection.identity is not None:
        identity = get(conn, connection.identity, for_use=True)
        what = _named(connection.kind, connection.name)
        check_fits(identity, provider=connection.provider, url=connection.url, what=what)


def host(identity: Identity) -> str:
    """Return the host to which the secret may be sent; empty if the identity has none."""
    if identity.api_url is not None:
        return host_of(identity.api_url)
    return PROVIDERS[identity.provider].PUBLIC_HOST or ""


def check_fits(identity: Identity, *, provider: str, url: str, what: str) -> None:
    """Raise `Invalid` if the identity of a connection or a source is for another provider or host.

    `what` is what an error calls it. Whoever may set its URL must not learn the secret.
    """
    if identity.provider != provider:
        raise Invalid(f"identity: {identity.name} is for {identity.provider}, but {what} for {provider}")
    at = host(identity)
    # Of GitHub and Bitbucket Cloud, the API has a host of its own below the repositories' host.
    if host_of(url) not in {at, at.removeprefix("api.")}:
        raise Invalid(
            f"identity: {identity.name} is for {at or 'no server yet'}, but {what} is at"
            f" {host_of(url)}; use an identity whose api_url is at that host"
        )


def _select() -> Select[Any]:
    return select(*(column for column in identities.c if column.name != "sealed"))


def _users(identity_id: str) -> Select[Any]:
    return (
        select(connections.c.name, connections.c.kind, connections.c.provider, connections.c.url)
        .where(connections.c.identity == identity_id, connections.c.deleted_at.is_(None))
        .order_by(connections.c.name)
    )


def _check_name(conn: sqlalchemy.Connection, identity: Identity) -> None:
    lock_names(conn)
    taken = select(identities.c.id).where(identities.c.name == identity.name, identities.c.id != identity.id)
    if conn.execute(taken).first() is not None:
        raise Conflict(f"the name {identity.name} is taken by another identity")


def _named(kind: str, name: str) -> str:
    return f"the {'source' if kind == 'source' else 'connection'} {name}"


def _context(identity_id: str) -> str:
    return f"identity {identity_id}"
