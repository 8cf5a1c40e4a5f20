"""Deliveries and their ref updates: the durable record of everything that was verified.

`record` is the hot path. It takes what waits at the door as one batch, in a handful of statements: `judge`
decides, where nobody else writes, what is new and what is a duplicate, and `keep` writes it down.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import zstandard
from sqlalchemy import Connection as Transaction
from sqlalchemy import Row, Text, bindparam, cast, func, select, text, union_all, update

from gateway.errors import NotFound
from gateway.store.bulk import MOST_VALUES, insert_rows, select_pairs, upsert_rows
from gateway.store.tables import connections, deliveries, ref_updates, refs, secrets, sweeps
from providers.model import RefUpdate

Verdict = Literal["accepted", "duplicate", "ignored", "unreadable"]
UpdateState = Literal["pending", "planned", "gone", "failed", "duplicate"]
"""A ref update waits as `pending`; the other four are ends, each with its reason."""
REPLAYABLE: Sequence[UpdateState] = ("planned", "gone", "failed")
"""The ends of what was something new: to plan it again may end otherwise."""


# By pairs, as `select_pairs` has them.
_CLAIMED = (
    "SELECT connection, provider_delivery_id, id FROM {wanted}deliveries"
    " WHERE connection = first AND provider_delivery_id = second AND verdict = 'accepted'"
)
_LATEST = (
    "SELECT connection, ref, before, after, generation, delivery FROM {wanted}refs"
    " WHERE connection = first AND ref = second"
)
_LOCK = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(name, 0))"
    " FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS given (name, place) ORDER BY place"
)
_USED = update(secrets).where(secrets.c.id == bindparam("which")).values(last_used_at=bindparam("moment"))

# Of the newest ref updates, so many are searched for a commit that their pushes list: takes below a second.
_SEARCHED = 100_000

Key = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A verified delivery as the door brings it.

    `detail` is what an event tells that is no ref update; `teaches` is a repository id that the connection
    lacks; `asks_for_sweep` says that something was pushed, but not what.
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
    asks_for_sweep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an arrival, once it is durable."""

    delivery: str
    verdict: Verdict
    reason: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch that was judged, and the rows of `ref_updates` and `refs` that come of it."""

    arrivals: Sequence[Arrival]
    receipts: list[Receipt]
    update_rows: list[tuple[Any, ...]]
    ref_rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedUpdate:
    """A ref update as it is kept, and what became of it. `generation` counts the moves of its ref."""

    seq: int
    connection: str
    delivery: str
    update: RefUpdate
    generation: int
    state: UpdateState
    reason: str | None
    verdicts: Sequence[Mapping[str, Any]]
    settled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDelivery:
    """A delivery as it is kept. `secret_made_at` tells which secret proved its sender, while that lives.

    `name` is that of its connection, and `is_orphan` says that the connection was deleted.
    """

    id: str
    connection: str
    name: str
    is_orphan: bool
    provider: str
    source: str
    event: str
    provider_delivery_id: str | None
    received_at: datetime
    verdict: Verdict
    reason: str | None
    pusher: str | None
    repository: Mapping[str, Any] | None
    detail: Mapping[str, Any] | None
    secret_made_at: datetime | None
    updates: tuple[RecordedUpdate, ...]


@dataclass(slots=True)
class _Ref:
    """The latest update of a ref that is known; no delivery has told of one that a first sweep found."""

    before: str | None
    after: str | None
    generation: int
    delivery: str | None


def record(transaction: Transaction, arrivals: Sequence[Arrival]) -> list[Receipt]:
    """Keep a batch of arrivals, in their order, and say of each what it is."""
    judged = judge(transaction, arrivals)
    keep(transaction, judged)
    return judged.receipts


def judge(transaction: Transaction, arrivals: Sequence[Arrival]) -> Judged:
    """Decide what each arrival of a batch is, in their order; writes nothing.

    A delivery is a duplicate when an accepted one had its provider's id, or when each of its updates is the
    latest update of its ref that is known: so A→B, B→A, A→B are three, and a redelivery is none.
    """
    lock_connections(transaction, {arrival.connection for arrival in arrivals})
    claimed = _claimed_ids(transaction, arrivals)
    latest = _latest_updates(transaction, arrivals)
    moved: set[Key] = set()
    receipts: list[Receipt] = []
    update_rows: list[tuple[Any, ...]] = []
    for arrival in arrivals:
        rows, moves, receipt = _judge(arrival, claimed, latest)
        moved.update(moves)
        update_rows += rows
        receipts.append(receipt)
    ref_rows = []
    for key in moved:
        last = latest[key]
        ref_rows.append((*key, last.before, last.after, last.generation, last.delivery))
    return Judged(arrivals, receipts, update_rows, ref_rows)


def keep(transaction: Transaction, judged: Judged) -> None:
    """Write what was decided, in the same transaction; reads nothing."""
    # One compressor for the batch: making one costs as much as compressing 8 KB.
    pack = zstandard.ZstdCompressor(level=1).compress
    packed = [pack(arrival.body) for arrival in judged.arrivals]
    rows = list(map(_delivery_row, judged.arrivals, judged.receipts, packed))
    insert_rows(transaction, deliveries, rows)
    if judged.update_rows:
        insert_rows(transaction, ref_updates, judged.update_rows)
    if judged.ref_rows:
        upsert_rows(transaction, refs, ("connection", "ref"), judged.ref_rows)
    _learn(transaction, judged.arrivals)


def lock_connections(transaction: Transaction, names: Iterable[str]) -> None:
    """Let nobody else judge deliveries of these connections until the transaction ends.

    SQLite has one writer anyway. On PostgreSQL several doors write at once; all take the locks in one order,
    so that they never wait for one another in a circle.
    """
    if transaction.dialect.name != "sqlite":
        transaction.execute(_LOCK, {"names": sorted(names)})


def get(transaction: Transaction, delivery_id: str) -> RecordedDelivery:
    """Return a delivery with its updates. Raises `NotFound`."""
    row = transaction.execute(_listing().where(deliveries.c.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id}")
    return _recorded(transaction, [row])[0]


def page(
    transaction: Transaction,
    *,
    connection: str | None,
    verdict: str | None,
    before: str | None,
    limit: int,
    commit: str | None = None,
) -> list[RecordedDelivery]:
    """Return up to `limit` deliveries, the newest first, only those older than the id `before`.

    `commit` is the beginning, or the whole, of an object id that a ref was moved to, also by way of a tag.
    """
    query = _listing().order_by(deliveries.c.id.desc()).limit(limit)
    if connection is not None:
        query = query.where(deliveries.c.connection == connection)
    if verdict is not None:
        query = query.where(deliveries.c.verdict == verdict)
    if before is not None:
        query = query.where(deliveries.c.id < before)
    if commit is not None:
        # Not LIKE: only a range is found by the index on either database.
        told = (
            select(ref_updates.c.delivery).where(column.between(commit, commit + "g"))
            for column in (ref_updates.c.after, ref_updates.c.peeled)
        )
        query = query.where(deliveries.c.id.in_(union_all(*told)))
    return _recorded(transaction, transaction.execute(query).all())


def containing(transaction: Transaction, commit: str, *, limit: int) -> list[RecordedDelivery]:
    """Return up to `limit` deliveries of pushes that list a commit, the newest first.

    `commit` is an object id or its beginning. No index holds what pushes list, so only the newest ref updates
    are searched.
    """
    newest = select(func.max(ref_updates.c.seq)).scalar_subquery()
    listing = select(ref_updates.c.delivery).where(
        ref_updates.c.seq > newest - _SEARCHED, cast(ref_updates.c.commits, Text).like(f'%"{commit}%')
    )
    query = _listing().where(deliveries.c.id.in_(listing)).order_by(deliveries.c.id.desc()).limit(limit)
    return _recorded(transaction, transaction.execute(query).all())


def body(transaction: Transaction, delivery_id: str) -> bytes:
    """Return the raw body of a delivery, byte for byte as it came. Raises `NotFound`."""
    packed = transaction.execute(select(deliveries.c.body).where(deliveries.c.id == delivery_id)).scalar()
    if packed is None:
        raise NotFound(f"there is no delivery {delivery_id}")
    return zstandard.decompress(packed)


def _recorded_update(row: Row[Any]) -> RecordedUpdate:
    """Return the ref update that a row of `ref_updates` holds."""
    return RecordedUpdate(
        seq=row.seq,
        connection=row.connection,
        delivery=row.delivery,
        update=RefUpdate(
            ref=row.ref,
            kind=row.kind,
            name=row.name,
            before=row.before,
            after=row.after,
            action=row.action,
            peeled=row.peeled,
            forced=row.forced,
            commits=tuple(row.commits),
            truncated=row.truncated,
            total=row.total,
        ),
        generation=row.generation,
        state=row.state,
        reason=row.reason,
        verdicts=row.verdicts or (),
        settled_at=row.settled_at,
    )


def _judge(
    arrival: Arrival, claimed: dict[Key, str], latest: dict[Key, _Ref]
) -> tuple[list[tuple[Any, ...]], set[Key], Receipt]:
    """Decide about one arrival; what is new becomes known to the next one of the same batch."""
    known = arrival.provider_delivery_id and claimed.get((arrival.connection, arrival.provider_delivery_id))
    if arrival.verdict == "accepted" and known:
        told = f"delivery {known} came with the same id"
        rows = [_update_row(arrival, move, 0, "duplicate", told) for move in arrival.updates]
        return rows, set(), Receipt(delivery=arrival.id, verdict="duplicate", reason=told)
    rows = []
    moves: set[Key] = set()
    repeated = None
    for move in arrival.updates:
        key = (arrival.connection, move.ref)
        last = latest.get(key)
        if last is not None and _is_repetition(move, last):
            repeated = f"delivery {last.delivery} told the same"
            rows.append(_update_row(arrival, move, last.generation, "duplicate", repeated))
            continue
        generation = last.generation + 1 if last else 1
        latest[key] = _Ref(move.before, move.after, generation, arrival.id)
        moves.add(key)
        rows.append(_update_row(arrival, move, generation, "pending", None))
    if repeated and not moves:
        return rows, moves, Receipt(delivery=arrival.id, verdict="duplicate", reason=repeated)
    if arrival.verdict == "accepted" and arrival.provider_delivery_id:
        claimed[arrival.connection, arrival.provider_delivery_id] = arrival.id
    return rows, moves, Receipt(delivery=arrival.id, verdict=arrival.verdict, reason=arrival.reason)


def _is_repetition(move: RefUpdate, last: _Ref) -> bool:
    if last.delivery is None:
        return False
    if move.action == "delete" and move.before is None:
        return last.after is None
    return (move.before, move.after) == (last.before, last.after)


def _claimed_ids(transaction: Transaction, arrivals: Sequence[Arrival]) -> dict[Key, str]:
    """Return which of the batch's delivery ids an accepted delivery already had, and which one that was."""
    wanted = {(a.connection, a.provider_delivery_id) for a in arrivals if a.provider_delivery_id}
    found: dict[Key, str] = {}
    for part in _parts(list(wanted)):
        for row in select_pairs(transaction, _CLAIMED, part):
            found[row[0], row[1]] = row[2]
    return found


