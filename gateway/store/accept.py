"""Find the duplicates among new deliveries, and write them all.

`record` is the hot path. It takes the deliveries that are waiting as one batch, in a handful of statements.
`decide` finds, while no other transaction writes, what is new and what is a duplicate; `write` stores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
import zstandard
from sqlalchemy import bindparam, select, update

from gateway.store import other_repositories, outcomes, source_repositories
from gateway.store.bulk_sql import insert_rows, select_pairs
from gateway.store.deliveries import UpdateState, Verdict
from gateway.store.histories import Key, load_moves, lock_connections, parts, read_histories, write_histories
from gateway.store.other_repositories import OtherRepository
from gateway.store.outcomes import Outcome
from gateway.store.people import person_key
from gateway.store.ref_history import RefHistory
from gateway.store.ref_moves import Placement
from gateway.store.source_repositories import Seen
from gateway.store.tables import (
    connections,
    deliveries,
    reconciliations,
    ref_updates,
    secrets,
)
from providers.model import Event, RefUpdate, Rerun

# Keyed by pairs: see `select_pairs`.
_CLAIMED = (
    "SELECT connection, provider_delivery_id, id FROM {wanted}deliveries"
    " WHERE connection = first AND provider_delivery_id = second AND verdict = 'accepted'"
)

# By then, a burst of webhooks in the wrong order is complete.
_LOOK_AFTER = timedelta(seconds=5)

_USED = update(secrets).where(secrets.c.id == bindparam("which")).values(last_used_at=bindparam("moment"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A verified delivery that is not stored yet.

    `detail` holds the facts of an event beside its ref updates; `teaches` is a repository id that the
    connection lacks; `asks_for_reconciliation` is True if the delivery does not name what was pushed;
    `other_repository` is the repository that has taken the place of the connection's own at its address.
    `exchange` holds what is to be stored of the request beside its headers and body, and of the answer: the
    `hook`, the connection or source whose webhook received it, the address of the `client`, the lengths of
    the headers that are `withheld`, and the `status` of the answer; None where there was no request.
    `rerun` is what is to be executed again. `seen` is the repository of a source whose rules have to decide
    about it, `waits` the event if the delivery waits for that.
    """

    id: str
    connection: str
    source: str
    event: str
    provider_delivery_id: str | None
    received_at: datetime
    verdict: Verdict
    reason: str | None
    pusher: str | None
    repository: Mapping[str, Any] | None
    headers: Mapping[str, str]
    secret: int | None
    body: bytes
    updates: tuple[RefUpdate, ...]
    exchange: Mapping[str, Any] | None = None
    teaches: str | None = None
    detail: Mapping[str, Any] | None = None
    asks_for_reconciliation: bool = False
    other_repository: OtherRepository | None = None
    rerun: Rerun | None = None
    seen: Seen | None = None
    waits: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was decided about a delivery, once it is durable."""

    delivery: str
    verdict: Verdict
    reason: str | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Decision:
    """A batch of deliveries with their outcomes, and the rows to write.

    `histories` are the changed histories of refs; `looks` names the connections whose remote should be read,
    and when, because the order of their moves was only assumed.
    """

    batch: Sequence[NewDelivery]
    receipts: list[Receipt]
    update_rows: list[tuple[Any, ...]]
    histories: Mapping[Key, RefHistory]
    looks: Mapping[str, datetime]


def record(conn: sqlalchemy.Connection, batch: Sequence[NewDelivery]) -> list[Receipt]:
    """Store a batch of deliveries in order, and return the outcome of each."""
    decision = decide(conn, batch)
    write(conn, decision)
    return decision.receipts


def decide(conn: sqlalchemy.Connection, batch: Sequence[NewDelivery]) -> Decision:
    """Decide the outcome of each delivery of a batch, in order. Write nothing.

    A delivery is a duplicate if an accepted delivery had the same provider id, or if each of its updates was
    recorded before and does not begin at the present position of its ref. So A→B, B→A, A→B are three moves,
    and a redelivery adds none. `gateway.store.ref_history` has the rules.
    """
    # Whoever writes the repositories of a source locks the source, too.
    sources = {new.seen.source for new in batch if new.seen is not None}
    lock_connections(conn, {new.connection for new in batch} | sources)
    claimed = _claimed_ids(conn, batch)
    histories = read_histories(conn, {(new.connection, move.ref) for new in batch for move in new.updates})
    _load_first(conn, batch, histories)
    changed: dict[Key, RefHistory] = {}
    looks: dict[str, datetime] = {}
    receipts: list[Receipt] = []
    placed: list[_PlacedUpdate] = []
    for new in batch:
        moves, receipt = _decide_one(conn, new, claimed, histories)
        for move in moves:
            if move.placement is not None and move.placement.repeats is None:
                key = (new.connection, move.update.ref)
                changed[key] = histories[key]
                if move.placement.is_guess:
                    looks[new.connection] = new.received_at + _LOOK_AFTER
        placed += moves
        receipts.append(receipt)
    # A repetition may also have changed the gaps.
    changed |= {key: history for key, history in histories.items() if history.is_rewritten}
    return Decision(batch, receipts, [_update_row(move) for move in placed], changed, looks)


def write(conn: sqlalchemy.Connection, decision: Decision) -> None:
    """Write a decision in the transaction that made it. Read nothing."""
    # One compressor for the batch: to create it costs as much as to compress 8 KB.
    pack = zstandard.ZstdCompressor(level=1).compress
    packed = [pack(new.body) for new in decision.batch]
    rows = list(map(_delivery_row, decision.batch, decision.receipts, packed))
    insert_rows(conn, deliveries, rows)
    if decision.update_rows:
        insert_rows(conn, ref_updates, decision.update_rows)
    if decision.histories:
        write_histories(conn, decision.histories)
    for connection, due_at in decision.looks.items():
        later = reconciliations.c.connection == connection, reconciliations.c.due_at > due_at
        conn.execute(update(reconciliations).where(*later).values(due_at=due_at))
    _learn(conn, decision.batch)


@dataclass(frozen=True, slots=True)
class _PlacedUpdate:
    """A ref update of a new delivery, and its place; None if the delivery is a duplicate by its id."""

    new: NewDelivery
    update: RefUpdate
    placement: Placement | None
    reason: str | None

    @property
    def state(self) -> UpdateState:
        """The state in which it is stored."""
        return "pending" if self.reason is None else "duplicate"


def _decide_one(
    conn: sqlalchemy.Connection,
    new: NewDelivery,
    claimed: dict[Key, str],
    histories: dict[Key, RefHistory],
) -> tuple[list[_PlacedUpdate], Receipt]:
    """Decide the outcome of one delivery, and add it to the histories for the rest of the batch."""
    known = new.provider_delivery_id and claimed.get((new.connection, new.provider_delivery_id))
    if new.verdict == "accepted" and known:
        same_id = f"delivery {known} had the same id"
        moves = [_PlacedUpdate(new, move, None, same_id) for move in new.updates]
        return moves, _receipt(new, "duplicate", same_id, moves)
    _load_for(conn, new, histories)
    moves = []
    repeated = None
    for move in new.updates:
        placement = _place(conn, new, move, histories[new.connection, move.ref])
        reason = f"delivery {placement.repeats} reported the same" if placement.repeats is not None else None
        repeated = reason or repeated
        moves.append(_PlacedUpdate(new, move, placement, reason))
    if repeated and all(move.reason for move in moves):
        return moves, _receipt(new, "duplicate", repeated, moves)
    if new.verdict == "accepted" and new.provider_delivery_id:
        claimed[new.connection, new.provider_delivery_id] = new.id
    return moves, _receipt(new, new.verdict, new.reason, moves)


def _receipt(
    new: NewDelivery, verdict: Verdict, reason: str | None, moves: Sequence[_PlacedUpdate]
) -> Receipt:
    states = {move.state for move in moves}
    outcome = outcomes.of_new(verdict, states, is_waiting=new.waits is not None)
    return Receipt(delivery=new.id, verdict=verdict, reason=reason, outcome=outcome)


def _place(conn: sqlalchemy.Connection, new: NewDelivery, move: RefUpdate, history: RefHistory) -> Placement:
    if new.source == "reconciliation":
        return history.find(move.after, delivery=new.id, now=new.received_at)
    if move.kind == "pull_request":
        earlier = [one.delivery for one in history.moves.get(move.after or "", ())]
        repeats = _with_the_same_body(conn, new, earlier) if move.after != history.after else None
        return history.report_head(move.after, delivery=new.id, repeats=repeats)
    return history.report(move, delivery=new.id, now=new.received_at)


def _load_first(
    conn: sqlalchemy.Connection, batch: Sequence[NewDelivery], histories: Mapping[Key, RefHistory]
) -> None:
    """Read the recorded moves of all refs whose first move in the batch needs them, in one statement.

    `_load_for` then rarely reads more: only what the moves before it in the batch have made necessary.
    """
    wanted: dict[Key, set[str]] = {}
    seen: set[Key] = set()
    for new in batch:
        for move in new.updates:
            key = (new.connection, move.ref)
            history = histories[key]
            if key not in seen and history.needs_moves(move):
                # The position may become the beginning of a gap.
                wanted[key] = {history.after} if history.after else set()
            if key in wanted:
                wanted[key] |= history.ids_of_interest(move)
            seen.add(key)
    if wanted:
        load_moves(conn, wanted, histories)


def _load_for(conn: sqlalchemy.Connection, new: NewDelivery, histories: Mapping[Key, RefHistory]) -> None:
    """Read the recorded moves that are needed to place a delivery's updates, if any."""
    while wanted := _unread_ids(new, histories):
        load_moves(conn, wanted, histories)


