"""Pending ref updates and the leases under which they are worked on, one connection at a time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Row, bindparam, case, func, insert, literal, literal_column, select, update

from gateway.errors import StoreUnavailable
from gateway.store import (
    commit_statuses,
    events,
    execution_tables,
    executions,
    outcomes,
    platforms,
    ready_queue,
    supersession,
    tables,
    unexecuted,
)
from gateway.store.columns import Instant
from gateway.store.commit_statuses import Expected
from gateway.store.deliveries import REPLAYABLE, UpdateState
from gateway.store.events import NewEvent
from gateway.store.executions import NewRequest
from gateway.store.people import person_key
from gateway.store.ready_queue import is_pending, is_ready, oldest_arrival, waiting
from gateway.store.rows import from_row
from gateway.store.tables import deliveries, leases, reconciliations, ref_updates, update_attempts
from gateway.text.escape import storable
from providers.model import Action, RefKind

UPDATE_COLUMNS = (
    *(column for column in ref_updates.c if column.name != "facts"),
    deliveries.c.pusher,
    deliveries.c.repository,
    deliveries.c.received_at,
)
"""A ref update and the facts of its delivery, without `facts`, which may be large."""


_DUE: Mapping[str, Any] = {"tries": 0, "due_at": None}

_MINE = leases.c.connection == bindparam("of")
_IS_OWNER = leases.c.owner == bindparam("by")
_AS_OWNER = select(leases.c.connection).where(_MINE, _IS_OWNER).with_for_update()
_WAITING_UPDATE = select(ref_updates.c.seq).where(is_pending, ref_updates.c.connection == bindparam("of"))
_RENEW = update(leases).where(_MINE, _IS_OWNER).values(expires_at=bindparam("until", type_=Instant))
_RELEASE = (
    update(leases)
    .where(_MINE, _IS_OWNER)
    .values(
        owner=None,
        expires_at=None,
        attempts=0,
        due_at=ready_queue.NOW,
        ready_at=case((_WAITING_UPDATE.exists(), ready_queue.NOW)),
    )
)
# Built once: building one takes longer than running it.
_PENDING = (
    select(*UPDATE_COLUMNS)
    .join(deliveries, deliveries.c.id == ref_updates.c.delivery)
    .where(ref_updates.c.connection == bindparam("of"), is_pending)
    .order_by(ref_updates.c.seq)
    .limit(bindparam("most"))
)
_READY = _PENDING.where(is_ready(bindparam("of")))
_SETTLE = (
    update(ref_updates)
    .where(ref_updates.c.seq == bindparam("of"), ref_updates.c.state == "pending")
    .values(
        state=bindparam("ended"),
        # If it becomes pending again, that is new.
        queued=False,
        reason=bindparam("why"),
        settled_at=bindparam("now"),
        verdicts=bindparam("results"),
        peeled=func.coalesce(bindparam("led_to", type_=ref_updates.c.peeled.type), ref_updates.c.peeled),
        facts=bindparam("inputs"),
        fetched_at=bindparam("fetched"),
        author_key=bindparam("author"),
    )
)


class LeaseLost(StoreUnavailable):
    """Another worker has taken over the connection. Nothing is recorded for this worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """A pending ref update, with the facts of its delivery.

    `generation` is its place among the moves of its ref; `repository` is the repository as the payload
    describes it; `tries` counts the failures of this update alone.
    """

    seq: int
    connection: str
    delivery: str
    ref: str
    kind: RefKind
    name: str
    before: str | None
    after: str | None
    action: Action
    generation: int
    pusher: str | None
    repository: Mapping[str, Any]
    received_at: datetime
    pull_request: Mapping[str, Any] | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The final state of a ref update, its execution requests, and the verdict of each trigger.

    A verdict includes the `failure` that prevented its request, if any. `events` are the events to publish;
    `peeled` is the commit of an annotated tag; `author` is that of the commit, with the address; `facts` are
    the inputs of the plan; `fetched_at` is when the commit was in the mirror, None if it was not needed.
    `statuses` are the verdicts to show at the provider, None if the connection shows none.
    """

    update: PendingUpdate
    state: UpdateState
    reason: str
    requests: tuple[NewRequest, ...] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    events: tuple[NewEvent, ...] = ()
    peeled: str | None = None
    author: str | None = None
    facts: bytes | None = None
    fetched_at: datetime | None = None
    statuses: tuple[Expected, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponement:
    """A ref update that is retried later, while others of its connection proceed."""

    update: PendingUpdate
    due_at: datetime
    reason: str


def pending(
    conn: sqlalchemy.Connection,
    connection: str,
    *,
    limit: int,
    now: datetime | None = None,
    without: Collection[str] = (),
) -> list[PendingUpdate]:
    """Return the pending ref updates of a connection in order of arrival, except the refs in `without`.

    With `now`, leave out postponed updates and the updates behind them.
    """
    query = _PENDING if now is None else _READY
    if without:
        query = query.where(ref_updates.c.ref.not_in(without))
    moment = {} if now is None else ready_queue.times(now)
    rows = conn.execute(query, {**moment, "of": connection, "most": limit})
    return [pending_update(row) for row in rows]


def pending_update(row: Row[Any]) -> PendingUpdate:
    """Return the ref update in a row of `UPDATE_COLUMNS`."""
    return from_row(PendingUpdate, row, repository=row.repository or {})


def renew(conn: sqlalchemy.Connection, connection: str, *, owner: str, until: datetime) -> None:
    """Extend the lease. Raise `LeaseLost`."""
    renewed = conn.execute(_RENEW, {"of": connection, "by": owner, "until": until})
    _check(renewed.rowcount == 1, connection)


def settle(
    conn: sqlalchemy.Connection,
    connection: str,
    settlements: Sequence[Settlement],
    *,
    owner: str,
    now: datetime,
    postponed: Sequence[Postponement] = (),
    ends_turn: bool = False,
) -> None:
    """Record settlements with their requests and events in one transaction, which fills the outboxes.

    Record the postponed updates with them, and release the lease if this `ends_turn`. Raise `LeaseLost` if
    another worker has taken over the connection.
    """
    _as_owner(conn, connection, owner)
    superseding: set[str] = set()
    for settlement in settlements:
        update_seq = settlement.update.seq
        changed = conn.execute(
            _SETTLE,
            {
                "of": update_seq,
                "ended": settlement.state,
                "why": storable(settlement.reason),
                "now": now,
                "results": settlement.verdicts,
                "led_to": settlement.peeled,
                "inputs": settlement.facts,
                "fetched": settlement.fetched_at,
                "author": person_key(settlement.author),
            },
        )
        if changed.rowcount and settlement.requests:
            executions.add(conn, settlement.requests, ref_update=update_seq, now=now)
            superseding |= _supersede(conn, settlement)
        if changed.rowcount:
            events.add(conn, settlement.events, now=now)
            unexecuted.add_unplanned(
                conn,
                update_seq,
                state=settlement.state,
                reason=settlement.reason,
                verdicts=settlement.verdicts,
                planned={request.trigger for request in settlement.requests},
            )
        if changed.rowcount and settlement.statuses is not None:
            _expect_statuses(conn, connection, settlement, settlement.statuses, now=now)
    for postponement in postponed:
        conn.execute(
            update(ref_updates)
            .where(ref_updates.c.seq == postponement.update.seq, ref_updates.c.state == "pending")
            .values(
                reason=storable(postponement.reason),
                due_at=postponement.due_at,
                tries=ref_updates.c.tries + 1,
            )
        )
    _store_outcomes(conn, settlements, superseding)
    if any(settlement.state == "planned" and settlement.update.after for settlement in settlements):
        platforms.make_due(conn, connection, now=now)
    if ends_turn:
        release(conn, connection, owner=owner, now=now)


def _store_outcomes(
    conn: sqlalchemy.Connection, settlements: Sequence[Settlement], superseding: Collection[str]
) -> None:
    """Store the outcomes of the settled deliveries, and of those whose requests were superseded."""
    ended = {settlement.update.delivery: False for settlement in settlements}
    for settlement in settlements:
        ended[settlement.update.delivery] |= outcomes.has_failed(settlement.state, settlement.verdicts)
    outcomes.end_updates(conn, ended)
    if superseding:
        outcomes.follow_requests(conn, execution_tables.executions.c.superseded_by.in_(superseding))


def _expect_statuses(
    conn: sqlalchemy.Connection,
    connection: str,
    settlement: Settlement,
    expected: Sequence[Expected],
    *,
    now: datetime,
) -> None:
    """Make the verdicts of a ref update due."""
    commit = settlement.peeled or settlement.update.after
    # Only of a commit that was fetched are there verdicts of triggers.
    is_fetched = settlement.state == "planned" or bool(settlement.verdicts)
    if is_fetched and commit is not None:
        contexts = [one.context for one in expected]
        delivery = settlement.update.delivery
        commit_statuses.end_failures(conn, connection, commit=commit, delivery=delivery, contexts=contexts)
    commit_statuses.expect(conn, connection, expected, now=now)


def _supersede(conn: sqlalchemy.Connection, settlement: Settlement) -> set[str]:
    """Keep one pending request of each `latest` trigger: that of the ref's latest move.

    Return the requests that supersede others.
    """
    latest = [request for request in settlement.requests if request.is_latest_only]
    if not latest:
        return set()
    # A reconciliation may have raised the generation since the worker read it.
    query = select(ref_updates.c.generation).where(ref_updates.c.seq == settlement.update.seq)
    generation = conn.execute(query).scalar_one()
    return {
        supersession.supersede(
            conn,
            request,
            ref=settlement.update.ref,
            generation=generation,
            commit=settlement.peeled or settlement.update.after,
        )
        for request in latest
    }


def replay(conn: sqlalchemy.Connection, delivery: str, *, now: datetime) -> None:
    """Make the settled ref updates of a delivery pending again, except duplicates.

    Keep each settlement as an attempt.
    """
    moved = ref_updates.c.delivery == delivery, ref_updates.c.state.in_(REPLAYABLE)
    # The lock lets the second of two simultaneous replays find nothing to do.
    conn.execute(select(ref_updates.c.seq).where(*moved).with_for_update()).all()
    earlier = select(func.count()).where(update_attempts.c.ref_update == ref_updates.c.seq)
    ended = select(
        ref_updates.c.seq,
        earlier.scalar_subquery() + 1,
        ref_updates.c.state,
        ref_updates.c.reason,
        ref_updates.c.settled_at,
        ref_updates.c.verdicts,
        literal(now, Instant),
    ).where(*moved)
    columns = ["ref_update", "number", "state", "reason", "settled_at", "verdicts", "replayed_at"]
    conn.execute(insert(update_attempts).from_select(columns, ended))
    conn.execute(
        update(ref_updates)
        .where(*moved)
        .values(state="pending", queued=False, reason=None, settled_at=None, verdicts=None, **_DUE)
    )
    outcomes.refresh(conn, [delivery])
    mine = select(deliveries.c.connection).where(deliveries.c.id == delivery).scalar_subquery()
    conn.execute(update(leases).where(leases.c.connection == mine).values(due_at=now))


def release(conn: sqlalchemy.Connection, connection: str, *, owner: str, now: datetime) -> None:
    """Release the lease; remaining work goes to the back of the queue. Raise `LeaseLost`."""
    released = conn.execute(_RELEASE, {"of": connection, "by": owner, "now": now})
    _check(released.rowcount == 1, connection)


def give_back(conn: sqlalchemy.Connection, connection: str, *, owner: str, now: datetime) -> None:
    """Release the lease during a try, which counts as neither success nor failure.

    Do nothing if it was released already, or if another worker has taken over the connection.
    """
    mine = leases.c.connection == connection, leases.c.owner == owner
    given_back = {"owner": None, "expires_at": None, "due_at": now, "ready_at": now}
    conn.execute(update(leases).where(*mine).values(given_back))


def postpone(
    conn: sqlalchemy.Connection,
    connection: str,
    updates: Sequence[PendingUpdate],
    *,
    owner: str,
    due_at: datetime,
    reason: str,
) -> None:
    """Release the lease after a failed try, and record the reason on the updates. Raise `LeaseLost`."""
    _as_owner(conn, connection, owner)
    conn.execute(
        update(leases)
        .where(leases.c.connection == connection)
        .values(owner=None, expires_at=None, attempts=leases.c.attempts + 1, due_at=due_at, ready_at=due_at)
    )
    record_progress(conn, updates, reason)


def record_progress(conn: sqlalchemy.Connection, updates: Sequence[PendingUpdate], reason: str) -> None:
    """Record the progress of ref updates as their reason."""
    conn.execute(
        update(ref_updates)
        .where(ref_updates.c.seq.in_([one.seq for one in updates]), ref_updates.c.state == "pending")
        .values(reason=storable(reason))
    )


def take_over_everything(conn: sqlalchemy.Connection, *, now: datetime) -> None:
    """End all leases: an embedded store has one process, and its predecessor is dead.

    Its work and the reconciliations that it had claimed are due at once.
    """
    ended = {"owner": None, "expires_at": now, "ready_at": now}
    conn.execute(update(leases).where(leases.c.owner.is_not(None)).values(ended))
    held = reconciliations.c.held_until.is_not(None)
    conn.execute(update(reconciliations).where(held).values(due_at=now, held_until=None))


def take_over(conn: sqlalchemy.Connection, process: str, *, now: datetime) -> None:
    """End the leases of the dead process that had this name before."""
    mine = leases.c.owner.is_not(None), leases.c.process == process
    conn.execute(update(leases).where(*mine).values(owner=None, expires_at=now, ready_at=now))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The waiting work of the whole store. The `oldest…` fields say since when the oldest items wait."""

    updates: int
    oldest: datetime | None
    requests: int
    events: int
    oldest_request: datetime | None = None
    oldest_event: datetime | None = None


