"""Connections and their webhook secrets and credentials."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import chain, count, islice
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Row, Select, and_, bindparam, delete, func, insert, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid, NotFound, SettingError
from gateway.store import envelopes, outcomes, ready_queue, refusals
from gateway.store.bulk_sql import among
from gateway.store.database import Lock, lock
from gateway.store.other_repositories import OtherRepository
from gateway.store.rows import from_row
from gateway.store.tables import (
    connections,
    leases,
    reconciliations,
    ref_updates,
    secrets,
    source_repositories,
)
from providers.clone_urls import host_of, repository_key

LIVE_SECRETS = 2
"""During a rotation the provider may still use the secret before the newest one."""

_NAMES_AT_ONCE = 20
_REMOVED = "its connection was deleted"

# Built once: building one takes longer than running it.
_RECEIVER = select(connections).where(connections.c.id == bindparam("of"), connections.c.deleted_at.is_(None))
_GET = _RECEIVER.where(connections.c.kind == "repository")
_REPOSITORIES = connections.c.kind == "repository", connections.c.deleted_at.is_(None)
_CREDENTIALS = select(connections.c.credentials).where(connections.c.id == bindparam("of"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One repository connected to Pushgate.

    `auth` holds the parts of the authentication scheme that are not secret. Webhooks are accepted only from
    `networks`, if any are set; only branches that match a glob in `follows` count, if any are set.
    `deploy_key` is the public key, `identity` the id of an identity. `other_repository` is the repository
    that, by a delivery, has taken its place. `source` is the id of the source whose webhook is used. A
    connection of the kind `source` is the part of a source that `gateway.store.sources` keeps here. The
    provider shows verdicts on commits, unless `statuses` is False; with `has_status_webhook`, a webhook
    receives them in its place.
    """

    id: str
    name: str
    provider: str
    url: str
    project: str
    auth: Mapping[str, str]
    triggers: Sequence[Mapping[str, Any]]
    yaml_path: str
    repository_id: str | None
    created_at: datetime
    updated_at: datetime
    networks: Sequence[str] = ()
    follows: Sequence[str] = ()
    package_format: str = "tar.gz"
    deploy_key: str | None = None
    identity: str | None = None
    statuses: bool = True
    has_status_webhook: bool = False
    has_credentials: bool = False
    other_repository: OtherRepository | None = None
    kind: Literal["repository", "source"] = "repository"
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A live webhook secret."""

    id: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDates:
    """The public facts of a secret. In a rotation, `last_used_at` shows whether the old one is in use."""

    created_at: datetime
    last_used_at: datetime | None


def add(conn: sqlalchemy.Connection, connection: Connection) -> None:
    """Store a new connection, with the rows that workers and the reconciler claim."""
    conn.execute(insert(connections).values(**_columns(connection)))
    conn.execute(insert(leases).values(connection=connection.id, attempts=0, due_at=connection.created_at))
    first = {"due_at": connection.created_at, "host": host_of(connection.url)}
    conn.execute(insert(reconciliations).values(connection=connection.id, **first))


def add_source(conn: sqlalchemy.Connection, source: Connection) -> None:
    """Store the part of a new source that is a connection. Raise `Conflict` if its name is taken."""
    lock_names(conn)
    _check_name(conn, source)
    conn.execute(insert(connections).values(**_columns(source)))


def add_another(
    conn: sqlalchemy.Connection, connection: Connection, *, is_named: bool, is_forced: bool
) -> Connection:
    """Store a new connection and return it with its final name.

    Unless the name was given (`is_named`), a taken name is replaced by a free name. Raise `Conflict` if a
    given name is taken or, unless forced, if the repository is already connected to the project.
    """
    lock_names(conn)
    same = [other for other in _same_repository(conn, connection) if other.project == connection.project]
    if same and not is_forced:
        raise Conflict(
            f"{repository_key(connection.url)} is connected to project {connection.project} already, as"
            f" {same[0].name} ({same[0].id}): each push would run twice; force it if that is what you want"
        )
    if is_named:
        _check_name(conn, connection)
    else:
        connection = replace(connection, name=free_name(conn, connection))
    add(conn, connection)
    return connection


def free_name(conn: sqlalchemy.Connection, connection: Connection) -> str:
    """Return the name of a new or renamed connection, or one that begins with it if it is taken."""
    lock_names(conn)
    longer = f"{connection.name} ({connection.project})"
    tries = chain([connection.name, longer], (f"{longer} {number}" for number in count(2)))
    while True:
        some = list(islice(tries, _NAMES_AT_ONCE))
        taken = _taken(conn, some)
        if free := [name for name in some if name not in taken]:
            return free[0]


def lock_names(conn: sqlalchemy.Connection) -> None:
    """Lock the names until the transaction ends: older duplicates rule out a unique index."""
    lock(conn, Lock.NAMES)


def _check_name(conn: sqlalchemy.Connection, connection: Connection) -> None:
    query = select(connections.c.id).where(
        connections.c.name == connection.name,
        connections.c.id != connection.id,
        connections.c.deleted_at.is_(None),
    )
    other = conn.execute(query.limit(1)).scalar()
    if other is not None:
        raise Conflict(f"the name {connection.name} is taken, by connection {other}")


def _taken(conn: sqlalchemy.Connection, names: Sequence[str]) -> set[str]:
    of_names = connections.c.name.in_(names), connections.c.deleted_at.is_(None)
    return set(conn.execute(select(connections.c.name).where(*of_names)).scalars())


def _same_repository(conn: sqlalchemy.Connection, connection: Connection) -> list[Connection]:
    """Return the connections to the repository at the same address, the oldest first."""
    found = conn.execute(_at(connection.url).order_by(connections.c.created_at)).all()
    return [_record(row) for row in found if repository_key(row.url) == repository_key(connection.url)]


def _at(url: str) -> Select[Any]:
    """Select the connections to the repository at an address, and others of earlier versions on its host."""
    is_old = and_(connections.c.repository_key.is_(None), connections.c.host == host_of(url))
    return select(connections).where(
        or_(connections.c.repository_key == repository_key(url), is_old), *_REPOSITORIES
    )


def adoptable(conn: sqlalchemy.Connection, wanted: Connection, *, is_listed: bool) -> Connection | None:
    """Return the connection that a source takes over in place of a new one, if there is one.

    At the same address, its repository is the same by the provider's id, unknown, or was another of the same
    source. Elsewhere it is the same by the id, which `is_listed` by the provider, or the connection is the
    source's own: a source's secret must not be enough to move the connections of others.
    """
    its_id = connections.c.repository_id == wanted.repository_id
    by_id = select(connections).where(its_id, connections.c.host == host_of(wanted.url), *_REPOSITORIES)
    by_id = by_id.where(connections.c.provider == wanted.provider).order_by(connections.c.created_at)
    same = [_record(row) for row in conn.execute(by_id)]
    there = [other for other in _same_repository(conn, wanted) if other.provider == wanted.provider]
    at_address = {other.id for other in there}
    same = [one for one in same if is_listed or one.id in at_address or one.source == wanted.source]
    there = [one for one in there if one.repository_id is None or one.source == wanted.source]
    is_wanted = (one for one in (*same, *there) if one.source is not None or one.project == wanted.project)
    return next(is_wanted, None)


def get(conn: sqlalchemy.Connection, connection_id: str, *, locked: bool = False) -> Connection:
    """Return a connection. Raise `NotFound`, also for a deleted connection or a source.

    If it is `locked`, nobody else can change it until the transaction ends.
    """
    return _found(conn, _GET.with_for_update(key_share=True) if locked else _GET, connection_id)


def receiver(conn: sqlalchemy.Connection, connection_id: str) -> Connection:
    """Return what has the webhook URL of an id, a connection or a source. Raise `NotFound`."""
    return _found(conn, _RECEIVER, connection_id)


def _found(conn: sqlalchemy.Connection, query: Select[Any], connection_id: str) -> Connection:
    row = conn.execute(query, {"of": connection_id}).one_or_none()
    if row is None:
        raise NotFound(f"no connection has the id {connection_id}")
    return _record(row)


def get_any(conn: sqlalchemy.Connection, connection_id: str) -> Connection:
    """Return a connection that exists or was deleted."""
    return _record(conn.execute(select(connections).where(connections.c.id == connection_id)).one())


def page(
    conn: sqlalchemy.Connection,
    *,
    after: str | None,
    limit: int,
    name: str | None = None,
    search: str | None = None,
) -> list[Connection]:
    """Return up to `limit` connections, the oldest first, that were created after the connection `after`.

    `search` is a part of the name, the URL or the project. Raise `Invalid` if `after` never existed.
    """
    query = select(connections).where(*_REPOSITORIES)
    if name is not None:
        query = query.where(connections.c.name == name)
    if search is not None:
        searched = (connections.c.name, connections.c.url, connections.c.project)
        query = query.where(or_(*(column.icontains(search, autoescape=True) for column in searched)))
    if after is not None:
        # A deleted connection keeps its row, so the next page continues after it.
        made_at = conn.execute(select(connections.c.created_at).where(connections.c.id == after)).scalar()
        if made_at is None:
            raise Invalid("cursor is not one that this API has given")
        is_later = connections.c.created_at > made_at
        is_next = and_(connections.c.created_at == made_at, connections.c.id > after)
        query = query.where(or_(is_later, is_next))
    query = query.order_by(connections.c.created_at, connections.c.id).limit(limit)
    return [_record(row) for row in conn.execute(query)]


def find(conn: sqlalchemy.Connection, text: str) -> str:
    """Return the id of the connection, possibly deleted, with this id, or of the connection with this name.

    Raise `NotFound` if there is no match, and `Invalid` if several connections have the name.
    """
    if conn.execute(select(connections.c.id).where(connections.c.id == text)).first() is not None:
        return text
    named = select(connections.c.id).where(connections.c.name == text, connections.c.deleted_at.is_(None))
    ids: list[str] = list(conn.execute(named.order_by(connections.c.created_at, connections.c.id)).scalars())
    if not ids:
        raise NotFound(f"no connection has the id or the name {text}")
    if len(ids) > 1:
        raise Invalid(f"several connections have the name {text}: name one by its id ({', '.join(ids)})")
    return ids[0]


def addresses(conn: sqlalchemy.Connection) -> dict[str, str]:
    """Return the repository key of each connection by its id, the oldest connection first."""
    query = select(connections.c.id, connections.c.url).where(*_REPOSITORIES)
    rows = conn.execute(query.order_by(connections.c.created_at))
    return {row.id: repository_key(row.url) for row in rows}


def change(conn: sqlalchemy.Connection, connection: Connection) -> None:
    """Store the changes of a connection. Raise `Conflict` if another connection has its new name."""
    if receiver(conn, connection.id).name != connection.name:
        lock_names(conn)
        _check_name(conn, connection)
    conn.execute(update(connections).where(connections.c.id == connection.id).values(**_columns(connection)))
    # Its project or its host may have changed, which are the key of the queue.
    ready_queue.recheck(conn, connection.id, now=connection.updated_at)
    its_looks = reconciliations.c.connection == connection.id
    conn.execute(update(reconciliations).where(its_looks).values(host=host_of(connection.url)))


def remove(conn: sqlalchemy.Connection, connection_id: str, *, now: datetime) -> None:
    """Close a connection and delete its secrets. Its deliveries and executions stay readable.

    Its pending pushes fail with that reason, because no worker would fetch them.
    """
    receiver(conn, connection_id)
    pending = ref_updates.c.connection == connection_id, ref_updates.c.state == "pending"
    failed = {"state": "failed", "reason": "the connection was deleted", "settled_at": now}
    ended = update(ref_updates).where(*pending).values(failed).returning(ref_updates.c.delivery)
    outcomes.fail(conn, set(conn.execute(ended).scalars()))
    ready_queue.recheck(conn, connection_id, now=now)
    conn.execute(delete(secrets).where(secrets.c.connection == connection_id))
    conn.execute(
        update(connections)
        .where(connections.c.id == connection_id)
        .values(credentials=None, deleted_at=now, updated_at=now)
    )
    conn.execute(delete(reconciliations).where(reconciliations.c.connection == connection_id))
    refusals.forget_connection(conn, connection_id)
    # Its source's rules do not create it again. If they are due, they may end the waiting of deliveries.
    removed = {"state": "removed", "connection": None, "reason": _REMOVED}
    its_row = source_repositories.c.connection == connection_id
    conn.execute(update(source_repositories).where(its_row).values(**removed))


def keep_credentials(
    conn: sqlalchemy.Connection, keyring: Keyring, connection_id: str, plain: bytes | None
) -> None:
    """Store the sealed credentials of the connection's remote; None removes them."""
    sealed = None if plain is None else keyring.seal(plain, context=f"credentials of {connection_id}")
    conn.execute(update(connections).where(connections.c.id == connection_id).values(credentials=sealed))