def _latest_updates(transaction: Transaction, arrivals: Sequence[Arrival]) -> dict[Key, _Ref]:
    wanted = {(arrival.connection, move.ref) for arrival in arrivals for move in arrival.updates}
    found: dict[Key, _Ref] = {}
    for part in _parts(list(wanted)):
        for row in select_pairs(transaction, _LATEST, part):
            found[row[0], row[1]] = _Ref(*row[2:])
    return found


def _learn(transaction: Transaction, arrivals: Sequence[Arrival]) -> None:
    """Remember which secret was used last, who asks for a sweep, and the provider's id of the repository."""
    used = {a.secret: a.received_at for a in arrivals if a.secret is not None}
    if used:
        transaction.execute(_USED, [{"which": secret, "moment": moment} for secret, moment in used.items()])
    for asking in (a for a in arrivals if a.asks_for_sweep):
        transaction.execute(
            update(sweeps)
            .where(sweeps.c.connection == asking.connection)
            .values(due_at=asking.received_at, asked=True, asked_by=asking.id)
        )
    taught = {a.connection: a.teaches for a in arrivals if a.teaches is not None}
    for connection, repository in taught.items():
        transaction.execute(
            update(connections)
            .where(connections.c.id == connection, connections.c.repository_id.is_(None))
            .values(repository_id=repository)
        )


