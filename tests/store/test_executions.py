"""Execution requests: which ones a later move supersedes, a relay gets, or wait, and why."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy

from gateway.store import cancellations, executions, outages, reruns, supersession, waiting_requests
from gateway.store.database import Database
from gateway.store.executions import OMITTED, StoredRequest
from gateway.store.outbox import Outbox
from testing.records import NOW, A, B, C, connection, rows_of_others
from testing.service import wait_for
from tests.store.requests import ALL, LATER, LATEST, MAIN, end, plan, push, stored
from tests.store.test_refused import REQUEST


def test_a_request_is_kept_once_as_it_was_first_planned(database: Database) -> None:
    """A repetition of its id changes nothing, and new requests next to it are stored."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    first = replace(REQUEST, id="r1", lane="urgent")
    plan(database, ref_update, first)
    plan(database, ref_update, replace(first, body=b"[]"), replace(REQUEST, id="r2", body=b"[2]"))
    plan(database, ref_update, replace(first, body=b"[]"))
    found = stored(database)
    assert found["r1"] == StoredRequest(
        seq=found["r1"].seq,
        id="r1",
        connection="c1",
        delivery="d1",
        ref_update=ref_update,
        project="digits",
        trigger="main",
        target="train",
        subject="digits",
        body=b"{}",
        planned_at=NOW,
        lane="urgent",
    )
    assert (found["r2"].body, found["r2"].lane, len(found)) == (b"[2]", None, 2)


def test_a_dropped_request_that_is_replayed_is_planned_now(database: Database) -> None:
    """It counts with its new age in the metrics; other dropped requests stay dropped."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    plan(database, ref_update, *(replace(REQUEST, id=f"r{one}") for one in range(3)))
    with database.writing() as conn:
        for one in range(3):
            executions.drop(conn, f"r{one}")
        again = replace(REQUEST, id="r1", body=b"[]")
        executions.add(conn, [again], ref_update=ref_update, now=LATER)
    found = stored(database)
    assert [(found[f"r{one}"].state, found[f"r{one}"].body) for one in range(3)] == [
        ("dropped", b"{}"),
        ("pending", b"[]"),
        ("dropped", b"{}"),
    ]
    assert found["r1"].planned_at == LATER
    assert found["r0"].reason == "an operator has dropped it"


@pytest.fixture
def five(database: Database) -> Database:
    """Return five requests: of two connections in turn, two deliveries, with bodies of ten bytes."""
    for name in ("c1", "c2"):
        connection(database, name)
    moves = {name: push(database, f"of-{name}", A, B, connection=name) for name in ("c1", "c2")}
    for number in range(5):
        name = f"c{number % 2 + 1}"
        new = replace(
            REQUEST, id=f"r{number}", connection=name, delivery=f"of-{name}", body=b"%010d" % number
        )
        plan(database, moves[name], new)
    return database


def ids(found: list[StoredRequest]) -> list[str]:
    """Return the ids."""
    return [one.id for one in found]


def test_a_relay_gets_the_first_that_wait(five: Database) -> None:
    """In planned order, up to its limits of number and bytes, at least one."""
    with five.writing() as conn:
        executions.record(conn, published=["r0"], refused={}, undeliverable={}, now=NOW)

        def pending(limit: int = 9, most_bytes: int = 99, without: tuple[str, ...] = ()) -> list[str]:
            return ids(executions.pending(conn, limit=limit, without=without, most_bytes=most_bytes))

        assert pending() == ["r1", "r2", "r3", "r4"]
        assert pending(limit=2) == ["r1", "r2"]
        assert pending(without=("c1",)) == ["r1", "r3"]
        # The request that reaches the limit is the last.
        assert [pending(most_bytes=most) for most in (1, 10, 11)] == [["r1"], ["r1"], ["r1", "r2"]]
        bodies = [one.body for one in executions.pending(conn, limit=2, without=())]
    assert bodies == [b"0000000001", b"0000000002"]


def test_a_follower_gets_what_it_has_not_seen(five: Database) -> None:
    """From a number on, the oldest first; in an empty store the number is 0."""
    with five.reading() as conn:
        last = executions.last_seq(conn)
        assert ids(executions.planned_after(conn, last - 3, limit=2)) == ["r2", "r3"]
        assert executions.planned_after(conn, last, limit=9) == []


def test_pages_of_requests_go_back_in_time(five: Database) -> None:
    """Each states whether there are older ones, with any filter."""
    with five.writing() as conn:
        executions.drop(conn, "r3")

        def page(limit: int = 9, **wanted: str | int) -> tuple[list[str], bool]:
            found, are_older = executions.page(conn, limit=limit, **{**ALL, **wanted})  # type: ignore[arg-type]
            return ids(found), are_older

        last = executions.last_seq(conn)
        assert page() == (["r4", "r3", "r2", "r1", "r0"], False)
        assert page(limit=5) == page()
        assert page(limit=4) == (["r4", "r3", "r2", "r1"], True)
        assert page(before=last - 1, limit=2) == (["r2", "r1"], True)
        assert page(before=last - 3) == (["r0"], False)
        assert page(connection="c1") == (["r4", "r2", "r0"], False)
        assert page(connection="c2") == (["r3", "r1"], False)
        assert page(delivery="of-c1") == (["r4", "r2", "r0"], False)
        assert page(delivery="of-c2") == (["r3", "r1"], False)
        executions.record(conn, published=["r0"], refused={}, undeliverable={}, now=NOW)
        assert page(state="dropped") == (["r3"], False)
        assert page(state="pending") == (["r4", "r2", "r1"], False)
        assert page(state="published") == (["r0"], False)
        of_first = executions.get(conn, "r0").ref_update
        assert ids(executions.of_update(conn, of_first)) == ["r0", "r2", "r4"]
        assert ids(executions.of_update(conn, executions.get(conn, "r1").ref_update)) == [
            "r1",
            "r3",
        ]


def test_large_bodies_are_left_out_of_what_is_shown(five: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page then has fewer requests, a delivery has all, some without their bodies."""
    monkeypatch.setattr(executions, "READ_BYTES", 20)
    with five.reading() as conn:
        found, are_older = executions.page(conn, limit=9, **ALL)
        assert (ids(found), are_older) == (["r4", "r3"], True)
        shown = executions.of_deliveries(conn, ["of-c1", "of-c2"])
    assert ids(shown) == ["r0", "r1", "r2", "r3", "r4"]
    assert [one.body == OMITTED for one in shown] == [False, False, True, True, True]


