"""The repositories of sources: which connection each has, or why it has none.

A repository is found in a listing or in a delivery. It is then due: a worker lets the source's rules decide.
Deliveries about a repository without a connection wait until the rules have decided. Whoever writes several
rows of a source holds its lock, as the webhook endpoint does.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy
import zstandard
from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, not_, or_, select, update

from gateway.errors import Invalid, NotFound
from gateway.store import sources as stored
from gateway.store.bulk_sql import insert_rows, upsert_rows
from gateway.store.due_tasks import DueTasks
from gateway.store.histories import lock_connections
from gateway.store.rows import from_row
from gateway.store.sources import Source
from gateway.store.tables import deliveries, source_repositories, waiting_deliveries
from providers.clone_urls import repository_key
from providers.model import Event

State = Literal["due", "connected", "ignored", "gone", "removed"]
"""What the rules have decided: nothing yet for `due`. `gone` is no repository of the source any more;
`removed` had a connection that somebody has deleted, so no rule creates another."""

DECISIONS = DueTasks(source_repositories, longest=timedelta(days=1), key=("source", "repository"))
"""The repositories about which the rules have to decide."""

_MOVED = "its connection has moved to another source or repository"

_EVENTS = TypeAdapter(Event)

# Built once: the endpoint looks up with it.
_ROUTE = select(source_repositories).where(
    source_repositories.c.source == bindparam("source"),
    source_repositories.c.repository == bindparam("repository"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A repository of a source as a listing or a delivery describes it.

    If it `is_listed`, the provider itself has named the URL for the id. A delivery may be forged.
    """

    source: str
    repository: str
    full_name: str
    url: str
    default_branch: str | None
    is_listed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRepository:
    """A repository of a source, by the provider's id `repository`.

    `connection` is the id of its connection; if it `is_adopted`, it was there before the source, and keeps
    its settings. `reason` is why there is none, or what the rules say of it now. `lacks_manifest` says that a
    manifest on the default branch would change the decision.
    """

    source: str
    repository: str
    full_name: str
    url: str
    default_branch: str | None
    state: State
    connection: str | None
    reason: str | None
    lacks_manifest: bool
    is_adopted: bool
    is_listed: bool
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A repository that is due, claimed until `due_at`."""

    source: Source
    repository: SourceRepository
    due_at: datetime
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A stored delivery that waits for the rules, with everything that recording it again needs."""

    id: str
    event: Event
    event_name: str
    provider_delivery_id: str | None
    received_at: datetime
    headers: Mapping[str, str]
    secret: int | None
    body: bytes
    exchange: Mapping[str, Any] | None


def route(conn: sqlalchemy.Connection, source: str, repository: str) -> SourceRepository | None:
    """Return what is known of a source's repository; None if it was never seen."""
    row = conn.execute(_ROUTE, {"source": source, "repository": repository}).one_or_none()
    return None if row is None else from_row(SourceRepository, row)


def see(conn: sqlalchemy.Connection, found: Iterable[Seen], *, now: datetime) -> None:
    """Record repositories as they are named now, and make them due."""
    # In a fixed order, so that two processes do not wait for one another.
    latest = {(seen.source, seen.repository): seen for seen in found}
    rows = [
        (*key, seen.full_name, seen.url, seen.default_branch, now, now, 0, seen.is_listed)
        for key, seen in sorted(latest.items())
    ]
    if rows:
        upsert_rows(conn, source_repositories, ("source", "repository"), rows)


def see_listed(conn: sqlalchemy.Connection, found: Sequence[Seen], *, now: datetime) -> None:
    """Record repositories of a source that its provider has listed, as `see` does."""
    lock_connections(conn, {seen.source for seen in found})
    see(conn, found, now=now)


def wait(conn: sqlalchemy.Connection, delivery: str, seen: Seen, event: Event) -> None:
    """Let a stored delivery wait until the rules have decided about its repository."""
    row = (delivery, seen.source, seen.repository, _EVENTS.dump_python(event, mode="json"))
    insert_rows(conn, waiting_deliveries, [row])


def claim(conn: sqlalchemy.Connection, *, now: datetime, until: datetime) -> Claimed | None:
    """Claim a repository that is due; None if none is."""
    row = DECISIONS.claim(conn, now=now, until=until)
    if row is None:
        return None
    try:
        source = stored.get(conn, row.source)
    except NotFound:
        # A delivery that arrived while the source was deleted has named it.
        stored.forget_repositories(conn, row.source)
        return None
    repository = from_row(SourceRepository, row)
    return Claimed(source=source, repository=repository, due_at=until, attempts=row.attempts)


