"""Execution requests: what was planned, and whether the broker has confirmed it. This table is the outbox."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from operator import attrgetter
from typing import Any

import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Update,
    bindparam,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)

from gateway.errors import Conflict, NotFound
from gateway.messages.execution_states import ExecutionState, OutboxState, Run, shown
from gateway.messages.packages import package_in
from gateway.store import (
    cancel_events,
    commit_statuses,
    execution_search,
    outcomes,
    packages,
    runs,
    unaccepted,
)
from gateway.store.bulk_sql import among
from gateway.store.execution_search import ExecutionFilters
from gateway.store.execution_tables import execution_bodies, executions
from gateway.store.packages import KeptPackage
from gateway.store.publishing_lanes import SINGLE, PublishingLane
from gateway.store.rows import from_row

_ENDED_UNPUBLISHED = ("undeliverable", "dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A planned execution request that is not stored yet. `body` is the JSON of the wire contract.

    `target` is the name of the step or pipeline, `subject` a description for people, `lane` the priority lane
    of its trigger, if any; `is_latest_only` is True if it supersedes the requests of earlier commits of its
    ref. `rerun_of` is the id of the request that it runs again, if any. `lost_after` is how long its runner
    may be silent, zero for any time, None for the setting's.
    """

    id: str
    connection: str
    delivery: str
    project: str
    trigger: str
    target: str
    subject: str
    body: bytes
    lane: str | None = None
    is_latest_only: bool = False
    rerun_of: str | None = None
    lost_after: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """A stored execution request.

    `seq` is the order in which requests were planned, `ref_update` the number of the ref update of the
    request. `reason` is the broker's last refusal, if any. `redrives` counts how often it was republished,
    the last time at `republished_at`. `cancel_requested_at` is when an operator cancelled it. `package` is
    the stored package that the body names, unless it has expired. `run` is what runners have reported, if
    anything; `rerun_by` has the ids of the requests that run this one again, oldest first. The relay reads
    neither.
    """

    seq: int
    id: str
    connection: str
    delivery: str
    ref_update: int
    project: str
    trigger: str
    target: str
    subject: str
    body: bytes
    planned_at: datetime
    state: OutboxState = "pending"
    reason: str | None = None
    published_at: datetime | None = None
    lane: str | None = None
    superseded_by: str | None = None
    redrives: int = 0
    republished_at: datetime | None = None
    rerun_of: str | None = None
    cancel_requested_at: datetime | None = None
    lost_after: int | None = None
    package: KeptPackage | None = None
    run: Run | None = None
    rerun_by: Sequence[str] = ()

    @property
    def shown_state(self) -> ExecutionState:
        """The state that people see."""
        reported = None if self.run is None else self.run.state
        return shown(self.state, reported, is_cancelled=self.cancel_requested_at is not None)


# Built once: building one takes longer than running it.
_THERE = select(executions.c.seq, executions.c.id, executions.c.state).where(
    executions.c.id.in_(bindparam("ids", expanding=True))
)
_INSERT = insert(executions)
_INSERT_BODY = insert(execution_bodies).from_select(
    ["execution", "body"],
    select(executions.c.seq, bindparam("its_body", type_=execution_bodies.c.body.type)).where(
        executions.c.id == bindparam("its_id")
    ),
)

# By the ref update, which has an index: a re-run has that of the request that it runs again.
_RERUNS = (
    select(executions.c.rerun_of, executions.c.id)
    .where(
        executions.c.ref_update.in_(bindparam("updates", expanding=True)),
        executions.c.rerun_of.in_(bindparam("ids", expanding=True)),
    )
    .order_by(executions.c.seq)
)

# Each connection has at most one refused request: those behind it are not tried.
_MAX_REFUSED = 1000

# A literal, not a bound value: only then can the query planner use the partial index, whose order is that of
# the outbox. By any other index PostgreSQL would sort all that waits, for each batch, after a long outage.
_IS_PENDING = executions.c.state == literal_column("'pending'")

READ_BYTES = 8 * 1024 * 1024
"""How many bytes of bodies are read at once, exceeded at most by the last body: hundreds may be large."""

OMITTED = b""
"""Stands for a body that was not read, because the bodies before it reached `READ_BYTES`."""