def test_what_waits_names_the_refused_request_before_it(five: Database) -> None:
    """The first one of its connection; without a broker no request waits for another."""
    refused_with = {"r1": "full", "r2": "no", "r4": "no"}
    with five.writing() as conn:
        executions.record(conn, published=[], refused=refused_with, undeliverable={}, now=NOW)
        refused = executions.refusals(conn, ["c1"])
        assert {name: (one.id, one.body) for name, one in refused.items()} == {"c1": ("r2", OMITTED)}
        both = executions.refusals(conn, ["c1", "c2"])
        assert {name: one.id for name, one in both.items()} == {"c1": "r2", "c2": "r1"}
        requests, _ = executions.page(conn, limit=9, **ALL)

        def reasons(*, has_broker: bool) -> dict[str, str | None]:
            found = waiting_requests.explained(conn, requests, has_broker=has_broker, now=NOW)
            assert ids(found) == ids(requests)
            return {one.id: one.reason for one in found}

        on_its_way = "it is on its way to the broker, which has not confirmed it yet"
        assert reasons(has_broker=True) == {
            **refused_with,
            "r0": on_its_way,
            "r3": "it waits behind r1: full",
        }
        assert reasons(has_broker=False) == {**refused_with, "r0": None, "r3": None}
        outages.record(conn, "event", "the broker is away", now=NOW)
        assert reasons(has_broker=True)["r0"] == on_its_way


def test_a_request_that_was_refused_and_is_published_has_no_reason(five: Database) -> None:
    """The refusal is over; a request dropped meanwhile keeps its reason."""
    with five.writing() as conn:
        executions.record(conn, published=[], refused={"r1": "full"}, undeliverable={}, now=NOW)
        executions.drop(conn, "r3")
        executions.record(
            conn, published=["r1"], refused={"r3": "full"}, undeliverable={"r3": "large"}, now=LATER
        )
    found = stored(five)
    assert (found["r1"].reason, found["r1"].published_at) == (None, LATER)
    assert (found["r3"].state, found["r3"].reason) == ("dropped", "an operator has dropped it")
    assert [found[name].state for name in ("r0", "r2", "r4")] == ["pending"] * 3
    assert found["r0"].published_at is None


