"""Sources: organisations, groups, workspaces, projects and servers with one webhook for many repositories.

A source is a connection of the kind `source`: it has a webhook URL, secrets, networks and an identity as a
connection to a repository has, but no remote and no triggers. Its rules connect its repositories, which are
in `gateway.store.source_repositories`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Row, Select, delete, insert, select, update

from gateway.errors import Conflict, NotFound
from gateway.store import connections as stored
from gateway.store.app_tables import source_apps
from gateway.store.bulk_sql import among
from gateway.store.connections import Connection
from gateway.store.due_tasks import DueTasks
from gateway.store.histories import lock_connections
from gateway.store.rows import from_row
from gateway.store.tables import (
    connections,
    deliveries,
    source_repositories,
    sources,
    waiting_deliveries,
)
from providers.clone_urls import repository_key
from providers.places import owner_of

Scope = Literal["owner", "server"]

_DELETED = "the source was deleted before its rules had decided about the repository"

LISTINGS = DueTasks(sources, longest=timedelta(days=1))
"""The listings of the repositories of each source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source. `scope` says whether its webhook covers one owner's repositories or a whole server's.

    `url` is the web page of the owner or the server. `rules` are in the form of `gateway.plan.source_rules`.
    `listed_at` is when its repositories were listed last, `reason` why the latest attempt failed.
    """

    id: str
    name: str
    provider: str
    url: str
    scope: Scope
    rules: Sequence[Mapping[str, Any]]
    auth: Mapping[str, str]
    networks: Sequence[str]
    identity: str | None
    created_at: datetime
    updated_at: datetime
    listed_at: datetime | None = None
    reason: str | None = None

    @property
    def as_connection(self) -> Connection:
        """The part of the source that is a connection."""
        return Connection(
            id=self.id,
            name=self.name,
            provider=self.provider,
            url=self.url,
            project="",
            auth=self.auth,
            triggers=(),
            yaml_path="",
            repository_id=None,
            created_at=self.created_at,
            updated_at=self.updated_at,
            networks=self.networks,
            identity=self.identity,
            kind="source",
        )


def add(conn: sqlalchemy.Connection, source: Source) -> None:
    """Store a new source.

    Raise `Conflict` if its name is taken, also by a connection, or if there is a source with its URL.
    """
    stored.add_source(conn, source.as_connection)
    _check_url(conn, source)
    due_at = source.created_at if source.identity is not None else None
    values = {"connection": source.id, "scope": source.scope, "rules": list(source.rules), "due_at": due_at}
    conn.execute(insert(sources).values(**values))


def get(conn: sqlalchemy.Connection, id_or_name: str, *, locked: bool = False) -> Source:
    """Return the source with this id, or else with this name. Raise `NotFound`.

    If it is `locked`, nobody else can change it until the transaction ends.
    """
    query = _select().where((connections.c.id == id_or_name) | (connections.c.name == id_or_name))
    query = query.order_by(connections.c.id != id_or_name).limit(1)
    if locked:
        query = query.with_for_update(key_share=True, of=connections)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"no source has the id or the name {id_or_name}")
    return _record(row)


def page(conn: sqlalchemy.Connection, *, after: str | None, limit: int) -> list[Source]:
    """Return up to `limit` sources by name, those behind the name `after`."""
    query = _select().order_by(connections.c.name).limit(limit)
    if after is not None:
        query = query.where(connections.c.name > after)
    return [_record(row) for row in conn.execute(query)]


def change(conn: sqlalchemy.Connection, source: Source) -> None:
    """Store the changes of a source, and let its rules decide again about each of its repositories.

    Until then, deliveries about a repository without a connection wait. Raise `Conflict` as `add` does.
    """
    lock_connections(conn, [source.id])
    stored.lock_names(conn)
    stored.change(conn, source.as_connection)
    _check_url(conn, source)
    due_at = source.updated_at if source.identity is not None else None
    values = {"rules": list(source.rules), "due_at": due_at, "attempts": 0}
    conn.execute(update(sources).where(sources.c.connection == source.id).values(**values))
    mine = source_repositories
    ignored = mine.c.source == source.id, mine.c.state == "ignored"
    conn.execute(update(mine).where(*ignored).values(state="due", reason=None))
    theirs = mine.c.source == source.id, mine.c.state.in_(["due", "connected"])
    conn.execute(update(mine).where(*theirs).values(due_at=source.updated_at, attempts=0))


def set_identity(conn: sqlalchemy.Connection, source_id: str, identity: str, *, now: datetime) -> None:
    """Give a source an identity, and make the listing of its repositories due."""
    mine = connections.c.id == source_id
    conn.execute(update(connections).where(mine).values(identity=identity, updated_at=now))
    due = {"due_at": now, "attempts": 0, "listed_at": None, "reason": None}
    conn.execute(update(sources).where(sources.c.connection == source_id).values(**due))


def remove(conn: sqlalchemy.Connection, source_id: str, *, now: datetime) -> None:
    """Delete a source and its secrets. Its connections stay, without a webhook until they get another.

    The row with its scope stays, for the removal of its webhook.
    """
    lock_connections(conn, [source_id])
    forget_repositories(conn, source_id)
    conn.execute(delete(source_apps).where(source_apps.c.source == source_id))
    conn.execute(update(connections).where(connections.c.source == source_id).values(source=None))
    conn.execute(update(sources).where(sources.c.connection == source_id).values(due_at=None))
    stored.remove(conn, source_id, now=now)


def forget_repositories(conn: sqlalchemy.Connection, source_id: str) -> None:
    """Delete what is known of the repositories of a deleted source."""
    waiting = select(waiting_deliveries.c.delivery).where(waiting_deliveries.c.source == source_id)
    ended = {"reason": _DELETED, "outcome": "ignored"}
    conn.execute(update(deliveries).where(deliveries.c.id.in_(waiting)).values(ended))
    conn.execute(delete(waiting_deliveries).where(waiting_deliveries.c.source == source_id))
    conn.execute(delete(source_repositories).where(source_repositories.c.source == source_id))


def names(conn: sqlalchemy.Connection, ids: Collection[str]) -> dict[str, str]:
    """Return the names of sources by their ids."""
    mine = among(conn, connections.c.id, ids), connections.c.kind == "source"
    query = select(connections.c.id, connections.c.name).where(*mine)
    return {row.id: row.name for row in conn.execute(query)}


def former(conn: sqlalchemy.Connection, provider: str) -> list[str]:
    """Return the ids of the deleted sources of a provider."""
    is_deleted = connections.c.deleted_at.is_not(None)
    query = select(sources.c.connection).join(connections, sources.c.connection == connections.c.id)
    return list(conn.execute(query.where(is_deleted, connections.c.provider == provider)).scalars())


def request_listing(conn: sqlalchemy.Connection, source_id: str, *, now: datetime) -> None:
    """Make the listing of a source's repositories due now. The reason of an earlier failure is forgotten."""
    due = {"due_at": now, "attempts": 0, "reason": None}
    conn.execute(update(sources).where(sources.c.connection == source_id).values(**due))


