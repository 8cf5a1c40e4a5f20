"""Pages of past ref updates, from the newest delivery to the oldest."""

from datetime import datetime, timedelta

import pytest

from gateway.store import accept, past_updates, work_queue
from gateway.store.accept import NewDelivery
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.past_updates import PastUpdate
from gateway.store.work_queue import Settlement
from providers.model import RefUpdate
from testing.records import NOW, A, B, C, arrival, connection, move

DAY = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)
VERDICTS = ({"trigger": "train@main", "fits": True},)


def deliver(database: Database, *moves: RefUpdate, at: datetime = NOW, **changes: object) -> NewDelivery:
    """Record a delivery."""
    sent = arrival(*moves, id=delivery_id(at), received_at=at, **changes)
    with database.writing() as conn:
        accept.record(conn, [sent])
    return sent


def settle(database: Database, **ends: object) -> None:
    """Settle the pending updates of c1."""
    values: dict[str, object] = {"state": "planned", "reason": "done", **ends}
    with database.writing() as conn:
        assert Claims(process="p").claim(conn, owner="w", now=NOW + DAY, until=NOW + 2 * DAY)
        ended = [Settlement(update=one, **values) for one in work_queue.pending(conn, "c1", limit=100)]  # type: ignore[arg-type]
        work_queue.settle(conn, "c1", ended, owner="w", now=NOW + DAY)
        work_queue.release(conn, "c1", owner="w", now=NOW + DAY)


def page(
    database: Database, *, since: datetime | None = None, before: str | None = None, limit: int = 100
) -> tuple[list[PastUpdate], str | None]:
    """Read a page of c1."""
    with database.reading() as conn:
        return past_updates.page(conn, "c1", since=since, before=before, limit=limit)


def listed(database: Database, *, since: datetime | None = None, before: str | None = None) -> list[str]:
    """Return the deliveries of a page."""
    return [one.update.delivery for one in page(database, since=since, before=before)[0]]


def test_pages_follow_each_other_from_the_newest_to_the_oldest(database: Database) -> None:
    """Each delivery is on one page, and the last page states that there are no more."""
    connection(database)
    sent = [deliver(database, move(None, A, f"refs/tags/{day}"), at=NOW + day * DAY).id for day in range(5)]
    pages: list[list[str]] = []
    before: str | None = None
    while len(pages) < 5:
        past, before = page(database, before=before, limit=2)
        pages.append([one.update.delivery for one in past])
        if before is None:
            break
    assert pages == [[sent[4], sent[3]], [sent[2], sent[1]], [sent[0]]]
    past, before = page(database, limit=5)
    assert (len(past), before) == (5, None)
    past, before = page(database, limit=3)
    assert (len(past), before) == (3, sent[2])


def test_only_accepted_deliveries_of_the_connection_count(database: Database) -> None:
    """Others do not appear on its pages."""
    for name in ("c0", "c1", "c2"):
        connection(database, name)
    for name in ("c0", "c2"):
        deliver(database, move(A, B), connection=name)
    first = deliver(database, move(A, B))
    for verdict in ("ignored", "unreadable", "duplicate"):
        deliver(database, at=NOW + DAY, verdict=verdict, provider_delivery_id=None)
    past, before = page(database, limit=1)
    assert ([one.update.delivery for one in past], before) == ([first.id], None)


def test_a_page_begins_at_a_moment(database: Database) -> None:
    """To the millisecond; deliveries of that moment are included."""
    connection(database)
    times = [NOW - MILLISECOND, NOW, NOW + MILLISECOND]
    sent = [deliver(database, move(None, A, f"refs/tags/{at:%f}"), at=at).id for at in times]
    assert listed(database, since=NOW) == [sent[2], sent[1]]
    assert listed(database, before=sent[1]) == [sent[0]]
    assert listed(database, since=NOW, before=sent[2]) == [sent[1]]
    assert listed(database) == sent[::-1]


def test_the_moves_of_a_delivery_stand_in_their_order(database: Database) -> None:
    """As for the worker; repeated updates of an earlier delivery are left out."""
    connection(database)
    first = deliver(database, move(A, B), move(None, C, "refs/tags/z"), move(None, C, "refs/tags/a"))
    again = deliver(database, move(A, B), move(B, C), at=NOW + DAY)
    found = [(one.update.delivery, one.update.ref, one.update.after) for one in page(database)[0]]
    assert found == [
        (again.id, "refs/heads/main", C),
        (first.id, "refs/heads/main", B),
        (first.id, "refs/tags/z", C),
        (first.id, "refs/tags/a", C),
    ]


@pytest.mark.parametrize("state", ["planned", "gone", "failed"])
def test_what_came_of_an_update_comes_with_it(database: Database, state: str) -> None:
    """Its state and reason, each trigger's verdict, and its plan inputs."""
    connection(database)
    deliver(database, move(A, B))
    [pending] = page(database)[0]
    assert (pending.state, pending.reason, pending.verdicts, pending.facts) == ("pending", None, (), None)
    settle(database, state=state, reason="why", verdicts=VERDICTS, facts=b"facts")
    [past] = page(database)[0]
    assert (past.state, past.reason, list(past.verdicts), past.facts) == (state, "why", [*VERDICTS], b"facts")
    assert past.update == pending.update
