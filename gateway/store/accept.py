"""Decide what each new delivery is, and write it: accepted, duplicate, ignored or unreadable.

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

from gateway.store.bulk_sql import insert_rows, select_pairs
from gateway.store.connections import OtherRepository, claim_repository
from gateway.store.deliveries import Verdict
from gateway.store.histories import Key, load_moves, lock_connections, parts, read_histories, write_histories
from gateway.store.ref_history import Placement, RefHistory
from gateway.store.tables import (
    connections,
    deliveries,
    reconciliations,
    ref_updates,
    secrets,
)
from providers.model import RefUpdate

# By pairs, as `select_pairs` has them.
_CLAIMED = (
    "SELECT connection, provider_delivery_id, id FROM {wanted}deliveries"
    " WHERE connection = first AND provider_delivery_id = second AND verdict = 'accepted'"
)

# A burst of webhooks in the wrong order is complete by then.
_LOOK_AFTER = timedelta(seconds=5)

_USED = update(secrets).where(secrets.c.id == bindparam("which")).values(last_used_at=bindparam("moment"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A verified delivery as the door brings it.

    `detail` is what an event tells that is no ref update; `teaches` is a repository id that the connection
    lacks; `asks_for_reconciliation` is True where the delivery does not name what was pushed;
    `other_repository` names the repository that is at the connection's address in place of its own.
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
    teaches: str | None = None
    detail: Mapping[str, Any] | None = None
    asks_for_reconciliation: bool = False
    other_repository: OtherRepository | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an arrival, once it is durable."""

    delivery: str
    verdict: Verdict
    reason: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """A batch that was judged, and what is to be written of it.

    `histories` are those of the refs that have changed; `looks` are the connections whose remote should be
    asked, because the order of their moves was only assumed.
    """

    arrivals: Sequence[NewDelivery]
    receipts: list[Receipt]
    update_rows: list[tuple[Any, ...]]
    histories: Mapping[Key, RefHistory]
    looks: Mapping[str, datetime]


def record(conn: sqlalchemy.Connection, arrivals: Sequence[NewDelivery]) -> list[Receipt]:
    """Keep a batch of arrivals, in their order, and say of each what it is."""
    judged = decide(conn, arrivals)
    write(conn, judged)
    return judged.receipts


def decide(conn: sqlalchemy.Connection, arrivals: Sequence[NewDelivery]) -> Decision:
    """Decide what each arrival of a batch is, in their order; writes nothing.

    A delivery is a duplicate when an accepted one had its provider's id, or when each of its updates was
    recorded before and does not begin where its ref is now: so A→B, B→A, A→B are three, and a redelivery is
    none. `gateway.store.ref_history` has the rules.
    """
    lock_connections(conn, {arrival.connection for arrival in arrivals})
    claimed = _claimed_ids(conn, arrivals)
    histories = read_histories(
        conn, {(arrival.connection, move.ref) for arrival in arrivals for move in arrival.updates}
    )
    changed: dict[Key, RefHistory] = {}
    looks: dict[str, datetime] = {}
    receipts: list[Receipt] = []
    judged: list[_JudgedMove] = []
    for arrival in arrivals:
        moves, receipt = _judge(conn, arrival, claimed, histories)
        for move in moves:
            if move.placement is not None and move.placement.repeats is None:
                key = (arrival.connection, move.update.ref)
                changed[key] = histories[key]
                if move.placement.is_guess:
                    looks[arrival.connection] = arrival.received_at + _LOOK_AFTER
        judged += moves
        receipts.append(receipt)
    # Whatever a repetition told of the gaps is kept as well.
    changed |= {key: history for key, history in histories.items() if history.is_rewritten}
    return Decision(arrivals, receipts, [_update_row(move) for move in judged], changed, looks)


def write(conn: sqlalchemy.Connection, judged: Decision) -> None:
    """Write what was decided, in the same transaction; reads nothing."""
    # One compressor for the batch: making one costs as much as compressing 8 KB.
    pack = zstandard.ZstdCompressor(level=1).compress
    packed = [pack(arrival.body) for arrival in judged.arrivals]
    rows = list(map(_delivery_row, judged.arrivals, judged.receipts, packed))
    insert_rows(conn, deliveries, rows)
    if judged.update_rows:
        insert_rows(conn, ref_updates, judged.update_rows)
    if judged.histories:
        write_histories(conn, judged.histories)
    for connection, due_at in judged.looks.items():
        its_own = reconciliations.c.connection == connection, reconciliations.c.due_at > due_at
        conn.execute(update(reconciliations).where(*its_own).values(due_at=due_at))
    _learn(conn, judged.arrivals)


@dataclass(frozen=True, slots=True)
class _JudgedMove:
    """A ref update of an arrival, and its place; None for one of a delivery that came before."""

    arrival: NewDelivery
    update: RefUpdate
    placement: Placement | None
    reason: str | None