def _delivery_row(arrival: Arrival, receipt: Receipt, packed: bytes) -> tuple[Any, ...]:
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


def _update_row(
    arrival: Arrival, move: RefUpdate, generation: int, state: UpdateState, reason: str | None
) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns, less the number that the database gives.

    What becomes of it later stands in the columns behind these.
    """
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
        generation,
        state,
        reason,
        (arrival.detail or {}).get("pull_request") if move.kind == "pull_request" else None,
    )


def _listing() -> Any:
    columns = [column for column in deliveries.c if column.name not in {"body", "headers", "secret"}]
    made_at = secrets.c.created_at.label("secret_made_at")
    proven = deliveries.join(connections).outerjoin(secrets, secrets.c.id == deliveries.c.secret)
    whose = connections.c.provider, connections.c.name, connections.c.deleted_at
    return select(*columns, *whose, made_at).select_from(proven)


def _recorded(transaction: Transaction, rows: Sequence[Row[Any]]) -> list[RecordedDelivery]:
    moves: dict[str, list[RecordedUpdate]] = {row.id: [] for row in rows}
    shown = [column for column in ref_updates.c if column.name != "facts"]
    query = select(*shown).where(ref_updates.c.delivery.in_(list(moves))).order_by(ref_updates.c.seq)
    for row in transaction.execute(query):
        moves[row.delivery].append(_recorded_update(row))
    return [
        RecordedDelivery(
            id=row.id,
            connection=row.connection,
            name=row.name,
            is_orphan=row.deleted_at is not None,
            provider=row.provider,
            source=row.source,
            event=row.event,
            provider_delivery_id=row.provider_delivery_id,
            received_at=row.received_at,
            verdict=row.verdict,
            reason=row.reason,
            pusher=row.pusher,
            repository=row.repository,
            detail=row.detail,
            secret_made_at=row.secret_made_at,
            updates=tuple(moves[row.id]),
        )
        for row in rows
    ]


def _parts(keys: list[T]) -> Iterator[list[T]]:
    return (keys[start : start + MOST_VALUES // 2] for start in range(0, len(keys), MOST_VALUES // 2))