def backlog(conn: sqlalchemy.Connection) -> Backlog:
    """Count the waiting work. The cost depends on that alone, not on the settled records."""
    count = conn.execute(select(func.count()).select_from(ref_updates).where(is_pending)).scalar_one()
    waits = waiting()
    oldest = select(func.min(oldest_arrival(waits))).select_from(waits)
    is_unpublished = execution_tables.executions.c.state == literal_column("'pending'")
    requests = select(func.count()).select_from(execution_tables.executions).where(is_unpublished)
    waits_since = func.coalesce(
        execution_tables.executions.c.republished_at, execution_tables.executions.c.planned_at
    )
    first = select(waits_since).where(is_unpublished).order_by(execution_tables.executions.c.seq)
    first_event = select(tables.events.c.settled_at).order_by(tables.events.c.seq)
    return Backlog(
        updates=count,
        oldest=conn.execute(oldest).scalar(),
        requests=conn.execute(requests).scalar_one(),
        events=conn.execute(select(func.count()).select_from(tables.events)).scalar_one(),
        oldest_request=conn.execute(first.limit(1)).scalar(),
        oldest_event=conn.execute(first_event.limit(1)).scalar(),
    )


def attempts(conn: sqlalchemy.Connection, connection: str) -> int:
    """Return how many consecutive tries have failed."""
    query = select(leases.c.attempts).where(leases.c.connection == connection)
    found: int = conn.execute(query).scalar_one()
    return found


def make_due(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Make a postponed connection and its postponed updates due now, after a change of the connection."""
    conn.execute(
        update(leases).where(leases.c.connection == connection, leases.c.attempts > 0).values(due_at=now)
    )
    put_off = ref_updates.c.connection == connection, ref_updates.c.due_at.is_not(None)
    conn.execute(update(ref_updates).where(*put_off, is_pending).values(_DUE))
    ready_queue.recheck(conn, connection, now=now)


def _as_owner(conn: sqlalchemy.Connection, connection: str, owner: str) -> None:
    _check(conn.execute(_AS_OWNER, {"of": connection, "by": owner}).one_or_none() is not None, connection)


def _check(is_owner: bool, connection: str) -> None:
    if not is_owner:
        raise LeaseLost(f"another worker has taken over connection {connection}")