def credentials(conn: sqlalchemy.Connection, keyring: Keyring, connection_id: str) -> bytes | None:
    """Return the credentials of the connection's remote, as they were passed to `keep_credentials`."""
    sealed = conn.execute(_CREDENTIALS, {"of": connection_id}).scalar()
    return None if sealed is None else keyring.open(sealed, context=f"credentials of {connection_id}")


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all secrets under the current wrapping key; return the number of secrets."""
    sealed = conn.execute(select(secrets.c.id, secrets.c.connection, secrets.c.sealed)).all()
    for secret, connection, envelope in sealed:
        rewrapped = keyring.rewrap(envelope, context=f"connection {connection}")
        conn.execute(update(secrets).where(secrets.c.id == secret).values(sealed=rewrapped))
    return len(sealed) + envelopes.rewrap(
        conn,
        keyring,
        connections.c.credentials,
        key=connections.c.id,
        context=lambda connection: f"credentials of {connection}",
    )


def secret_dates(conn: sqlalchemy.Connection, connection_ids: Sequence[str]) -> dict[str, list[SecretDates]]:
    """Return when the live secrets of each connection were created and last used, the newest first."""
    query = (
        select(secrets.c.connection, secrets.c.created_at, secrets.c.last_used_at)
        .where(among(conn, secrets.c.connection, connection_ids))
        .order_by(secrets.c.id.desc())
    )
    found: dict[str, list[SecretDates]] = {connection: [] for connection in connection_ids}
    for row in conn.execute(query):
        found[row.connection].append(from_row(SecretDates, row))
    return {connection: dates[:LIVE_SECRETS] for connection, dates in found.items()}


def live_secrets(conn: sqlalchemy.Connection, keyring: Keyring, connection_id: str) -> list[Secret]:
    """Return the live secrets of a connection, the newest first.

    A secret that was sealed with another secret key is skipped, so that a rotation repairs the connection.
    Raise `SettingError` if that leaves none.
    """
    query = (
        select(secrets)
        .where(secrets.c.connection == connection_id)
        .order_by(secrets.c.id.desc())
        .limit(LIVE_SECRETS)
    )
    live: list[Secret] = []
    unopened: SettingError | None = None
    for row in conn.execute(query):
        try:
            value = keyring.open(row.sealed, context=f"connection {connection_id}")
        except SettingError as error:
            unopened = error
        else:
            live.append(from_row(Secret, row, value=value))
    if not live and unopened is not None:
        raise unopened
    return live


def add_secret(
    conn: sqlalchemy.Connection, keyring: Keyring, connection_id: str, value: bytes, *, now: datetime
) -> None:
    """Add `value` as the newest secret. The previous secret stays live; older ones are deleted."""
    sealed = keyring.seal(value, context=f"connection {connection_id}")
    conn.execute(insert(secrets).values(connection=connection_id, sealed=sealed, created_at=now))
    live = (
        select(secrets.c.id)
        .where(secrets.c.connection == connection_id)
        .order_by(secrets.c.id.desc())
        .limit(LIVE_SECRETS)
    )
    conn.execute(delete(secrets).where(secrets.c.connection == connection_id, secrets.c.id.not_in(live)))


def revoke_old_secrets(conn: sqlalchemy.Connection, connection_id: str) -> None:
    """Delete all secrets but the newest: requests that are signed with an older one are refused."""
    mine = secrets.c.connection == connection_id
    newest = select(func.max(secrets.c.id)).where(mine).scalar_subquery()
    conn.execute(delete(secrets).where(mine, secrets.c.id < newest))


def _columns(connection: Connection) -> dict[str, Any]:
    """Return the columns that `add` and `change` write. Credentials and other repositories have functions."""
    columns = asdict(connection)
    del columns["has_credentials"], columns["has_status_webhook"], columns["other_repository"]
    key = repository_key(connection.url)
    return {**columns, "host": key.partition("/")[0], "repository_key": key}


def _record(row: Row[Any]) -> Connection:
    return from_row(
        Connection,
        row,
        networks=tuple(row.networks),
        follows=tuple(row.follows),
        has_credentials=row.credentials is not None,
        has_status_webhook=row.status_webhook is not None,
        other_repository=OtherRepository(**row.other_repository) if row.other_repository else None,
    )