def give_back(conn: sqlalchemy.Connection, claimed: Claimed, *, now: datetime) -> None:
    """Make a claimed repository due again, for the next process, unless it was decided."""
    _end(conn, claimed, due_at=now)


def postpone(
    conn: sqlalchemy.Connection,
    claimed: Claimed,
    *,
    reason: str,
    next_at: datetime,
    others_at: datetime | None = None,
) -> None:
    """Let the rules decide later, because what they depend on could not be read.

    In an outage of the provider, all that is due of the source waits until `others_at`: one time-out after
    the other would keep the repositories of other sources from a decision.
    """
    lock_connections(conn, [claimed.source.id])
    conn.execute(update(source_repositories).where(*_is(claimed.repository)).values(reason=reason))
    _end(conn, claimed, due_at=next_at, attempts=claimed.attempts + 1)
    if others_at is not None:
        due = source_repositories.c.source == claimed.source.id, source_repositories.c.due_at < others_at
        conn.execute(update(source_repositories).where(*due).values(due_at=others_at))


def is_current(conn: sqlalchemy.Connection, claimed: Claimed) -> bool:
    """Return whether a decision about a repository would be the same now. Its source is locked.

    Its lease ends when the repository is seen again, so two processes may decide at once.
    """
    try:
        source = stored.get(conn, claimed.source.id)
    except NotFound:
        return False
    mine = claimed.repository
    known = route(conn, mine.source, mine.repository)
    return known is not None and _basis(source, known) == _basis(claimed.source, mine)


def _basis(source: Source, repository: SourceRepository) -> tuple[object, ...]:
    known = repository.url, repository.state, repository.connection
    return source.url, source.rules, source.identity, *known


def ignore(
    conn: sqlalchemy.Connection, claimed: Claimed, *, reason: str, lacks_manifest: bool = False
) -> None:
    """Record that no rule connects a repository. Its waiting deliveries are ignored for the same reason.

    A connection that it has stays, because only people delete connections. Do nothing if the decision is not
    current any more: another follows.
    """
    lock_connections(conn, [claimed.source.id])
    if not is_current(conn, claimed):
        give_back(conn, claimed, now=claimed.repository.seen_at)
        return
    state = claimed.repository.state
    if state != "removed":
        state = "connected" if claimed.repository.connection is not None else "ignored"
    _decide(conn, claimed, {"state": state, "reason": reason, "lacks_manifest": lacks_manifest})
    waiting = select(waiting_deliveries.c.delivery).where(*_waits_for(claimed.repository))
    ended = {"reason": reason, "outcome": "ignored"}
    conn.execute(update(deliveries).where(deliveries.c.id.in_(waiting)).values(ended))
    conn.execute(delete(waiting_deliveries).where(*_waits_for(claimed.repository)))


def connect(
    conn: sqlalchemy.Connection, claimed: Claimed, connection: str, *, is_adopted: bool
) -> list[Waiting]:
    """Record a repository's connection. Take its waiting deliveries out of the store, the oldest first.

    In the same transaction, the caller records each again, with its id, as a delivery to the connection.
    """
    # Another repository had the connection's address before, or another source had the repository.
    others = source_repositories.c.connection == connection, not_(and_(*_is(claimed.repository)))
    left = {
        "state": "gone",
        "connection": None,
        "reason": _MOVED,
    }
    conn.execute(update(source_repositories).where(*others).values(**left))
    decided = {
        "state": "connected",
        "connection": connection,
        "is_adopted": is_adopted,
        "reason": None,
        "lacks_manifest": False,
    }
    _decide(conn, claimed, decided)
    query = (
        select(deliveries, waiting_deliveries.c.event.label("waiting_event"))
        .join(waiting_deliveries, waiting_deliveries.c.delivery == deliveries.c.id)
        .where(*_waits_for(claimed.repository))
        .order_by(deliveries.c.id)
    )
    found = [
        Waiting(
            id=row.id,
            event=_EVENTS.validate_python(row.waiting_event),
            event_name=row.event,
            provider_delivery_id=row.provider_delivery_id,
            received_at=row.received_at,
            headers=row.headers,
            secret=row.secret,
            body=zstandard.decompress(row.body),
            exchange=row.exchange,
        )
        for row in conn.execute(query)
    ]
    conn.execute(delete(waiting_deliveries).where(*_waits_for(claimed.repository)))
    conn.execute(delete(deliveries).where(deliveries.c.id.in_([one.id for one in found])))
    return found


