"""Reconciliations: when a connection's refs are compared with the remote's, and the outcome.

Every connection has one row. A process that claims a due reconciliation postpones the next one by a lease, so
that one process reconciles at a time, and another takes over when that process dies.

A move that a first look finds counts only after a second look has confirmed it: the first look may have come
between a push and its webhook, or read a replica that lags. `gateway.store.ref_history` interprets sightings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import Select, func, or_, select, update

from gateway.store import accept
from gateway.store import connections as connection_records
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.claims import held_of_host
from gateway.store.database import Lock
from gateway.store.histories import Key, load_moves, lock_connections, read_histories, write_histories
from gateway.store.ref_gaps import is_order_assumed, load_gaps
from gateway.store.ref_history import RefHistory
from gateway.store.rows import from_row
from gateway.store.tables import connections, deliveries, reconciliations, refs
from gateway.text.escape import storable
from providers.model import RefUpdate

MAX_INTERVAL_FACTOR = 12
"""The longest delay between two reconciliations, as a multiple of the ordinary delay."""

MAX_DELAY = timedelta(hours=30)
"""The longest delay of a reconciliation, with any settings."""

_MAX_EASED_DELAY = timedelta(days=1)
_PART = 5000
_NONE: Mapping[str, str | None] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """A reconciliation that is claimed until `due_at`.

    `asked` is True if it was requested; `asked_by` is the delivery that reported a push without its refs.
    `is_first` is True if nothing is known of the remote yet, so that its refs are learned instead of planned.
    `seen` holds the moves that earlier looks saw, by ref: from where, to where, and from when on a second
    look confirms the move.
    """

    connection: str
    claimed_at: datetime
    due_at: datetime
    asked: bool
    asked_by: str | None
    attempts: int
    is_first: bool
    seen: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationState:
    """The state of a connection's reconciliations.

    `delivery` records the findings of the last successful reconciliation, if any. `reason` is why none has
    succeeded since. `tried_at` is the beginning of the last reconciliation that has ended.
    """

    due_at: datetime
    tried_at: datetime | None
    reconciled_at: datetime | None
    delivery: str | None
    reason: str | None


def is_due(conn: sqlalchemy.Connection, *, now: datetime, longest: timedelta = MAX_DELAY) -> bool:
    """Return whether a reconciliation is due. It waits for no writer."""
    return any(conn.execute(query).first() is not None for query in _due(now, longest, per_host=0))


def claim(
    conn: sqlalchemy.Connection,
    *,
    now: datetime,
    until: datetime,
    longest: timedelta = MAX_DELAY,
    per_host: int = 0,
) -> Reconciliation | None:
    """Claim the reconciliation that has been overdue longest; None if none is due.

    A due time further ahead than `longest` was set by a wrong clock, and counts as due. At most `per_host`
    fetches and reconciliations of a git host run at once; 0 means no limit.
    """
    if per_host and conn.dialect.name != "sqlite":
        # What is counted here must still be true at the end.
        conn.execute(select(func.pg_advisory_xact_lock(Lock.CLAIM.value)))
    for query in _due(now, longest, per_host):
        row = conn.execute(query.with_for_update(skip_locked=True, of=reconciliations)).one_or_none()
        if row is not None:
            break
    else:
        return None
    held = update(reconciliations).where(reconciliations.c.connection == row.connection)
    conn.execute(held.values(due_at=until, held_until=until))
    return from_row(
        Reconciliation,
        row,
        claimed_at=now,
        due_at=until,
        is_first=row.reconciled_at is None,
        seen=row.seen or {},
    )


def known_refs(conn: sqlalchemy.Connection, connection: str) -> dict[str, str | None]:
    """Return the last known position of each ref of a connection, None for a deleted ref."""
    query = select(refs.c.ref, refs.c.after).where(refs.c.connection == connection)
    return {row.ref: row.after for row in conn.execute(query)}


def record(
    conn: sqlalchemy.Connection,
    reconciliation: Reconciliation,
    new: NewDelivery,
    *,
    next_at: datetime,
    look_again_at: datetime | None = None,
    agreeing: Mapping[str, str | None] = _NONE,
) -> Receipt | None:
    """End a reconciliation: record what it found, except what deliveries have reported since it began.

    Return None if nothing is left to record. `new` has a ref update for each ref that was not at its
    known position when the reconciliation began; `agreeing` has the other refs, with their positions. A move
    that needs a second look is left to one at `look_again_at`; None means that no move needs one. `next_at`
    is when the next reconciliation is due at the earliest: it is postponed further while webhooks report
    every move. The first reconciliation only learns the positions of refs that no webhook has reported: they
    were not pushed.
    """
    lock_connections(conn, [reconciliation.connection])
    moves = {(reconciliation.connection, move.ref): move for move in new.updates}
    histories = read_histories(conn, moves)
    # Skip refs that a webhook has reported since the look began: the look may be older than the webhook.
    still = {key: one for key, one in histories.items() if one.after == moves[key].before}
    wanted = {key: one.ids_of_interest(moves[key]) for key, one in still.items()}
    load_moves(conn, wanted, still)
    sightings = _sightings(reconciliation, moves, still, now=new.received_at, confirmed_from=look_again_at)
    _place(conn, reconciliation, sightings.promoted, still, now=new.received_at)
    receipt = None
    if sightings.learned:
        learned = {
            key: still[key] for key in ((reconciliation.connection, move.ref) for move in sightings.learned)
        }
        for (_, ref), history in learned.items():
            history.learn(moves[reconciliation.connection, ref].after)
        write_histories(conn, learned)
    if sightings.found:
        [receipt] = accept.record(conn, [replace(new, updates=tuple(sightings.found))])
    doubtful, has_agreed = _confirm(
        conn, reconciliation, agreeing, now=new.received_at, confirmed_from=look_again_at
    )
    shown = {**agreeing, **{move.ref: move.after for move in new.updates}}
    connection_records.relearn(conn, reconciliation.connection, shown)
    waits = reconciliation.asked and bool(sightings.unsure)
    if not waits:
        _answer(conn, reconciliation, receipt)
    agreed = _agreed(conn, reconciliation, receipt, has_agreed=has_agreed)
    unsure = {**sightings.unsure, **doubtful}
    done: dict[str, Any] = {"attempts": 0, "reason": None, "agreed": agreed, "seen": unsure or None}
    if not waits:
        done |= {"reconciled_at": new.received_at, "tried_at": reconciliation.claimed_at}
        done["delivery"] = receipt.delivery if receipt else None
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == reconciliation.connection)
        .values(**done)
    )
    if unsure and look_again_at is not None:
        _put_off(conn, reconciliation, next_at=look_again_at, asked=waits)
    else:
        rare = _eased(next_at - new.received_at, agreed)
        _put_off(conn, reconciliation, next_at=new.received_at + rare, asked=False)
    return receipt


@dataclass(slots=True)
class _Sightings:
    """The moves of a look, by their meaning. `unsure` are those that a second look must confirm."""

    learned: list[RefUpdate] = field(default_factory=list)
    found: list[RefUpdate] = field(default_factory=list)
    promoted: list[RefUpdate] = field(default_factory=list)
    unsure: dict[str, Sequence[str | None]] = field(default_factory=dict)


def _sightings(
    reconciliation: Reconciliation,
    moves: Mapping[Key, RefUpdate],
    histories: Mapping[Key, RefHistory],
    *,
    now: datetime,
    confirmed_from: datetime | None,
) -> _Sightings:
    found = _Sightings()
    for key, history in histories.items():
        move = moves[key]
        means = history.sighting(move.after, now=now)
        if means == "lagging" or (reconciliation.is_first and history.is_awaited(now=now)):
            continue
        if reconciliation.is_first and not history.is_only_reported:
            found.learned.append(move)
            continue
        # A requested reconciliation takes a move to a new commit at once; a move back must be confirmed.
        is_new = means == "moved" and move.after is not None and not history.was_at(move.after)
        is_sure = reconciliation.asked and is_new
        since = (
            None if is_sure else _since(reconciliation, move.ref, (move.before, move.after), confirmed_from)
        )
        if since is not None and now < since:
            found.unsure[move.ref] = [move.before, move.after, since.isoformat()]
        elif means == "promoted":
            found.promoted.append(move)
        else:
            found.found.append(move)
    return found


def _since(
    reconciliation: Reconciliation,
    ref: str,
    move: tuple[str | None, str | None],
    confirmed_from: datetime | None,
) -> datetime | None:
    """Return from when on a look confirms a move; a request in the meantime does not change that."""
    *seen, since = reconciliation.seen.get(ref) or (None,)
    if confirmed_from is None or since is None or tuple(seen) != move:
        return confirmed_from
    return min(confirmed_from, datetime.fromisoformat(since))


def _place(
    conn: sqlalchemy.Connection,
    reconciliation: Reconciliation,
    promoted: Sequence[RefUpdate],
    histories: Mapping[Key, RefHistory],
    *,
    now: datetime,
) -> None:
    """Correct positions whose order was assumed, as the remote shows them."""
    changed = {}
    for move in promoted:
        key = (reconciliation.connection, move.ref)
        histories[key].promote(move.after, now=now)
        changed[key] = histories[key]
    write_histories(conn, changed)


def _confirm(
    conn: sqlalchemy.Connection,
    reconciliation: Reconciliation,
    agreeing: Mapping[str, str | None],
    *,
    now: datetime,
    confirmed_from: datetime | None,
) -> tuple[dict[str, Sequence[str | None]], bool]:
    """Record the positions that the remote has shown; return those that a second look must confirm.

    A second look is needed if the order of moves was assumed: a replica that lags may show an older position.
    The flag is True if a webhook had reported one of the positions.
    """
    unseen = or_(refs.c.shown.is_(None), refs.c.shown != refs.c.generation)
    columns = (refs.c.ref, refs.c.after, refs.c.delivery, refs.c.shown, refs.c.shown_id, refs.c.gaps)
    query = select(*columns).where(refs.c.connection == reconciliation.connection, unseen)
    shown: list[str] = []
    doubtful: dict[str, Sequence[str | None]] = {}
    has_agreed = False
    for row in conn.execute(query):
        if row.ref not in agreeing or agreeing[row.ref] != row.after:
            continue
        since = None
        if is_order_assumed(load_gaps(row.gaps), shown=row.shown, shown_id=row.shown_id):
            since = _since(reconciliation, row.ref, (row.after, row.after), confirmed_from)
        if since is not None and now < since:
            doubtful[row.ref] = [row.after, row.after, since.isoformat()]
            continue
        shown.append(row.ref)
        has_agreed = has_agreed or row.delivery is not None
    for start in range(0, len(shown), _PART):
        conn.execute(
            update(refs)
            .where(
                refs.c.connection == reconciliation.connection, refs.c.ref.in_(shown[start : start + _PART])
            )
            .values(shown=refs.c.generation, shown_id=refs.c.after)
        )
    return doubtful, has_agreed


def _answer(conn: sqlalchemy.Connection, reconciliation: Reconciliation, receipt: Receipt | None) -> None:
    """Record the outcome as the reason of the delivery that requested the reconciliation."""
    if reconciliation.asked_by is None:
        return
    outcome = f"delivery {receipt.delivery} has what was found" if receipt else "nothing had moved"
    if reconciliation.is_first:
        outcome = "this was the first look, so it is unknown what has moved"
    conn.execute(
        update(deliveries)
        .where(deliveries.c.id == reconciliation.asked_by)
        .values(reason=f"all refs were compared with the remote's: {outcome}")
    )
    # Another delivery may have requested one meanwhile: its request stays.
    mine = (
        reconciliations.c.connection == reconciliation.connection,
        reconciliations.c.asked_by == reconciliation.asked_by,
    )
    conn.execute(update(reconciliations).where(*mine).values(asked_by=None))


def _agreed(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, receipt: Receipt | None, *, has_agreed: bool
) -> int:
    """Return how many consecutive looks have confirmed the reports of webhooks, and found nothing else."""
    if receipt is not None:
        return 0
    query = select(reconciliations.c.agreed).where(reconciliations.c.connection == reconciliation.connection)
    before: int = conn.execute(query).scalar_one()
    return before + 1 if has_agreed else before


def _eased(delay: timedelta, agreed: int) -> timedelta:
    """Return the delay before the next look: doubled after each look that agreed, up to a limit."""
    rare = delay * min(1 << min(agreed, 8), MAX_INTERVAL_FACTOR)
    return max(delay, min(rare, _MAX_EASED_DELAY))


def fail(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, reason: str, *, next_at: datetime
) -> None:
    """Postpone a failed reconciliation, and record why on the delivery that requested it."""
    reason = storable(reason)
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == reconciliation.connection)
        .values(attempts=reconciliation.attempts + 1, tried_at=reconciliation.claimed_at, reason=reason)
    )
    _put_off(conn, reconciliation, next_at=next_at, asked=reconciliation.asked)
    if reconciliation.asked_by is not None:
        conn.execute(
            update(deliveries)
            .where(deliveries.c.id == reconciliation.asked_by)
            .values(reason=f"all refs will be compared with the remote's; this has failed so far: {reason}")
        )


def request(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Request a reconciliation of a connection now."""
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == connection)
        .values(due_at=now, asked=True)
    )