def test_the_outbox_of_one_process_is_read_and_emptied(five: Database) -> None:
    """As by the relay; the time of publishing is now."""
    outbox = Outbox(five)

    def taken() -> list[str] | None:
        found = asyncio.run(outbox.pending(limit=2, without=["c2"]))
        return None if found is None else ids(found)

    wait_for(lambda: taken() == ["r0", "r2"], "this process leads")
    asyncio.run(outbox.record(published=["r0"], refused={"r1": "full"}, undeliverable={"r2": "large"}))
    found = stored(five)
    assert [(found[name].state, found[name].reason) for name in ("r0", "r1", "r2")] == [
        ("published", None),
        ("pending", "full"),
        ("undeliverable", "large"),
    ]
    published_at = found["r0"].published_at
    assert published_at is not None
    assert abs(datetime.now(UTC) - published_at) < timedelta(hours=1)


OF_ONE: dict[str, Callable[[sqlalchemy.Connection, int], object]] = {
    "add": lambda t, mine: executions.add(
        t, [replace(REQUEST, id="new", delivery="c1-d1")], ref_update=mine, now=LATER
    ),
    "revive": lambda t, mine: executions.add(
        t, [replace(LATEST, id="c1-dropped")], ref_update=mine, now=LATER
    ),
    "supersede": lambda t, _: supersession.supersede(
        t, replace(LATEST, id="c1-second"), ref=MAIN, generation=2, commit=C
    ),
    "promote": lambda t, mine: supersession.promote(t, mine, connection="c1", ref=MAIN, generation=9),
    "drop": lambda t, _: executions.drop(t, "c1-first"),
    "record": lambda t, _: executions.record(
        t, published=["c1-first"], refused={"c1-second": "full"}, undeliverable={}, now=LATER
    ),
    "cancel": lambda t, _: cancellations.cancel(t, "c1-published", now=LATER),
    "rerun": lambda t, _: reruns.rerun(t, "c1-published", now=LATER),
    "republish": lambda t, _: reruns.republish(t, "c1-published", now=LATER),
    "never": lambda t, _: executions.record(
        t, published=[], refused={}, undeliverable={"c1-second": "large"}, now=LATER
    ),
}


@pytest.mark.parametrize("what", OF_ONE)
def test_requests_of_a_connection_leave_those_of_all_others_alone(database: Database, what: str) -> None:
    """Even if their refs, triggers and moves are the same."""
    moves = {}
    for name in ("c0", "c1", "c2"):
        connection(database, name)
        new = replace(LATEST, connection=name)
        first = push(database, f"{name}-d1", A, B, connection=name)
        second = push(database, f"{name}-d2", B, C, connection=name)
        plan(database, first, replace(new, id=f"{name}-first", delivery=f"{name}-d1"))
        plan(database, second, replace(new, id=f"{name}-second", delivery=f"{name}-d2"))
        for ended in ("dropped", "published"):
            plan(database, first, replace(new, id=f"{name}-{ended}", delivery=f"{name}-d1"))
            end(database, f"{name}-{ended}", ended)
        moves[name] = first
    with database.writing() as conn:
        before = rows_of_others(conn, "c1"), everything(conn)
        OF_ONE[what](conn, moves["c1"])
        assert rows_of_others(conn, "c1") == before[0]
        assert everything(conn) != before[1]


def everything(conn: sqlalchemy.Connection) -> object:
    """Return all requests, with their bodies."""
    found, _ = executions.page(conn, limit=99, **ALL)
    return found, rows_of_others(conn, "")


def test_what_has_ended_holds_up_nothing(five: Database) -> None:
    """Even with a reason: the first refusal of a connection is that of a pending request."""
    end(five, "r0", "undeliverable")
    with five.writing() as conn:
        assert executions.refusals(conn, ["c1", "c2"]) == {}
        executions.record(conn, published=[], refused={"r2": "full"}, undeliverable={}, now=NOW)
        assert [one.id for one in executions.refusals(conn, ["c1", "c2"]).values()] == ["r2"]
        executions.drop(conn, "r2")
        assert executions.refusals(conn, ["c1", "c2"]) == {}


def test_a_body_is_kept_and_revived_beside_those_of_others(five: Database) -> None:
    """Each request keeps its body, whichever of them is planned again."""
    for name in ("r0", "r2", "r4"):
        end(five, name, "dropped")
    with five.writing() as conn:
        again = replace(REQUEST, id="r2", delivery="of-c1", body=b"again")
        ref_update = executions.get(conn, "r2").ref_update
        executions.add(conn, [again], ref_update=ref_update, now=LATER)
    found = stored(five)
    assert [found[f"r{number}"].body for number in range(5)] == [
        b"0000000000",
        b"0000000001",
        b"again",
        b"0000000003",
        b"0000000004",
    ]
    assert [found[f"r{number}"].planned_at for number in range(5)] == [NOW, NOW, LATER, NOW, NOW]
