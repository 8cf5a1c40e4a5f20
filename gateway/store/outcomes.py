"""The outcome of a delivery: what became of it, in one word. `outcome` defines it.

It is stored on the delivery, so that lists filter by it, and written in the transaction that changes what it
results from: `of_new` for new deliveries, otherwise `refresh` and the statements beside it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy
from sqlalchemy import ColumnElement, bindparam, case, exists, or_, select, update

from gateway.store.bulk_sql import MAX_VALUES
from gateway.store.execution_tables import executions
from gateway.store.ids import delivery_ids_since
from gateway.store.people import person_key
from gateway.store.tables import deliveries, ref_updates, update_attempts, waiting_deliveries

Outcome = Literal[
    "ran", "nothing-matched", "failed", "waiting", "duplicate", "refused", "superseded", "ignored"
]

REFUSED: Final = "refused"
"""The outcome of a refused request, which is stored as a refusal: see gateway/store/refusals.py."""

_UNPLANNED: Mapping[str, Outcome] = {
    "unreadable": "failed",
    "duplicate": "duplicate",
    "ignored": "ignored",
}
_WORST: Mapping[str, Outcome] = {"failed": "failed", "pending": "waiting"}

_HAS_REQUEST = exists().where(executions.c.delivery == deliveries.c.id, executions.c.state != "superseded")
_OF_REQUESTS = deliveries.c.outcome.in_(["ran", "superseded"])

_WRITE = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("of"))
    .values(outcome=bindparam("became"), pusher_key=bindparam("who"))
)


def outcome(
    verdict: str,
    *,
    is_waiting: bool,
    updates: Iterable[tuple[str, Sequence[Mapping[str, Any]]]],
    requests: Collection[str],
) -> Outcome:
    """Return the outcome of a delivery: the worst of its ref updates, which counts.

    `updates` are the states of the ref updates, with the verdicts of the triggers; `requests` the states of
    the execution requests; `is_waiting` is True while the rules of its source have to decide.
    """
    if verdict != "accepted":
        return "waiting" if is_waiting else _UNPLANNED[verdict]
    states: set[str] = set()
    for state, verdicts in updates:
        states.add("failed" if has_failed(state, verdicts) else state)
    for state, worst in _WORST.items():
        if state in states:
            return worst
    if requests:
        return "superseded" if set(requests) == {"superseded"} else "ran"
    if "planned" in states:
        return "nothing-matched"
    # Without ref updates, as of a webhook that only requests a look at the remote.
    return "duplicate" if states else "ignored"


def has_failed(state: str, verdicts: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a ref update failed or vanished, or whether a matched trigger could not be planned."""
    return state in {"failed", "gone"} or any(one.get("failure") is not None for one in verdicts)


def of_new(verdict: str, states: Collection[str], *, is_waiting: bool) -> Outcome:
    """Return the outcome of a delivery that is accepted now, with the states of its ref updates."""
    return outcome(verdict, is_waiting=is_waiting, updates=[(state, ()) for state in states], requests=())


def of_stored(conn: sqlalchemy.Connection, delivery_ids: Collection[str]) -> dict[str, Outcome]:
    """Return the outcomes of deliveries by what is stored of them."""
    if not delivery_ids:
        return {}
    updates, requests = defaultdict(list), defaultdict(list)
    moves = select(ref_updates.c.delivery, ref_updates.c.state, ref_updates.c.verdicts)
    for delivery, state, verdicts in conn.execute(moves.where(ref_updates.c.delivery.in_(delivery_ids))):
        updates[delivery].append((state, verdicts or ()))
    planned = select(executions.c.delivery, executions.c.state)
    for delivery, state in conn.execute(planned.where(executions.c.delivery.in_(delivery_ids))):
        requests[delivery].append(state)
    is_waiting = exists().where(waiting_deliveries.c.delivery == deliveries.c.id)
    query = select(deliveries.c.id, deliveries.c.verdict, is_waiting.label("is_waiting"))
    return {
        row.id: outcome(
            row.verdict, is_waiting=row.is_waiting, updates=updates[row.id], requests=requests[row.id]
        )
        for row in conn.execute(query.where(deliveries.c.id.in_(delivery_ids)))
    }


def refresh(conn: sqlalchemy.Connection, delivery_ids: Collection[str]) -> int:
    """Store the outcomes of deliveries that have changed, and return how many had.

    Call it after the change: whoever locks both, locks deliveries last.
    """
    if not delivery_ids:
        return 0
    mine = deliveries.c.id.in_(delivery_ids)
    stored = select(deliveries.c.id, deliveries.c.outcome, deliveries.c.pusher).where(mine)
    # Locked, so that of two changes at the same time the second sees the first.
    locked = conn.execute(stored.order_by(deliveries.c.id).with_for_update(key_share=True)).all()
    became = of_stored(conn, [row.id for row in locked])
    changed = [row for row in locked if row.outcome != became[row.id]]
    for row in changed:
        conn.execute(_WRITE, {"of": row.id, "became": became[row.id], "who": person_key(row.pusher)})
    return len(changed)