def start_over(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Request a first reconciliation of a connection now, because it has another remote."""
    request(conn, connection, now=now)
    unknown = {"reconciled_at": None, "seen": None, "agreed": 0}
    conn.execute(update(reconciliations).where(reconciliations.c.connection == connection).values(**unknown))
    is_it = connections.c.id == connection
    conn.execute(update(connections).where(is_it).values(other_repository=None))
    # The known positions are those of the other remote: none is missing, and none has still to be shown.
    forgotten = {"shown": refs.c.generation, "shown_id": refs.c.after, "gaps": None}
    conn.execute(update(refs).where(refs.c.connection == connection).values(**forgotten))


def give_back(conn: sqlalchemy.Connection, reconciliation: Reconciliation, *, now: datetime) -> None:
    """Release a claimed reconciliation to other processes."""
    _put_off(conn, reconciliation, next_at=now, asked=reconciliation.asked)


def states(conn: sqlalchemy.Connection, of: Sequence[str]) -> dict[str, ReconciliationState]:
    """Return the state of each connection's reconciliations."""
    rows = conn.execute(select(reconciliations).where(reconciliations.c.connection.in_(of)))
    return {row.connection: from_row(ReconciliationState, row) for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A connection whose last reconciliation failed; `due_at` is the time of the next."""

    connection: str
    name: str
    reason: str
    due_at: datetime


def failing(conn: sqlalchemy.Connection, *, limit: int) -> list[Failing]:
    """Return up to `limit` connections whose last reconciliation has failed, by name."""
    rows = conn.execute(
        select(
            connections.c.id.label("connection"),
            connections.c.name,
            reconciliations.c.reason,
            reconciliations.c.due_at,
        )
        .join(reconciliations, reconciliations.c.connection == connections.c.id)
        .where(reconciliations.c.reason.is_not(None), connections.c.deleted_at.is_(None))
        .order_by(connections.c.name, connections.c.id)
        .limit(limit)
    )
    return [from_row(Failing, row) for row in rows]


def _due(now: datetime, longest: timedelta, per_host: int) -> list[Select[Any]]:
    """Return the queries for a due reconciliation, and for one that a wrong clock has postponed too far.

    These are two queries so that each uses the index.
    """
    query = (
        select(reconciliations)
        .join(connections, connections.c.id == reconciliations.c.connection)
        .where(connections.c.deleted_at.is_(None))
        .limit(1)
    )
    if per_host:
        query = query.where(held_of_host(now) < per_host)
    return [
        query.where(reconciliations.c.due_at <= now).order_by(reconciliations.c.due_at),
        query.where(reconciliations.c.due_at > now + longest).order_by(reconciliations.c.due_at.desc()),
    ]


def _put_off(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, *, next_at: datetime, asked: bool
) -> None:
    """Set when the next reconciliation is due, unless one was requested since this one was claimed."""
    mine = reconciliations.c.connection == reconciliation.connection
    conn.execute(
        update(reconciliations)
        .where(mine, reconciliations.c.held_until == reconciliation.due_at)
        .values(held_until=None)
    )
    conn.execute(
        update(reconciliations)
        .where(mine, reconciliations.c.due_at == reconciliation.due_at)
        .values(due_at=next_at, asked=asked)
    )