def add(
    conn: sqlalchemy.Connection, requests: Sequence[NewRequest], *, ref_update: int, now: datetime
) -> None:
    """Add a ref update's requests to the outbox. A request whose id is there already stays unchanged.

    The exception is a request that ended unpublished: a replay makes it pending again.
    """
    there = {row.id: row for row in conn.execute(_THERE, {"ids": [request.id for request in requests]})}
    for request in requests:
        if request.id in there and there[request.id].state in _ENDED_UNPUBLISHED:
            _revive(conn, there[request.id].seq, request.body, now=now)
    new = [request for request in requests if request.id not in there]
    if not new:
        return
    conn.execute(_INSERT, [_row(request, ref_update=ref_update, now=now) for request in new])
    conn.execute(_INSERT_BODY, [{"its_id": request.id, "its_body": request.body} for request in new])


def _row(request: NewRequest, *, ref_update: int, now: datetime) -> dict[str, Any]:
    return {
        "id": request.id,
        "connection": request.connection,
        "delivery": request.delivery,
        "ref_update": ref_update,
        "project": request.project,
        "trigger": request.trigger,
        "target": request.target,
        "subject": request.subject,
        "lane": request.lane,
        "policy": "latest" if request.is_latest_only else "every",
        "state": "pending",
        "planned_at": now,
        "rerun_of": request.rerun_of,
        "lost_after": None if request.lost_after is None else ceil(request.lost_after.total_seconds()),
    }


def _revive(conn: sqlalchemy.Connection, seq: int, body: bytes, *, now: datetime) -> None:
    """Make a request that ended unpublished pending again, with its new body."""
    mine = executions.c.seq == seq
    revived = {"state": "pending", "reason": None, "planned_at": now, "cancel_requested_at": None}
    conn.execute(update(executions).where(mine).values(revived))
    its_body = execution_bodies.c.execution == seq
    conn.execute(update(execution_bodies).where(its_body).values(body=body))


def pending(
    conn: sqlalchemy.Connection,
    *,
    limit: int,
    without: Collection[str],
    most_bytes: int = READ_BYTES,
    lane: PublishingLane = SINGLE,
) -> list[StoredRequest]:
    """Return pending requests of a lane in the order in which they were planned.

    Leave out the connections in `without`. Stop once the bodies have `most_bytes`.
    """
    query = select(executions).where(_IS_PENDING).order_by(executions.c.seq).limit(limit)
    if without:
        query = query.where(executions.c.connection.not_in(without))
    if lane != SINGLE:
        query = query.where(lane.includes(executions.c.connection))
    return _some(conn, query, most_bytes=most_bytes, with_runs=False)


def record(
    conn: sqlalchemy.Connection,
    *,
    published: Sequence[str],
    refused: Mapping[str, str],
    undeliverable: Mapping[str, str],
    now: datetime,
) -> None:
    """Record which requests were published, and why the broker refused others, temporarily or permanently."""
    if undeliverable:
        _show(conn, executions.c.id.in_(undeliverable))
    if published:
        mine = executions.c.id.in_(published)
        # Those that were withdrawn while they were being sent: runners now have them.
        _show(conn, mine & (executions.c.state != "pending"))
        conn.execute(update(executions).where(mine).values(state="published", reason=None, published_at=now))
        outcomes.publish(conn, published)
        cancel_events.add(conn, published, now=now)
        unaccepted.expect(conn, published, now=now)
    for request_id, reason in refused.items():
        conn.execute(_still_pending(request_id).values(reason=reason))
    for request_id, reason in undeliverable.items():
        conn.execute(_still_pending(request_id).values(state="undeliverable", reason=reason))


def _show(conn: sqlalchemy.Connection, which: ColumnElement[bool]) -> None:
    """Let the provider show the new state of requests.

    Call it before the change: whoever locks both, locks verdicts before requests.
    """
    commit_statuses.touch(conn, select(executions.c.seq).where(which))