def _unread_ids(new: NewDelivery, histories: Mapping[Key, RefHistory]) -> dict[Key, set[str]]:
    is_repeated = len({move.ref for move in new.updates}) < len(new.updates)
    wanted: dict[Key, set[str]] = {}
    for move in new.updates:
        key = (new.connection, move.ref)
        if (is_repeated or histories[key].needs_moves(move)) and (
            ids := histories[key].ids_of_interest(move)
        ):
            wanted.setdefault(key, set()).update(ids)
    return wanted


def _with_the_same_body(conn: sqlalchemy.Connection, new: NewDelivery, earlier: Sequence[str]) -> str | None:
    """Return the id of an earlier delivery with exactly the same body, if any."""
    query = select(deliveries.c.id, deliveries.c.body).where(deliveries.c.id.in_(earlier))
    bodies = conn.execute(query) if earlier else ()
    return next(
        (earlier_id for earlier_id, packed in bodies if zstandard.decompress(packed) == new.body), None
    )


def _claimed_ids(conn: sqlalchemy.Connection, batch: Sequence[NewDelivery]) -> dict[Key, str]:
    """Return the accepted delivery, if any, of each provider id in the batch."""
    wanted = {(a.connection, a.provider_delivery_id) for a in batch if a.provider_delivery_id}
    found: dict[Key, str] = {}
    for part in parts(list(wanted)):
        for row in select_pairs(conn, _CLAIMED, part):
            found[row[0], row[1]] = row[2]
    return found