def end_updates(conn: sqlalchemy.Connection, ended: Mapping[str, bool]) -> None:
    """Store the outcomes of deliveries of which ref updates have ended: True if one of these has failed.

    While others are pending, those of a large push are not all read again.
    """
    fail(conn, [delivery for delivery, is_failure in ended.items() if is_failure])
    rest = {delivery for delivery, is_failure in ended.items() if not is_failure}
    if rest:
        is_pending = ref_updates.c.delivery.in_(rest), ref_updates.c.state == "pending"
        pending = conn.execute(select(ref_updates.c.delivery).where(*is_pending).distinct()).scalars()
        refresh(conn, rest - set(pending))


def fail(conn: sqlalchemy.Connection, delivery_ids: Collection[str]) -> None:
    """Store that ref updates of these deliveries have failed."""
    # In one order, so that two transactions do not wait for one another.
    ordered = sorted(delivery_ids)
    for start in range(0, len(ordered), MAX_VALUES):
        some = ordered[start : start + MAX_VALUES]
        conn.execute(update(deliveries).where(deliveries.c.id.in_(some)).values(outcome="failed"))


def follow_requests(conn: sqlalchemy.Connection, which: ColumnElement[bool]) -> None:
    """Store whether all requests of deliveries are superseded; `which` selects some of those requests.

    Call it after the change. Read nothing: see `Database.write_inline`.
    """
    theirs = deliveries.c.id.in_(select(executions.c.delivery).where(which)), _OF_REQUESTS
    # The first statement only locks: the second then sees what others have changed.
    conn.execute(update(deliveries).where(*theirs).values(outcome=deliveries.c.outcome))
    conn.execute(
        update(deliveries).where(*theirs).values(outcome=case((_HAS_REQUEST, "ran"), else_="superseded"))
    )


def publish(conn: sqlalchemy.Connection, published: Sequence[str]) -> None:
    """Store the outcome of requests that were published although they were superseded meanwhile."""
    theirs = select(executions.c.delivery).where(
        executions.c.id.in_(published), executions.c.policy == "latest"
    )
    superseded = deliveries.c.outcome == "superseded", deliveries.c.id.in_(theirs)
    conn.execute(update(deliveries).where(*superseded).values(outcome="ran"))


def unknown(conn: sqlalchemy.Connection, *, limit: int) -> Sequence[str]:
    """Return deliveries that have no outcome, because a previous version of Pushgate has written them."""
    query = select(deliveries.c.id).where(deliveries.c.outcome.is_(None))
    return conn.execute(query.order_by(deliveries.c.id.desc()).limit(limit)).scalars().all()


def stale(conn: sqlalchemy.Connection, *, after: str, limit: int) -> tuple[Sequence[str], str | None]:
    """Return those of the next waiting deliveries that wait for nothing, and the last that was examined.

    None instead if there are no more. A previous version of Pushgate has ended their ref updates.
    """
    waits = select(deliveries.c.id).where(deliveries.c.outcome == "waiting", deliveries.c.id > after)
    examined = conn.execute(waits.order_by(deliveries.c.id).limit(limit)).scalars().all()
    if not examined:
        return (), None
    pending = exists().where(ref_updates.c.delivery == deliveries.c.id, ref_updates.c.state == "pending")
    waiting = exists().where(waiting_deliveries.c.delivery == deliveries.c.id)
    found = select(deliveries.c.id).where(deliveries.c.id.in_(examined), ~or_(pending, waiting))
    return conn.execute(found).scalars().all(), examined[-1]


def received(conn: sqlalchemy.Connection, *, since: datetime, after: str, limit: int) -> Sequence[str]:
    """Return the next deliveries that were received since then, the oldest first."""
    query = select(deliveries.c.id).where(deliveries.c.id > max(after, delivery_ids_since(since)))
    return conn.execute(query.order_by(deliveries.c.id).limit(limit)).scalars().all()


def replayed(conn: sqlalchemy.Connection, *, since: datetime, limit: int) -> Sequence[str]:
    """Return deliveries that were replayed since then."""
    updates = ref_updates.join(update_attempts, ref_updates.c.seq == update_attempts.c.ref_update)
    query = select(ref_updates.c.delivery).select_from(updates).distinct()
    return conn.execute(query.where(update_attempts.c.replayed_at >= since).limit(limit)).scalars().all()
