"""Deliveries and their ref updates: the durable record of everything that was verified.

`record` is the hot path. It takes what waits at the door as one batch, in a handful of statements: `match`
decides, where nobody else writes, what is new and what is a duplicate, and `write` writes it down.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import sqlalchemy
import zstandard
from sqlalchemy import Row, Text, bindparam, cast, func, select, text, union_all, update

from gateway.errors import NotFound
from gateway.store import executions
from gateway.store.bulk_sql import MAX_VALUES, insert_rows, select_pairs, upsert_rows
from gateway.store.connections import OtherRepository, claim_repository
from gateway.store.ref_history import Placement, Recorded, RefHistory, dump_gaps, load_gaps
from gateway.store.tables import (
    connections,
    deliveries,
    reconciliations,
    ref_updates,
    refs,
    secrets,
    update_attempts,
)
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
    "SELECT connection, ref, before, after, generation, delivery, shown, shown_id, gaps FROM {wanted}refs"
    " WHERE connection = first AND ref = second"
)
# A repetition is a row as well: so many rows of an id are looked at, and no more, however often it came.
_MAX_ROWS_OF_AN_ID = 200
# A burst of webhooks in the wrong order is complete by then.
_LOOK_AFTER = timedelta(seconds=5)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How a ref update had ended, until it was replayed at `replayed_at`."""

    state: UpdateState
    reason: str | None
    settled_at: datetime | None
    verdicts: Sequence[Mapping[str, Any]]
    replayed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedUpdate:
    """A ref update as it is kept, and what became of it. `generation` counts the moves of its ref.

    `attempts` are its ends from before it was replayed, the first one first.
    """

    seq: int
    connection: str
    delivery: str
    update: RefUpdate
    generation: int
    state: UpdateState
    reason: str | None
    verdicts: Sequence[Mapping[str, Any]]
    settled_at: datetime | None
    attempts: Sequence[Attempt]


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


def read_histories(conn: sqlalchemy.Connection, keys: Collection[Key]) -> dict[Key, RefHistory]:
    """Return what is known of refs, each by its connection and name, without the recorded moves."""
    found = {key: RefHistory(exists=False) for key in keys}
    for part in _parts(list(keys)):
        for connection, ref, *row in select_pairs(conn, _LATEST, part):
            before, after, generation, delivery, shown, shown_id, gaps = row
            found[connection, ref] = RefHistory(
                exists=True,
                before=before,
                after=after,
                generation=generation,
                delivery=delivery,
                shown=shown,
                shown_id=shown_id,
                gaps=load_gaps(gaps),
            )
    return found


def load_moves(
    conn: sqlalchemy.Connection, wanted: Mapping[Key, set[str]], histories: Mapping[Key, RefHistory]
) -> None:
    """Read the recorded moves of refs to these ids into their histories."""
    ids = sorted({one for its_ids in wanted.values() for one in its_ids})
    moves: dict[Key, list[Recorded]] = {key: [] for key in wanted}
    repetitions: dict[Key, list[Recorded]] = {key: [] for key in wanted}
    for part in _parts(ids):
        rows = (
            select(
                *(ref_updates.c[name] for name in ("connection", "ref", "before", "after")),
                *(ref_updates.c[name] for name in ("generation", "delivery", "seq", "state")),
            )
            .where(ref_updates.c.after.in_(part))
            .limit(_MAX_ROWS_OF_AN_ID * len(part))
        )
        for connection, ref, before, after, generation, delivery, seq, state in conn.execute(rows):
            if after in wanted.get((connection, ref), ()):
                recorded = Recorded(
                    before=before, after=after, generation=generation, delivery=delivery, seq=seq
                )
                found = repetitions if state == "duplicate" else moves
                found[connection, ref].append(recorded)
    for key, its_ids in wanted.items():
        histories[key].load(moves[key], its_ids, repetitions[key])


def write_histories(conn: sqlalchemy.Connection, histories: Mapping[Key, RefHistory]) -> None:
    """Write what is known of refs, and which recorded moves count as later than they did."""
    plain, whole = [], []
    for (connection, ref), one in histories.items():
        row = (connection, ref, one.before, one.after, one.generation, one.delivery)
        if one.is_rewritten:
            whole.append((*row, one.shown, one.shown_id, dump_gaps(one.gaps)))
        else:
            plain.append(row)
        for move in one.promoted:
            if move.seq is not None:
                executions.promote(conn, move.seq, connection=connection, ref=ref, generation=move.generation)
    for rows in (plain, whole):
        if rows:
            upsert_rows(conn, refs, ("connection", "ref"), rows)


