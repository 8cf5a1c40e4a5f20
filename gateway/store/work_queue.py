"""Pending ref updates and the leases under which they are worked on, one connection at a time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Row, func, insert, literal, literal_column, select, update

from gateway.errors import StoreUnavailable
from gateway.store import connections, events, executions, platforms, supersession, tables
from gateway.store.claims import Claims, is_pending, is_ready, oldest_arrival, waiting
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.deliveries import REPLAYABLE, UpdateState
from gateway.store.events import NewEvent
from gateway.store.executions import NewRequest
from gateway.store.tables import Instant, deliveries, leases, reconciliations, ref_updates, update_attempts
from gateway.text.escape import storable
from providers.model import Action, RefKind

UPDATE_COLUMNS = (
    *(column for column in ref_updates.c if column.name != "facts"),
    deliveries.c.pusher,
    deliveries.c.repository,
    deliveries.c.received_at,
)
"""A ref update with what its delivery says of it, without what it was planned from: that may be large."""


_DUE: Mapping[str, Any] = {"tries": 0, "due_at": None}


class LeaseLost(StoreUnavailable):
    """Another worker has taken the connection over; what this one was about to record is not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """A ref update that waits, with what its delivery says of it.

    `generation` counts the moves of its ref; `repository` is the repository as the payload describes it;
    `tries` are those that have failed over this update alone.
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
    """The end of a ref update, the execution requests that came out of it, and each trigger's verdict.

    A verdict is told with the `failure` that kept its request from being made, if one did.
    `events` is what is told of it to those who asked for that; `peeled` is the commit that an annotated tag
    leads to; `facts` is what was planned from.
    """

    update: PendingUpdate
    state: UpdateState
    reason: str
    requests: tuple[NewRequest, ...] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    events: tuple[NewEvent, ...] = ()
    peeled: str | None = None
    facts: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponement:
    """A ref update that cannot be carried to its end before a later try; others of its connection can."""

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
    """Return the pending ref updates of a connection in order of arrival, but for the refs in `without`.

    With `now`, those that were put off until later, and what waits for them, are left out.
    """
    query = (
        select(*UPDATE_COLUMNS)
        .join(deliveries, deliveries.c.id == ref_updates.c.delivery)
        .where(ref_updates.c.connection == connection, is_pending)
        .order_by(ref_updates.c.seq)
        .limit(limit)
    )
    if now is not None:
        query = query.where(is_ready(connection, now=now))
    if without:
        query = query.where(ref_updates.c.ref.not_in(without))
    return [pending_update(row) for row in conn.execute(query)]


def pending_update(row: Row[Any]) -> PendingUpdate:
    """Return the ref update that a row of `UPDATE_COLUMNS` holds."""
    return PendingUpdate(
        seq=row.seq,
        connection=row.connection,
        delivery=row.delivery,
        ref=row.ref,
        kind=row.kind,
        name=row.name,
        before=row.before,
        after=row.after,
        action=row.action,
        generation=row.generation,
        pusher=row.pusher,
        repository=row.repository or {},
        received_at=row.received_at,
        pull_request=row.pull_request,
        tries=row.tries,
    )


def renew(conn: sqlalchemy.Connection, connection: str, *, owner: str, until: datetime) -> None:
    """Keep the lease for longer. Raises `LeaseLost`."""
    _as_owner(conn, connection, owner)
    conn.execute(update(leases).where(leases.c.connection == connection).values(expires_at=until))


def settle(
    conn: sqlalchemy.Connection,
    connection: str,
    settlements: Sequence[Settlement],
    *,
    owner: str,
    now: datetime,
    postponed: Sequence[Postponement] = (),
) -> None:
    """Record how ref updates ended, and their requests and events, as one: this is what fills the outboxes.

    With them goes which updates are put off, each by itself. Raises `LeaseLost` where another worker has the
    connection by now.
    """
    _as_owner(conn, connection, owner)
    for settlement in settlements:
        which = settlement.update.seq
        changed = conn.execute(
            update(ref_updates)
            .where(ref_updates.c.seq == which, ref_updates.c.state == "pending")
            .values(
                state=settlement.state,
                reason=storable(settlement.reason),
                settled_at=now,
                verdicts=settlement.verdicts,
                peeled=func.coalesce(settlement.peeled, ref_updates.c.peeled),
                facts=settlement.facts,
            )
        )
        if changed.rowcount and settlement.requests:
            executions.add(conn, settlement.requests, ref_update=which, now=now)
            _supersede(conn, settlement)
        if changed.rowcount:
            events.add(conn, settlement.events, now=now)
    for one in postponed:
        conn.execute(
            update(ref_updates)
            .where(ref_updates.c.seq == one.update.seq, ref_updates.c.state == "pending")
            .values(reason=storable(one.reason), due_at=one.due_at, tries=ref_updates.c.tries + 1)
        )
    if any(settlement.state == "planned" and settlement.update.after for settlement in settlements):
        platforms.ask(conn, connection, now=now)


def _supersede(conn: sqlalchemy.Connection, settlement: Settlement) -> None:
    """Leave one request of each `latest` trigger to be published: that of the ref's latest move."""
    latest = [request for request in settlement.requests if request.is_latest_only]
    if not latest:
        return
    # Since the worker read it, the remote may have shown that the move comes later than it was taken for.
    query = select(ref_updates.c.generation).where(ref_updates.c.seq == settlement.update.seq)
    generation = conn.execute(query).scalar_one()
    for request in latest:
        supersession.supersede(
            conn,
            request,
            ref=settlement.update.ref,
            generation=generation,
            commit=settlement.peeled or settlement.update.after,
        )