def drop(conn: sqlalchemy.Connection, request_id: str) -> StoredRequest:
    """Withdraw a pending request, so that those behind it are published, or give up an undeliverable one.

    Raise `NotFound` or `Conflict`. A request that is being sent at this moment may still be published, and is
    then recorded as published.
    """
    _show(conn, executions.c.id == request_id)
    droppable = executions.c.id == request_id, executions.c.state.in_(("pending", "undeliverable"))
    outcome = {"state": "dropped", "reason": "an operator has dropped it"}
    dropped = update(executions).where(*droppable).values(outcome)
    if conn.execute(dropped).rowcount == 0:
        state = get(conn, request_id).state
        raise Conflict(f"only a pending or undeliverable execution can be dropped, and this one is {state}")
    return get(conn, request_id)


def expired_package(stored: StoredRequest) -> str:
    """Return the sentence about a request whose package has expired."""
    return (
        f"its package has expired: replay delivery {stored.delivery}, which builds the package again; then"
        " republish or re-run the execution, unless it is pending already"
    )


def _still_pending(request_id: str) -> Update:
    return update(executions).where(executions.c.id == request_id, executions.c.state == "pending")


def get(conn: sqlalchemy.Connection, request_id: str) -> StoredRequest:
    """Return an execution request. Raise `NotFound`."""
    found = _records(conn, select(executions).where(executions.c.id == request_id))
    if not found:
        raise NotFound(f"no execution has the id {request_id}")
    return found[0]


def page(
    conn: sqlalchemy.Connection,
    *,
    connection: str | None,
    delivery: str | None,
    state: ExecutionState | None,
    before: int | None,
    limit: int,
) -> tuple[list[StoredRequest], bool]:
    """Return up to `limit` requests numbered below `before`, the newest first, and whether there are more.

    Stop once the bodies have `READ_BYTES`.
    """
    filters = ExecutionFilters(connection=connection, delivery=delivery, state=state)
    found, following = search(conn, filters, before=before, limit=limit)
    return found, following is not None


def search(
    conn: sqlalchemy.Connection, filters: ExecutionFilters, *, before: int | None, limit: int
) -> tuple[list[StoredRequest], int | None]:
    """Return up to `limit` requests, the newest first, and the `before` of the next page.

    That is None for the last page. Stop once the bodies have `READ_BYTES`.
    """
    numbers, following = execution_search.find(conn, filters, before=before, limit=limit)
    kept = _affordable(_sizes(conn, _numbered(numbers))[::-1], READ_BYTES)
    found = _records(conn, _numbered(kept))[::-1]
    return found, kept[-1] if len(kept) < len(numbers) else following


def newest_planned(conn: sqlalchemy.Connection, state: ExecutionState, *, limit: int) -> list[datetime]:
    """Return when the newest requests in this state were planned, up to `limit`, without their bodies."""
    numbers, _ = execution_search.find(conn, ExecutionFilters(state=state), before=None, limit=limit)
    query = select(executions.c.planned_at).where(among(conn, executions.c.seq, numbers))
    return list(conn.execute(query).scalars())


def of_deliveries(conn: sqlalchemy.Connection, delivery_ids: Sequence[str]) -> list[StoredRequest]:
    """Return the requests of these deliveries, in the order in which they were planned.

    Once the bodies have `READ_BYTES`, the others are `OMITTED`.
    """
    query = select(executions).where(executions.c.delivery.in_(delivery_ids))
    sizes = _sizes(conn, query)
    kept = _affordable(sizes, READ_BYTES)
    if len(kept) == len(sizes):
        return _records(conn, query)
    return _records(conn, _numbered(kept)) + numbered(conn, [seq for seq, _ in sizes[len(kept) :]])


def numbered(conn: sqlalchemy.Connection, numbers: Sequence[int]) -> list[StoredRequest]:
    """Return the requests with these numbers, without their bodies."""
    return _records(conn, _numbered(numbers), with_bodies=False)


def of_update(conn: sqlalchemy.Connection, ref_update: int) -> list[StoredRequest]:
    """Return the requests of a ref update, in the order in which they were planned."""
    return _records(conn, select(executions).where(executions.c.ref_update == ref_update))


def refusals(conn: sqlalchemy.Connection, connections: Collection[str]) -> dict[str, StoredRequest]:
    """Return the first refused pending request of each connection, if any."""
    refused = (
        select(executions)
        .where(
            executions.c.state == "pending",
            executions.c.connection.in_(connections),
            executions.c.reason.is_not(None),
        )
        .order_by(executions.c.seq.desc())
        .limit(_MAX_REFUSED)
    )
    # In reverse, so that the first request of each connection remains.
    return {one.connection: one for one in _records(conn, refused, with_bodies=False)[::-1]}