def listed(conn: sqlalchemy.Connection, source: str) -> dict[str, SourceRepository]:
    """Return all repositories of a source by their ids."""
    query = select(source_repositories).where(source_repositories.c.source == source)
    return {row.repository: from_row(SourceRepository, row) for row in conn.execute(query)}


def mark_gone(
    conn: sqlalchemy.Connection, source: str, repositories: Collection[str], *, since: datetime, reason: str
) -> None:
    """Mark repositories that a listing lacks, unless a delivery has named them `since` it began.

    If deliveries wait, the rules decide about them before.
    """
    lock_connections(conn, [source])
    mine, waiting = source_repositories, waiting_deliveries
    is_waited_for = select(waiting.c.delivery).where(
        waiting.c.source == mine.c.source, waiting.c.repository == mine.c.repository
    )
    gone = mine.c.source == source, mine.c.repository.in_(repositories), mine.c.seen_at < since
    marked = update(mine).where(*gone, ~is_waited_for.exists())
    conn.execute(marked.values(state="gone", reason=reason, due_at=None))


def page(
    conn: sqlalchemy.Connection, source: str, *, state: str | None, after: str | None, limit: int
) -> list[SourceRepository]:
    """Return up to `limit` repositories of a source by full name, those behind the repository `after`.

    Raise `Invalid` if the source never had that repository.
    """
    mine = source_repositories
    query = select(mine).where(mine.c.source == source).order_by(mine.c.full_name, mine.c.repository)
    if state is not None:
        query = query.where(mine.c.state == state)
    if after is not None:
        last = route(conn, source, after)
        if last is None:
            raise Invalid("cursor is not one that this API has given")
        is_same = and_(mine.c.full_name == last.full_name, mine.c.repository > after)
        query = query.where(or_(mine.c.full_name > last.full_name, is_same))
    return [from_row(SourceRepository, row) for row in conn.execute(query.limit(limit))]


def counts(conn: sqlalchemy.Connection, source_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many repositories of each source are in each state."""
    mine = source_repositories
    grouped = mine.c.source, mine.c.state
    query = select(*grouped, func.count().label("number")).where(mine.c.source.in_(source_ids))
    found: dict[str, dict[str, int]] = {source: {} for source in source_ids}
    for row in conn.execute(query.group_by(*grouped).order_by(mine.c.state)):
        found[row.source][row.state] = row.number
    return found


def at(conn: sqlalchemy.Connection, url: str) -> list[SourceRepository]:
    """Return the repositories of all sources at an address, in any form of its URL."""
    key = repository_key(url)
    query = select(source_repositories)
    return [from_row(SourceRepository, row) for row in conn.execute(query) if repository_key(row.url) == key]


def request(conn: sqlalchemy.Connection, source: str, repository: str, *, now: datetime) -> SourceRepository:
    """Let the rules decide again about a repository, also about one whose connection was deleted; return it.

    Raise `NotFound` if the source never had it.
    """
    known = route(conn, source, repository)
    if known is None:
        raise NotFound(f"the source has no repository with the id {repository}")
    due = {"state": "due", "due_at": now, "attempts": 0, "reason": None}
    conn.execute(update(source_repositories).where(*_is(known)).values(**due))
    return replace(known, state="due", reason=None)


def _decide(conn: sqlalchemy.Connection, claimed: Claimed, decided: Mapping[str, Any]) -> None:
    conn.execute(update(source_repositories).where(*_is(claimed.repository)).values(**decided))
    _end(conn, claimed, due_at=None, attempts=0)


def _end(conn: sqlalchemy.Connection, claimed: Claimed, **values: Any) -> None:
    """Set values, unless the repository was seen again meanwhile."""
    mine = claimed.repository
    DECISIONS.end(conn, mine.source, mine.repository, claimed_until=claimed.due_at, **values)


def _is(repository: SourceRepository) -> tuple[ColumnElement[bool], ...]:
    mine = source_repositories
    return mine.c.source == repository.source, mine.c.repository == repository.repository


def _waits_for(repository: SourceRepository) -> tuple[ColumnElement[bool], ...]:
    waiting = waiting_deliveries
    return waiting.c.source == repository.source, waiting.c.repository == repository.repository