@dataclass(frozen=True, slots=True, kw_only=True)
class DueListing:
    """A claimed listing of a source's repositories, until `due_at`."""

    source: Source
    due_at: datetime
    attempts: int


def claim(conn: sqlalchemy.Connection, *, now: datetime, until: datetime) -> DueListing | None:
    """Claim a listing that is due; None if none is."""
    row = LISTINGS.claim(conn, now=now, until=until)
    if row is None:
        return None
    return DueListing(source=get(conn, row.connection), due_at=until, attempts=row.attempts)


def record_listing(
    conn: sqlalchemy.Connection,
    listing: DueListing,
    *,
    now: datetime,
    next_at: datetime,
    reason: str | None = None,
    attempts: int = 0,
) -> None:
    """Record the end of a listing: without `reason`, it has succeeded."""
    outcome: dict[str, Any] = {"reason": reason}
    if reason is None:
        outcome["listed_at"] = now
    conn.execute(update(sources).where(sources.c.connection == listing.source.id).values(**outcome))
    following = {"due_at": next_at, "attempts": attempts}
    LISTINGS.end(conn, listing.source.id, claimed_until=listing.due_at, **following)


def give_back(conn: sqlalchemy.Connection, listing: DueListing, *, now: datetime) -> None:
    """Make a claimed listing due again, for the next process, unless it has ended."""
    LISTINGS.end(conn, listing.source.id, claimed_until=listing.due_at, due_at=now)


def _select() -> Select[Any]:
    return (
        select(connections, sources.c.scope, sources.c.rules, sources.c.listed_at, sources.c.reason)
        .join(sources, sources.c.connection == connections.c.id)
        .where(connections.c.deleted_at.is_(None))
    )


def _record(row: Row[Any]) -> Source:
    return from_row(Source, row, networks=tuple(row.networks), rules=tuple(row.rules))


def _check_url(conn: sqlalchemy.Connection, source: Source) -> None:
    """Raise `Conflict` if another source of the provider has the URL of a source. The names are locked."""
    others = connections.c.provider == source.provider, connections.c.id != source.id
    for row in conn.execute(_select().where(*others, sources.c.scope == source.scope)):
        if _place(row.url, source) == _place(source.url, source):
            raise Conflict(
                f"{source.url} is a source already, {row.name} ({row.id}): change that, in place of a second"
            )


def _place(url: str, source: Source) -> str:
    """Return what is equal for all URLs of an owner, or of a server."""
    if source.scope == "server":
        return repository_key(url)
    owner = owner_of(url, source.provider)
    return f"{owner.server}/{owner.name}".lower()