def planned_after(conn: sqlalchemy.Connection, seq: int, *, limit: int) -> list[StoredRequest]:
    """Return requests planned after number `seq`, the oldest first."""
    query = select(executions).where(executions.c.seq > seq).order_by(executions.c.seq).limit(limit)
    return _some(conn, query, most_bytes=READ_BYTES)


def last_seq(conn: sqlalchemy.Connection) -> int:
    """Return the number of the newest request, 0 if there are no requests."""
    return conn.execute(select(func.max(executions.c.seq))).scalar() or 0


def _some(
    conn: sqlalchemy.Connection, query: Select[Any], *, most_bytes: int, with_runs: bool = True
) -> list[StoredRequest]:
    """Return the first requests of a query, until their bodies have `most_bytes`."""
    sizes = _sizes(conn, query)
    kept = _affordable(sizes, most_bytes)
    chosen = query if len(kept) == len(sizes) else _numbered(kept)
    return _records(conn, chosen, with_runs=with_runs)


def _sizes(conn: sqlalchemy.Connection, query: Select[Any]) -> list[tuple[int, int]]:
    """Return the numbers of the requests that a query selects, and the sizes of their bodies in bytes."""
    chosen = query.subquery()
    its_body = chosen.c.seq == execution_bodies.c.execution
    sizes = select(chosen.c.seq, func.length(execution_bodies.c.body))
    found = conn.execute(sizes.join_from(chosen, execution_bodies, its_body))
    return sorted((seq, size) for seq, size in found)


def _affordable(sizes: Sequence[tuple[int, int]], most_bytes: int) -> list[int]:
    """Return the first numbers, up to the one with which the sizes reach `most_bytes`."""
    kept, total = [], 0
    for seq, size in sizes:
        if total >= most_bytes:
            break
        kept.append(seq)
        total += size
    return kept


def _numbered(numbers: Sequence[int]) -> Select[Any]:
    return select(executions).where(executions.c.seq.in_(numbers))


def _records(
    conn: sqlalchemy.Connection, query: Select[Any], *, with_bodies: bool = True, with_runs: bool = True
) -> list[StoredRequest]:
    """Return the requests that a query selects, in the order in which they were planned."""
    # The selection is a subquery: with a join beside the conditions, PostgreSQL may read all bodies. Python
    # sorts, because SQLite would copy each body to sort them.
    chosen = query.subquery()
    body = execution_bodies.c.body if with_bodies else literal(OMITTED).label("body")
    its_body = chosen.c.seq == execution_bodies.c.execution
    rows = conn.execute(select(chosen, body).join_from(chosen, execution_bodies, its_body)).all()
    reported = runs.of(conn, [row.seq for row in rows]) if with_runs else {}
    again = _reruns(conn, rows) if with_runs else {}
    return sorted(_requests(conn, rows, reported, again), key=attrgetter("seq"))


def _reruns(
    conn: sqlalchemy.Connection, rows: Sequence[Row[*tuple[Any, ...]]]
) -> Mapping[str, Sequence[str]]:
    """Return the ids of the requests that run those of rows again, by the ids of these."""
    given = {"updates": list({row.ref_update for row in rows}), "ids": [row.id for row in rows]}
    found: dict[str, list[str]] = {}
    for first, again in conn.execute(_RERUNS, given):
        found.setdefault(first, []).append(again)
    return found


def _requests(
    conn: sqlalchemy.Connection,
    rows: Sequence[Row[*tuple[Any, ...]]],
    reported: Mapping[int, Run],
    again: Mapping[str, Sequence[str]],
) -> Iterator[StoredRequest]:
    """Yield the requests of rows with their stored packages, their runs and their re-runs."""
    planned = [package_in(row.body) for row in rows]
    keys = {package.key for package in planned if package is not None}
    kept = packages.find(conn, keys) if keys else {}
    for row, package in zip(rows, planned, strict=True):
        its_package = None if package is None else kept.get(package.key)
        more = {"run": reported.get(row.seq), "rerun_by": again.get(row.id, ())}
        yield from_row(StoredRequest, row, package=its_package, **more)