def _judge(
    conn: sqlalchemy.Connection,
    arrival: NewDelivery,
    claimed: dict[Key, str],
    histories: dict[Key, RefHistory],
) -> tuple[list[_JudgedMove], Receipt]:
    """Decide about one arrival; what is new becomes known to the next one of the same batch."""
    known = arrival.provider_delivery_id and claimed.get((arrival.connection, arrival.provider_delivery_id))
    if arrival.verdict == "accepted" and known:
        told = f"delivery {known} came with the same id"
        moves = [_JudgedMove(arrival, move, None, told) for move in arrival.updates]
        return moves, Receipt(delivery=arrival.id, verdict="duplicate", reason=told)
    _load_for(conn, arrival, histories)
    moves = []
    repeated = None
    for move in arrival.updates:
        placement = _place(conn, arrival, move, histories[arrival.connection, move.ref])
        reason = f"delivery {placement.repeats} told the same" if placement.repeats is not None else None
        repeated = reason or repeated
        moves.append(_JudgedMove(arrival, move, placement, reason))
    if repeated and all(move.reason for move in moves):
        return moves, Receipt(delivery=arrival.id, verdict="duplicate", reason=repeated)
    if arrival.verdict == "accepted" and arrival.provider_delivery_id:
        claimed[arrival.connection, arrival.provider_delivery_id] = arrival.id
    return moves, Receipt(delivery=arrival.id, verdict=arrival.verdict, reason=arrival.reason)


def _place(
    conn: sqlalchemy.Connection, arrival: NewDelivery, move: RefUpdate, history: RefHistory
) -> Placement:
    if arrival.source == "reconciliation":
        return history.find(move.after, delivery=arrival.id, now=arrival.received_at)
    if move.kind == "pull_request":
        earlier = [one.delivery for one in history.moves.get(move.after or "", ())]
        repeats = _with_the_same_body(conn, arrival, earlier) if move.after != history.after else None
        return history.tell_head(move.after, delivery=arrival.id, repeats=repeats)
    return history.tell(move, delivery=arrival.id, now=arrival.received_at)


def _load_for(conn: sqlalchemy.Connection, arrival: NewDelivery, histories: Mapping[Key, RefHistory]) -> None:
    """Read the recorded moves that are needed to place an arrival's updates: none, where each is the next."""
    is_repeated = len({move.ref for move in arrival.updates}) < len(arrival.updates)
    wanted: dict[Key, set[str]] = {}
    for move in arrival.updates:
        key = (arrival.connection, move.ref)
        if (is_repeated or histories[key].needs_moves(move)) and (
            ids := histories[key].ids_of_interest(move)
        ):
            wanted.setdefault(key, set()).update(ids)
    if wanted:
        load_moves(conn, wanted, histories)


def _with_the_same_body(
    conn: sqlalchemy.Connection, arrival: NewDelivery, earlier: Sequence[str]
) -> str | None:
    """Return which of these deliveries had the very bytes of this one, if any."""
    query = select(deliveries.c.id, deliveries.c.body).where(deliveries.c.id.in_(earlier))
    bodies = conn.execute(query) if earlier else ()
    return next((one for one, packed in bodies if zstandard.decompress(packed) == arrival.body), None)


def _claimed_ids(conn: sqlalchemy.Connection, arrivals: Sequence[NewDelivery]) -> dict[Key, str]:
    """Return which of the batch's delivery ids an accepted delivery already had, and which one that was."""
    wanted = {(a.connection, a.provider_delivery_id) for a in arrivals if a.provider_delivery_id}
    found: dict[Key, str] = {}
    for part in parts(list(wanted)):
        for row in select_pairs(conn, _CLAIMED, part):
            found[row[0], row[1]] = row[2]
    return found


def _learn(conn: sqlalchemy.Connection, arrivals: Sequence[NewDelivery]) -> None:
    """Record which secret was used, which deliveries ask for a reconciliation, and repository ids."""
    used = {a.secret: a.received_at for a in arrivals if a.secret is not None}
    if used:
        conn.execute(_USED, [{"which": secret, "moment": moment} for secret, moment in used.items()])
    for asking in (a for a in arrivals if a.asks_for_reconciliation):
        conn.execute(
            update(reconciliations)
            .where(reconciliations.c.connection == asking.connection)
            .values(due_at=asking.received_at, asked=True, asked_by=asking.id)
        )
    claiming = {a.connection: a for a in arrivals if a.other_repository is not None}
    for connection, arrival in claiming.items():
        if arrival.other_repository is not None:
            claim_repository(conn, connection, arrival.other_repository)
            soon = reconciliations.c.connection == connection, reconciliations.c.due_at > arrival.received_at
            conn.execute(update(reconciliations).where(*soon).values(due_at=arrival.received_at))
    taught = {a.connection: a.teaches for a in arrivals if a.teaches is not None}
    for connection, repository in taught.items():
        conn.execute(
            update(connections)
            .where(connections.c.id == connection, connections.c.repository_id.is_(None))
            .values(repository_id=repository)
        )


def _delivery_row(arrival: NewDelivery, receipt: Receipt, packed: bytes) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns."""
    return (
        arrival.id,
        arrival.connection,
        arrival.source,
        arrival.event,
        arrival.provider_delivery_id,
        arrival.received_at,
        receipt.verdict,
        receipt.reason,
        arrival.pusher,
        arrival.repository,
        arrival.detail,
        arrival.headers,
        arrival.secret,
        packed,
    )


def _update_row(judged: _JudgedMove) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns, less the number that the database gives.

    What becomes of it later stands in the columns behind these.
    """
    arrival, move, placement = judged.arrival, judged.update, judged.placement
    # One of the same batch may have put the move further on.
    place = (placement.recorded or placement).generation if placement is not None else 0
    return (
        arrival.connection,
        arrival.id,
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
        "pending" if judged.reason is None else "duplicate",
        judged.reason,
        (arrival.detail or {}).get("pull_request") if move.kind == "pull_request" else None,
    )