def _learn(conn: sqlalchemy.Connection, batch: Sequence[NewDelivery]) -> None:
    """Record the use of secrets, the requested reconciliations and new repository ids.

    The order is that of all transactions: a secret of a source is used for many connections, so their locks
    do not keep two transactions from waiting for one another.
    """
    if any(a.seen is not None for a in batch):
        _see(conn, batch)
    used = {a.secret: a.received_at for a in batch if a.secret is not None}
    if used:
        conn.execute(_USED, [{"which": secret, "moment": moment} for secret, moment in sorted(used.items())])
    for asking in (a for a in batch if a.asks_for_reconciliation):
        conn.execute(
            update(reconciliations)
            .where(reconciliations.c.connection == asking.connection)
            .values(due_at=asking.received_at, asked=True, asked_by=asking.id)
        )
    claiming = {a.connection: a for a in batch if a.other_repository is not None}
    for connection, new in claiming.items():
        if new.other_repository is not None:
            other_repositories.claim(conn, connection, new.other_repository)
            later = reconciliations.c.connection == connection, reconciliations.c.due_at > new.received_at
            conn.execute(update(reconciliations).where(*later).values(due_at=new.received_at))
    taught = {a.connection: a.teaches for a in batch if a.teaches is not None}
    for connection, repository in taught.items():
        conn.execute(
            update(connections)
            .where(connections.c.id == connection, connections.c.repository_id.is_(None))
            .values(repository_id=repository)
        )


def _see(conn: sqlalchemy.Connection, batch: Sequence[NewDelivery]) -> None:
    """Record the repositories of sources about which rules have to decide, and what waits for that."""
    seen = [(a, a.seen) for a in batch if a.seen is not None]
    source_repositories.see(conn, (one for _, one in seen), now=max(a.received_at for a, _ in seen))
    for new, one in seen:
        if new.waits is not None:
            source_repositories.wait(conn, new.id, one, new.waits)


def _delivery_row(new: NewDelivery, receipt: Receipt, packed: bytes) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns."""
    return (
        new.id,
        new.connection,
        new.source,
        new.event,
        new.provider_delivery_id,
        new.received_at,
        receipt.verdict,
        receipt.reason,
        new.pusher,
        new.repository,
        new.detail,
        new.headers,
        new.secret,
        packed,
        receipt.outcome,
        person_key(new.pusher),
        _exchange(new, receipt),
    )


def _exchange(new: NewDelivery, receipt: Receipt) -> dict[str, Any] | None:
    """Return the exchange with the answer's verdict and reason, unless it was given before."""
    if new.exchange is None:
        return None
    return {"verdict": receipt.verdict, "reason": receipt.reason, **new.exchange}


def _update_row(placed: _PlacedUpdate) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns, without the number that the database assigns.

    The columns after these hold the settlement.
    """
    new, move, placement = placed.new, placed.update, placed.placement
    # A later delivery of the same batch may have raised the generation of the move.
    place = (placement.recorded or placement).generation if placement is not None else 0
    return (
        new.connection,
        new.id,
        move.ref,
        move.kind,
        move.name,
        move.before,
        move.after,
        move.peeled,
        move.action,
        move.forced,
        move.commits,
        move.truncated,
        move.total,
        place,
        placed.state,
        placed.reason,
        (new.detail or {}).get("pull_request") if move.kind == "pull_request" else None,
    )