def lock_connections(conn: sqlalchemy.Connection, names: Iterable[str]) -> None:
    """Let nobody else judge deliveries of these connections until the transaction ends.

    SQLite has one writer anyway. On PostgreSQL several doors write at once; all take the locks in one order,
    so that they never wait for one another in a circle.
    """
    if conn.dialect.name != "sqlite":
        conn.execute(_LOCK, {"names": sorted(names)})


def get(conn: sqlalchemy.Connection, delivery_id: str) -> RecordedDelivery:
    """Return a delivery with its updates. Raises `NotFound`."""
    row = conn.execute(_listing().where(deliveries.c.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id}")
    return _recorded(conn, [row])[0]


def page(
    conn: sqlalchemy.Connection,
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
    return _recorded(conn, conn.execute(query).all())


def containing(conn: sqlalchemy.Connection, commit: str, *, limit: int) -> list[RecordedDelivery]:
    """Return up to `limit` deliveries of pushes that list a commit, the newest first.

    `commit` is an object id or its beginning. No index holds what pushes list, so only the newest ref updates
    are searched.
    """
    newest = select(func.max(ref_updates.c.seq)).scalar_subquery()
    listing = select(ref_updates.c.delivery).where(
        ref_updates.c.seq > newest - _SEARCHED, cast(ref_updates.c.commits, Text).like(f'%"{commit}%')
    )
    query = _listing().where(deliveries.c.id.in_(listing)).order_by(deliveries.c.id.desc()).limit(limit)
    return _recorded(conn, conn.execute(query).all())


def body(conn: sqlalchemy.Connection, delivery_id: str) -> bytes:
    """Return the raw body of a delivery, byte for byte as it came. Raises `NotFound`."""
    packed = conn.execute(select(deliveries.c.body).where(deliveries.c.id == delivery_id)).scalar()
    if packed is None:
        raise NotFound(f"there is no delivery {delivery_id}")
    return zstandard.decompress(packed)


def _recorded_update(row: Row[Any], attempts: Sequence[Attempt]) -> RecordedUpdate:
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
        attempts=attempts,
    )


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
    for part in _parts(list(wanted)):
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


def _listing() -> Any:
    columns = [column for column in deliveries.c if column.name not in {"body", "headers", "secret"}]
    made_at = secrets.c.created_at.label("secret_made_at")
    proven = deliveries.join(connections).outerjoin(secrets, secrets.c.id == deliveries.c.secret)
    whose = connections.c.provider, connections.c.name, connections.c.deleted_at
    return select(*columns, *whose, made_at).select_from(proven)


def _recorded(conn: sqlalchemy.Connection, rows: Sequence[Row[Any]]) -> list[RecordedDelivery]:
    moves: dict[str, list[RecordedUpdate]] = {row.id: [] for row in rows}
    shown = [column for column in ref_updates.c if column.name != "facts"]
    query = select(*shown).where(ref_updates.c.delivery.in_(list(moves))).order_by(ref_updates.c.seq)
    attempts = _attempts(conn, list(moves))
    for row in conn.execute(query):
        moves[row.delivery].append(_recorded_update(row, attempts.get(row.seq, ())))
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


def _attempts(conn: sqlalchemy.Connection, delivery_ids: Sequence[str]) -> dict[int, list[Attempt]]:
    """Return the earlier ends of the ref updates of these deliveries, by the number of the ref update."""
    query = (
        select(update_attempts)
        .join(ref_updates, ref_updates.c.seq == update_attempts.c.ref_update)
        .where(ref_updates.c.delivery.in_(delivery_ids))
        .order_by(update_attempts.c.ref_update, update_attempts.c.number)
    )
    found: dict[int, list[Attempt]] = {}
    for row in conn.execute(query):
        attempt = Attempt(
            state=row.state,
            reason=row.reason,
            settled_at=row.settled_at,
            verdicts=row.verdicts or (),
            replayed_at=row.replayed_at,
        )
        found.setdefault(row.ref_update, []).append(attempt)
    return found


def _parts(keys: list[T]) -> Iterator[list[T]]:
    return (keys[start : start + MAX_VALUES // 2] for start in range(0, len(keys), MAX_VALUES // 2))