def replay(conn: sqlalchemy.Connection, delivery: str, *, now: datetime) -> None:
    """Have the ref updates of a delivery fetched and planned again, but for those that were duplicates.

    How each of them had ended is kept as an attempt.
    """
    moved = ref_updates.c.delivery == delivery, ref_updates.c.state.in_(REPLAYABLE)
    # Locked, so that of two replays at once the second finds nothing left to do.
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
    anew = {"state": "pending", "reason": None, "settled_at": None, "verdicts": None, **_DUE}
    conn.execute(update(ref_updates).where(*moved).values(anew))
    mine = select(deliveries.c.connection).where(deliveries.c.id == delivery).scalar_subquery()
    conn.execute(update(leases).where(leases.c.connection == mine).values(due_at=now))


def release(conn: sqlalchemy.Connection, connection: str, *, owner: str, now: datetime) -> None:
    """Give the connection back, also with more to do; others that wait come first. Raises `LeaseLost`."""
    _as_owner(conn, connection, owner)
    conn.execute(
        update(leases)
        .where(leases.c.connection == connection)
        .values(owner=None, expires_at=None, attempts=0, due_at=now)
    )


def hand_back(conn: sqlalchemy.Connection, connection: str, *, owner: str, now: datetime) -> None:
    """Give the connection back in the middle of a try, which counts neither way. Raises `LeaseLost`."""
    _as_owner(conn, connection, owner)
    conn.execute(
        update(leases)
        .where(leases.c.connection == connection)
        .values(owner=None, expires_at=None, due_at=now)
    )


def postpone(
    conn: sqlalchemy.Connection,
    connection: str,
    updates: Sequence[PendingUpdate],
    *,
    owner: str,
    due_at: datetime,
    reason: str,
) -> None:
    """Give the connection back after a try that failed; the updates tell why. Raises `LeaseLost`."""
    _as_owner(conn, connection, owner)
    conn.execute(
        update(leases)
        .where(leases.c.connection == connection)
        .values(owner=None, expires_at=None, attempts=leases.c.attempts + 1, due_at=due_at)
    )
    tell(conn, updates, reason)


def tell(conn: sqlalchemy.Connection, updates: Sequence[PendingUpdate], reason: str) -> None:
    """Let ref updates that are being worked on say how it goes."""
    conn.execute(
        update(ref_updates)
        .where(ref_updates.c.seq.in_([one.seq for one in updates]), ref_updates.c.state == "pending")
        .values(reason=storable(reason))
    )


def take_over_everything(conn: sqlalchemy.Connection, *, now: datetime) -> None:
    """End the leases of a process that died: for an embedded store, which only one process works on.

    Its work, and the reconciliations that it had claimed, are due at once.
    """
    conn.execute(update(leases).where(leases.c.owner.is_not(None)).values(owner=None, expires_at=now))
    held = reconciliations.c.held_until.is_not(None)
    conn.execute(update(reconciliations).where(held).values(due_at=now, held_until=None))


