"""Find deliveries by any combination of filters, newest first, at a cost that does not grow with the store.

Each filter selects ids of deliveries in the order of an index. One of them leads, the one that selects the
fewest; what it finds is compared with the others, batch by batch, until a page is full or `MAX_EXAMINED`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Column, ColumnElement, Select, and_, false, func, or_, select, text, true, union_all

from gateway.store.bulk_sql import among
from gateway.store.columns import begins_with
from gateway.store.ids import delivery_ids_since
from gateway.store.outcomes import Outcome
from gateway.store.people import person_key
from gateway.store.tables import connections, deliveries, ref_updates

MAX_EXAMINED = 20_000
"""How many deliveries are compared with the filters for one page. It then has fewer items, and a cursor."""

MAX_NAMES = 20
"""How many connections, refs and people a search takes into account, of each in the order of the alphabet."""

# A filter that selects more is never the leading one, unless all do.
_FEW = 200
_BATCH = 2000
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_NAMESPACE = re.compile(r"refs/(heads|tags|pull|merge-requests|pull-requests)/")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilters:
    """What a list of deliveries is restricted to; None for no restriction.

    `connection` is an id; `branch` is a ref or its short name; `author` is who pushed, or the author of the
    commit; `commit` is an object id, or its beginning, to which a ref was moved, directly or through a tag.
    `search` is the beginning of a ref's short name, of a person's name or of a commit, or a part of the name
    of a connection.
    """

    connection: str | None = None
    outcome: Outcome | None = None
    verdict: str | None = None
    branch: str | None = None
    author: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    commit: str | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class _Stream:
    """Deliveries that an index has in the order of their ids."""

    id: Column[Any]
    condition: ColumnElement[bool]

    def newest(self, window: "_Window", limit: int) -> Select[Any]:
        """Select the newest ids."""
        found = select(self.id.label("id")).where(self.condition, window.includes(self.id))
        # A delivery may have many ref updates.
        found = found if self.id is deliveries.c.id else found.distinct()
        return found.order_by(self.id.desc()).limit(limit)


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter: the deliveries of any of the streams, and the same as a condition on a delivery.

    `of_update` is the condition on a delivery joined with one of its ref updates. Unless `is_exact`, the
    streams also have other deliveries.
    """

    streams: Sequence[_Stream]
    condition: ColumnElement[bool]
    of_update: ColumnElement[bool]
    is_exact: bool = True

    def newest(self, conn: sqlalchemy.Connection, window: "_Window", limit: int) -> Sequence[str]:
        """Return the newest ids, without repetitions."""
        if not self.streams:
            return ()
        if len(self.streams) == 1:
            return conn.execute(self.streams[0].newest(window, limit)).scalars().all()
        # SQLite takes a limit in a part of a union only in a query of its own.
        parts = [select(stream.newest(window, limit).subquery()) for stream in self.streams]
        found = union_all(*parts).subquery()
        query = select(found.c.id).distinct().order_by(found.c.id.desc()).limit(limit)
        return conn.execute(query).scalars().all()


