"""Filters of deliveries and executions: whichever of them leads, the same records are found."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import update

from gateway.store import accept, delivery_search, execution_search, executions, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.delivery_search import DeliveryFilters
from gateway.store.execution_search import ExecutionFilters
from gateway.store.execution_tables import executions as execution_table
from gateway.store.ids import delivery_id
from gateway.store.tables import leases
from gateway.store.work_queue import Settlement
from testing.records import NOW, arrival, connection, move, request
from tests.store.claiming import first

PEOPLE = ["Ada", "ada lovelace", "Grace"]
BRANCHES = ["main", "maintenance", "topic", "50%_off"]


@dataclass(frozen=True)
class Sent:
    """A delivery and what it is found by."""

    id: str
    number: int
    connection: str
    outcome: str
    branch: str
    pusher: str
    author: str | None
    commit: str
    received_at: datetime


def sent(number: int) -> Sent:
    """Return a delivery, each with another mixture of facts."""
    at = NOW + timedelta(minutes=number)
    return Sent(
        id=delivery_id(at),
        number=number,
        connection=f"c{number % 2 + 1}",
        outcome=("ran", "nothing-matched", "failed")[number % 3],
        branch=BRANCHES[number % 4],
        pusher=PEOPLE[number // 3 % 3],
        author="Ada Lovelace <ada@example.org>" if number % 5 == 0 else None,
        commit=f"{number + 1:040x}"[::-1],
        received_at=at,
    )


def store(database: Database, one: Sent) -> None:
    """Accept and settle a delivery."""
    moved = move(None, one.commit, f"refs/heads/{one.branch}")
    mine = {"id": one.id, "connection": one.connection, "pusher": one.pusher, "received_at": one.received_at}
    with database.writing() as conn:
        accept.record(conn, [arrival(moved, **mine)])
        conn.execute(update(leases).values(due_at=NOW))
        until = NOW + timedelta(days=9)
        claimed = first(Claims(process="p").claim(conn, owner="w", now=one.received_at, until=until))
        assert claimed == one.connection
        [pending] = work_queue.pending(conn, one.connection, limit=9)
        planned = request(f"r{one.number}", connection=one.connection, delivery=one.id)
        end = Settlement(
            update=pending,
            state="failed" if one.outcome == "failed" else "planned",
            reason="",
            author=one.author,
            requests=(planned,) if one.outcome == "ran" else (),
        )
        work_queue.settle(conn, one.connection, [end], owner="w", now=one.received_at, ends_turn=True)


@pytest.fixture
def filled(database: Database) -> tuple[Database, list[Sent]]:
    """Return a store with deliveries of all mixtures, and these, the newest first."""
    connection(database, "c1", name="acme/digits")
    connection(database, "c2", name="acme/Letters")
    everything = [sent(number) for number in range(36)]
    for one in everything:
        store(database, one)
    return database, everything[::-1]


def is_found(one: Sent, wanted: DeliveryFilters) -> bool:
    """Return whether a delivery meets filters, by their definition."""
    folded = [name.casefold() for name in (one.pusher, one.author or "")]
    short = (wanted.branch or "").removeprefix("refs/heads/")
    author = (wanted.author or "").casefold()
    search = (wanted.search or "").casefold()
    name = {"c1": "acme/digits", "c2": "acme/letters"}[one.connection]
    return all(
        (
            wanted.connection in {None, one.connection},
            wanted.outcome in {None, one.outcome},
            wanted.branch is None or one.branch == short,
            wanted.author is None or any(each.partition(" <")[0] == author for each in folded),
            wanted.since is None or one.received_at >= wanted.since,
            wanted.until is None or one.received_at < wanted.until,
            wanted.commit is None or one.commit.startswith(wanted.commit),
            wanted.search is None
            or search in name
            or one.branch.startswith(wanted.search.removeprefix("refs/heads/"))
            or any(each.startswith(search) for each in folded)
            or (len(search) >= 7 and one.commit.startswith(search)),
        )
    )


FILTERS: list[dict[str, Any]] = [
    {
        name: value
        for name, value in zip(("connection", "outcome", "branch", "author"), values, strict=True)
        if value
    }
    for values in product(
        (None, "c1"),
        (None, "failed"),
        (None, "main", "refs/heads/topic"),
        (None, "ADA", "ada lovelace", "ad"),
    )
]
FILTERS += [
    {"search": text, **more}
    for text in ("main", "refs/heads/mai", "50%_", "ad", "GRACE", "letters", "1000000", "nobody", "%")
    for more in ({}, {"connection": "c1", "outcome": "ran"})
]
FILTERS += [
    {"since": NOW + timedelta(minutes=20), "until": NOW + timedelta(minutes=30), **more}
    for more in ({}, {"branch": "main"}, {"search": "ada"}, {"commit": "a1" + "0" * 10})
]


def pages(find: Callable[..., tuple[list[Any], Any]]) -> list[Any]:
    """Return the items of all pages."""
    found, before = find(before=None)
    while before is not None:
        more, before = find(before=before)
        found += more
    return found


def test_all_pages_together_have_what_the_filters_select(
    filled: tuple[Database, list[Sent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first, each once: whatever leads, and also where a page is cut off before it is full."""
    database, everything = filled
    with database.reading() as conn:
        for number, wanted in enumerate(FILTERS):
            for module in (delivery_search, execution_search):
                monkeypatch.setattr(module, "_FEW", (2, 200)[number % 2])
                monkeypatch.setattr(module, "MAX_EXAMINED", (8, 10_000)[number % 3 % 2])
            filters = DeliveryFilters(**wanted)
            expected = [one for one in everything if is_found(one, filters)]
            ids = pages(partial(delivery_search.find, conn, filters, limit=4))
            assert ids == [one.id for one in expected], wanted
            if not wanted.keys() & {"commit", "outcome"}:
                of_requests = ExecutionFilters(**wanted)
                numbers = pages(partial(execution_search.find, conn, of_requests, limit=4))
                names = [executions.numbered(conn, [number])[0].id for number in numbers]
                assert names == [f"r{one.number}" for one in expected if one.outcome == "ran"], wanted


def test_executions_are_also_found_by_their_state(filled: tuple[Database, list[Sent]]) -> None:
    """Together with the other filters."""
    database, everything = filled
    with database.writing() as conn:
        conn.execute(update(execution_table).where(execution_table.c.id == "r0").values(state="dropped"))
    with database.reading() as conn:
        filters = ExecutionFilters(state="dropped", branch="main")
        found, following = executions.search(conn, filters, before=None, limit=9)
    assert ([one.id for one in found], following) == (["r0"], None)
    assert everything[-1].branch == "main"