def take_over(conn: sqlalchemy.Connection, process: str, *, now: datetime) -> None:
    """End the leases of the process that went by this name before, and is known to be dead."""
    mine = leases.c.owner.is_not(None), leases.c.process == process
    conn.execute(update(leases).where(*mine).values(owner=None, expires_at=now))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits in the whole store; the `oldest` say since when the ones that wait longest do."""

    updates: int
    oldest: datetime | None
    requests: int
    events: int
    oldest_request: datetime | None = None
    oldest_event: datetime | None = None


def backlog(conn: sqlalchemy.Connection) -> Backlog:
    """Count what waits; costs by how much that is, however much has ended."""
    count = conn.execute(select(func.count()).select_from(ref_updates).where(is_pending)).scalar_one()
    waits = waiting()
    oldest = select(func.min(oldest_arrival(waits))).select_from(waits)
    is_unpublished = tables.executions.c.state == literal_column("'pending'")
    requests = select(func.count()).select_from(tables.executions).where(is_unpublished)
    first = select(tables.executions.c.planned_at).where(is_unpublished).order_by(tables.executions.c.seq)
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
    """Return how many tries in a row have failed."""
    query = select(leases.c.attempts).where(leases.c.connection == connection)
    found: int = conn.execute(query).scalar_one()
    return found


def make_due(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Let a postponed connection, and what was put off of it, be tried now: something has changed."""
    conn.execute(
        update(leases).where(leases.c.connection == connection, leases.c.attempts > 0).values(due_at=now)
    )
    put_off = ref_updates.c.connection == connection, ref_updates.c.due_at.is_not(None)
    conn.execute(update(ref_updates).where(*put_off, is_pending).values(_DUE))


def _as_owner(conn: sqlalchemy.Connection, connection: str, owner: str) -> None:
    query = (
        select(leases.c.connection)
        .where(leases.c.connection == connection, leases.c.owner == owner)
        .with_for_update()
    )
    if conn.execute(query).one_or_none() is None:
        raise LeaseLost(f"another worker has taken over connection {connection}")


class WorkQueue:
    """The functions above as the worker calls them: each in a transaction of its own, off the event loop."""

    def __init__(self, database: Database, claims: Claims) -> None:
        """Take work from this database, as `claims` share it out."""
        self._database = database
        self._claims = claims

    async def claim(self, *, owner: str, now: datetime, until: datetime) -> str | None:
        """See `Claims.claim`. Looks first without waiting for the writers: mostly there is nothing."""
        if await self._database.read(self._claims.next, now=now) is None:
            return None
        return await self._database.write(self._claims.claim, owner=owner, now=now, until=until)

    def note(self, url: str, *, answers: bool, now: datetime) -> None:
        """See `SilentHosts.note`."""
        self._claims.silent.note(url, answers=answers, now=now)

    async def connection(self, connection: str) -> Connection:
        """See `connections.get`."""
        return await self._database.read(connections.get, connection_id=connection)

    async def pending(
        self, connection: str, *, limit: int, now: datetime | None = None, without: Collection[str] = ()
    ) -> list[PendingUpdate]:
        """See `pending`."""
        return await self._database.read(
            pending, connection=connection, now=now, limit=limit, without=without
        )

    async def attempts(self, connection: str) -> int:
        """See `attempts`."""
        return await self._database.read(attempts, connection=connection)

    async def tell(self, updates: Sequence[PendingUpdate], reason: str) -> None:
        """See `tell`."""
        await self._database.write(tell, updates=updates, reason=reason)

    async def renew(self, connection: str, *, owner: str, until: datetime) -> None:
        """See `renew`."""
        await self._database.write(renew, connection=connection, owner=owner, until=until)

    async def settle(
        self,
        connection: str,
        settlements: Sequence[Settlement],
        *,
        owner: str,
        now: datetime,
        postponed: Sequence[Postponement] = (),
    ) -> None:
        """See `settle`."""
        await self._database.write(
            settle,
            connection=connection,
            settlements=settlements,
            owner=owner,
            now=now,
            postponed=postponed,
        )

    async def release(self, connection: str, *, owner: str, now: datetime) -> None:
        """See `release`."""
        await self._database.write(release, connection=connection, owner=owner, now=now)

    async def hand_back(self, connection: str, *, owner: str, now: datetime) -> None:
        """See `hand_back`."""
        await self._database.write(hand_back, connection=connection, owner=owner, now=now)

    async def postpone(
        self,
        connection: str,
        updates: Sequence[PendingUpdate],
        *,
        owner: str,
        due_at: datetime,
        reason: str,
    ) -> None:
        """See `postpone`."""
        await self._database.write(
            postpone, connection=connection, updates=updates, owner=owner, due_at=due_at, reason=reason
        )