@dataclass(frozen=True, slots=True)
class _Window:
    """The ids between two limits: those of deliveries sort by time."""

    since: str | None
    before: str | None

    def includes(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        conditions = [] if self.since is None else [column >= self.since]
        return and_(true(), *conditions, *([] if self.before is None else [column < self.before]))


def find(
    conn: sqlalchemy.Connection, filters: DeliveryFilters, *, before: str | None, limit: int
) -> tuple[list[str], str | None]:
    """Return up to `limit` ids older than `before`, and the `before` of the next page, None for the last."""
    window = _window(filters, before)
    wanted = list(_filters(conn, filters))
    lead = _leading(conn, wanted, window)
    rest = [one.condition for one in wanted if one is not lead or not lead.is_exact]
    found: list[str] = []
    examined, size = 0, 4 * limit if rest else limit + 1
    while True:
        ids = lead.newest(conn, window, size)
        found += _matching(conn, ids, rest) if rest else ids
        if len(found) > limit:
            return found[:limit], found[limit - 1]
        if len(ids) < size:
            return found, None
        examined += size
        if examined >= MAX_EXAMINED:
            return found, ids[-1]
        window = _Window(window.since, ids[-1])
        size = max(size, min(2 * size, _BATCH // len(lead.streams)))


def conditions(conn: sqlalchemy.Connection, filters: DeliveryFilters) -> list[ColumnElement[bool]]:
    """Return the filters as conditions on deliveries that are joined with their ref updates."""
    if filters == DeliveryFilters():
        return []
    return [one.of_update for one in _filters(conn, filters)]


def _window(filters: DeliveryFilters, before: str | None) -> _Window:
    since = None if filters.since is None else delivery_ids_since(filters.since)
    until = None if filters.until is None else delivery_ids_since(filters.until)
    return _Window(since, min((end for end in (before, until) if end is not None), default=None))


def _matching(
    conn: sqlalchemy.Connection, ids: Sequence[str], conditions: Sequence[ColumnElement[bool]]
) -> Sequence[str]:
    query = select(deliveries.c.id).where(among(conn, deliveries.c.id, ids), *conditions)
    return conn.execute(query.order_by(deliveries.c.id.desc())).scalars().all()


def _leading(conn: sqlalchemy.Connection, wanted: Sequence[_Filter], window: _Window) -> _Filter:
    """Return the filter that selects the fewest deliveries; of those that select many, the first."""
    if len(wanted) == 1:
        return wanted[0]
    return min(wanted, key=lambda one: len(one.newest(conn, window, _FEW)))


def _filters(conn: sqlalchemy.Connection, filters: DeliveryFilters) -> Iterator[_Filter]:
    """Yield the filters, the one of the columns of deliveries first; all deliveries if there is none."""
    columns = {"connection": filters.connection, "outcome": filters.outcome, "verdict": filters.verdict}
    equal = [deliveries.c[name] == value for name, value in columns.items() if value is not None]
    others = (filters.branch, filters.commit, filters.author, filters.search)
    if equal or others == (None, None, None, None):
        condition = and_(true(), *equal)
        yield _Filter([_Stream(deliveries.c.id, condition)], condition, condition)
    if filters.branch is not None:
        yield _of_ref(filters.branch)
    if filters.commit is not None:
        yield _of_updates(*_moved_to(filters.commit))
    if filters.author is not None:
        yield _by(conn, filters.author)
    if filters.search is not None:
        yield _search(conn, filters.search)


def _of_ref(name: str) -> _Filter:
    short = _short(name)
    named = _of_updates(ref_updates.c.name == short)
    if short == name:
        return named
    # By the short name, which is indexed.
    return replace(_of_updates(ref_updates.c.ref == name), streams=named.streams, is_exact=False)


def _short(name: str) -> str:
    """Return the short name of a ref, as `providers.normalize.ref_update` has it."""
    namespace = _NAMESPACE.match(name)
    if namespace is None:
        return name
    short = name[namespace.end() :]
    return short if namespace[1] in {"heads", "tags"} else short.partition("/")[0]


def _moved_to(commit: str) -> tuple[ColumnElement[bool], ...]:
    # Not LIKE: only a range uses the index on both databases.
    return tuple(
        column.between(commit, commit + "g") for column in (ref_updates.c.after, ref_updates.c.peeled)
    )


def _of_updates(*conditions: ColumnElement[bool]) -> _Filter:
    """Return the filter of the deliveries with a ref update that meets one of these conditions."""
    theirs = ref_updates.c.delivery
    # Not EXISTS, which PostgreSQL may turn into a join with all ref updates.
    first = select(ref_updates.c.seq).where(theirs == deliveries.c.id, or_(*conditions)).limit(1)
    has_one = first.correlate(deliveries).scalar_subquery().is_not(None)
    return _Filter([_Stream(theirs, condition) for condition in conditions], has_one, or_(*conditions))


def _by(conn: sqlalchemy.Connection, author: str) -> _Filter:
    key = person_key(author) or ""
    pushed = deliveries.c.pusher_key == key
    # A commit has its author's address behind the name.
    addressed = begins_with(conn, ref_updates.c.author_key, f"{key} <")
    written = _of_updates(ref_updates.c.author_key == key, addressed)
    streams = [_Stream(deliveries.c.id, pushed), *written.streams]
    return _Filter(streams, or_(pushed, written.condition), or_(pushed, written.of_update))


def _search(conn: sqlalchemy.Connection, wanted: str) -> _Filter:
    """Return the filter of the deliveries in which something has this name, or one that begins so."""
    short, key = _short(wanted), person_key(wanted) or ""
    named = _distinct(conn, ref_updates.c.name, short)
    pushers = _distinct(conn, deliveries.c.pusher_key, key)
    authors = _distinct(conn, ref_updates.c.author_key, key)
    mine = [
        *(deliveries.c.connection == one for one in _connections(conn, wanted)),
        *(deliveries.c.pusher_key == one for one in pushers),
    ]
    theirs = [
        *(ref_updates.c.name == one for one in named),
        *(ref_updates.c.author_key == one for one in authors),
    ]
    if _COMMIT.fullmatch(wanted.lower()):
        theirs += _moved_to(wanted.lower())
    moved = _of_updates(*theirs) if theirs else _Filter([], false(), false())
    streams = [*(_Stream(deliveries.c.id, one) for one in mine), *moved.streams]
    return _Filter(streams, or_(moved.condition, *mine), or_(moved.of_update, *mine))


def _connections(conn: sqlalchemy.Connection, part: str) -> Sequence[str]:
    """Return the connections and sources in whose names a text occurs, whatever its case."""
    contains = func.lower(connections.c.name).contains(part.lower(), autoescape=True)
    query = select(connections.c.id).where(contains).order_by(connections.c.name).limit(MAX_NAMES)
    return conn.execute(query).scalars().all()


def _distinct(conn: sqlalchemy.Connection, column: Column[Any], prefix: str) -> Sequence[str]:
    """Return the first values of a `prefix_index` that begin with a text, by one look into it for each."""
    if not prefix:
        return ()
    order: Any = column if conn.dialect.name == "sqlite" else text(f"{column} USING ~<~")

    def least(after: ColumnElement[str] | None = None) -> Any:
        query = select(column).where(begins_with(conn, column, prefix, after=after))
        return query.order_by(order).limit(1)

    found = select(least().scalar_subquery().label("value")).cte("found", recursive=True)
    after = least(found.c.value).correlate(found).scalar_subquery()
    found = found.union_all(select(after).where(found.c.value.is_not(None)))
    values = conn.execute(select(found.c.value).limit(MAX_NAMES)).scalars()
    return [value for value in values if value is not None]
