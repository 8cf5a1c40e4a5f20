"""Execution requests: which ones a later move supersedes, a relay gets, or wait, and why."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy

from gateway.store import accept, executions, outages, supersession, work_queue
from gateway.store.database import Database
from gateway.store.executions import OMITTED, NewRequest, StoredRequest
from gateway.store.outbox import Outbox
from testing.records import NOW, A, B, C, arrival, connection, move, rows_of_others
from testing.service import wait_for
from tests.store.test_refused import REQUEST

LATER = NOW + timedelta(minutes=1)
MAIN, TOPIC = "refs/heads/main", "refs/heads/topic"
LATEST = replace(REQUEST, is_latest_only=True)


def push(database: Database, delivery: str, before: str, after: str, **more: str) -> int:
    """Record a push; return the number of its ref update."""
    ref, connection_id = more.get("ref", MAIN), more.get("connection", "c1")
    with database.writing() as conn:
        sent = arrival(move(before, after, ref), id=delivery, connection=connection_id)
        accept.record(conn, [sent])
        updates = work_queue.pending(conn, connection_id, limit=99)
    return max(one.seq for one in updates)


def plan(database: Database, ref_update: int, *requests: NewRequest) -> None:
    """Put a ref update's requests into the outbox."""
    with database.writing() as conn:
        executions.add(conn, requests, ref_update=ref_update, now=NOW)


def supersede(database: Database, request: NewRequest, generation: int, ref: str = MAIN) -> None:
    """Make a request of a move the latest of its ref."""
    with database.writing() as conn:
        supersession.supersede(conn, request, ref=ref, generation=generation, commit=B)


def stored(database: Database) -> dict[str, StoredRequest]:
    """Return all requests by their ids."""
    with database.reading() as conn:
        found, _ = executions.page(conn, limit=99, **ALL)
    return {one.id: one for one in found}


ALL: dict[str, None] = dict.fromkeys(("connection", "delivery", "state", "before"))


@pytest.fixture
def two_moves(database: Database) -> Database:
    """Return a store with two moves of main, and requests of two triggers for each."""
    connection(database)
    for name, ends in (("d1", (A, B)), ("d2", (B, C))):
        ref_update = push(database, name, *ends)
        both = (replace(LATEST, id=f"{name}-{trigger}", delivery=name, trigger=trigger) for trigger in "ab")
        plan(database, ref_update, *both)
    return database


def request(name: str) -> NewRequest:
    """Return one of the requests of `two_moves`."""
    delivery, _, trigger = name.partition("-")
    return replace(LATEST, id=name, delivery=delivery, trigger=trigger)


def test_a_later_move_takes_back_what_its_trigger_asked_for(two_moves: Database) -> None:
    """Only unpublished requests, and none of another trigger, ref or connection."""
    supersede(two_moves, request("d2-a"), generation=2)
    found = stored(two_moves)
    assert {name: one.state for name, one in found.items()} == {
        "d1-a": "superseded",
        "d1-b": "pending",
        "d2-a": "pending",
        "d2-b": "pending",
    }
    assert (found["d1-a"].superseded_by, found["d1-a"].reason) == (
        "d2-a",
        f"{MAIN} has moved on to {B}, which has the request d2-a",
    )


def test_what_is_published_is_not_taken_back(two_moves: Database) -> None:
    """The runner has it."""
    with two_moves.writing() as conn:
        executions.record(conn, published=["d1-a"], refused={}, undeliverable={}, now=LATER)
    supersede(two_moves, request("d2-a"), generation=2)
    assert (stored(two_moves)["d1-a"].state, stored(two_moves)["d1-a"].published_at) == ("published", LATER)


def test_another_ref_is_not_taken_back(two_moves: Database) -> None:
    """Each ref has moves, and a latest one, of its own; so has each connection."""
    connection(two_moves, "c0")
    mine = push(two_moves, "d3", A, B, ref=TOPIC), push(two_moves, "d4", A, B, connection="c0")
    plan(two_moves, mine[0], replace(LATEST, id="topic", delivery="d3", trigger="a"))
    plan(two_moves, mine[1], replace(LATEST, id="other", delivery="d4", trigger="a", connection="c0"))
    supersede(two_moves, request("d2-a"), generation=2)
    assert [stored(two_moves)[name].state for name in ("topic", "other")] == ["pending", "pending"]


def test_of_moves_in_the_wrong_order_the_later_one_stays(two_moves: Database) -> None:
    """The earlier move's request, planned later, is superseded and names the other; older ones are too."""
    supersede(two_moves, request("d1-a"), generation=1)
    found = stored(two_moves)
    assert (found["d1-a"].state, found["d1-a"].superseded_by) == ("superseded", "d2-a")
    assert found["d1-a"].reason == f"{MAIN} had already moved on, to the commit of request d2-a"
    assert [found[name].state for name in ("d1-b", "d2-a", "d2-b")] == ["pending"] * 3


def test_a_later_move_without_a_request_of_the_trigger_supersedes_nothing(database: Database) -> None:
    """For example if it changed none of the trigger's paths."""
    connection(database)
    first = push(database, "d1", A, B)
    plan(database, push(database, "d2", B, C), replace(LATEST, id="d2-b", delivery="d2", trigger="b"))
    plan(database, first, request("d1-a"))
    supersede(database, request("d1-a"), generation=1)
    assert stored(database)["d1-a"].state == "pending"


def test_a_later_move_is_found_however_much_was_planned_since(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request for the ref's present position is looked up; of later moves the latest is named."""
    monkeypatch.setattr(supersession, "_RECENT", 2)
    connection(database)
    moves = [push(database, f"d{number}", *ends) for number, ends in enumerate([(A, B), (B, C), (C, A)])]
    for number in (1, 2):
        plan(database, moves[number], request(f"d{number}-a"))
    other = push(database, "d9", A, B, ref=TOPIC)
    plan(
        database,
        other,
        *(replace(REQUEST, id=f"x{one}", delivery="d9", trigger=f"{one}") for one in range(3)),
    )
    plan(database, moves[0], request("d0-a"))
    supersede(database, request("d0-a"), generation=1)
    found = stored(database)
    assert (found["d0-a"].state, found["d0-a"].superseded_by) == ("superseded", "d2-a")


def test_a_move_that_turns_out_to_be_later_is_run_after_all(two_moves: Database) -> None:
    """It supersedes the requests of the now earlier moves, of the triggers that it has requests of."""
    extra = push(two_moves, "d3", C, A)
    plan(two_moves, extra, replace(LATEST, id="d3-c", delivery="d3", trigger="c"))
    every = replace(REQUEST, id="every", delivery="d1", trigger="every")
    with two_moves.writing() as conn:
        first = executions.get(conn, "d1-a").ref_update
    plan(two_moves, first, every)
    supersede(two_moves, request("d2-a"), generation=2)
    supersede(two_moves, request("d2-b"), generation=2)
    with two_moves.writing() as conn:
        supersession.promote(conn, first, connection="c1", ref=MAIN, generation=9)
    found = stored(two_moves)
    assert {name: (one.state, one.superseded_by) for name, one in found.items()} == {
        "d1-a": ("pending", None),
        "d1-b": ("pending", None),
        "every": ("pending", None),
        "d2-a": ("superseded", "d1-a"),
        "d2-b": ("superseded", "d1-b"),
        "d3-c": ("pending", None),
    }
    assert found["d1-a"].reason is None
    assert found["d2-a"].reason == f"{MAIN} turned out to be at another commit"


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
            found = executions.explained(conn, requests, has_broker=has_broker)
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
        plan(database, first, replace(new, id=f"{name}-dropped", delivery=f"{name}-d1"))
        with database.writing() as conn:
            executions.drop(conn, f"{name}-dropped")
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


def end(database: Database, name: str, state: str) -> None:
    """End a request without superseding it."""
    with database.writing() as conn:
        if state == "dropped":
            executions.drop(conn, name)
        else:
            published = [name] if state == "published" else []
            never = {name: "large"} if state == "undeliverable" else {}
            executions.record(conn, published=published, refused={}, undeliverable=never, now=NOW)


@pytest.mark.parametrize("state", ["published", "dropped", "undeliverable"])
def test_what_has_ended_is_not_superseded(two_moves: Database, state: str) -> None:
    """Neither by a later move, nor if it turns out to be the earlier one, nor is it revived."""
    end(two_moves, "d1-a", state)
    supersede(two_moves, request("d2-a"), generation=2)
    supersede(two_moves, request("d1-a"), generation=1)
    with two_moves.writing() as conn:
        first = executions.get(conn, "d1-a").ref_update
        second = executions.get(conn, "d2-a").ref_update
        supersession.promote(conn, second, connection="c1", ref=MAIN, generation=5)
        supersession.promote(conn, first, connection="c1", ref=MAIN, generation=9)
    assert stored(two_moves)["d1-a"].state == state


def test_a_trigger_for_every_push_supersedes_nothing(two_moves: Database) -> None:
    """Also when its move turns out to be the latest one; other refs' moves are not compared with it."""
    with two_moves.writing() as conn:
        first = executions.get(conn, "d1-a").ref_update
        second = executions.get(conn, "d2-a").ref_update
    for number, ref_update in enumerate((first, second), start=1):
        every = replace(REQUEST, id=f"every-{number}", delivery=f"d{number}", trigger="every")
        plan(two_moves, ref_update, every)
    for number, ref in enumerate(("refs/heads/a", TOPIC)):
        mine = push(two_moves, f"x{number}", A, B, ref=ref)
        plan(two_moves, mine, replace(LATEST, id=f"x{number}", delivery=f"x{number}", trigger="a"))
    supersede(two_moves, request("d2-a"), generation=2)
    with two_moves.writing() as conn:
        supersession.promote(conn, first, connection="c1", ref=MAIN, generation=9)
    assert {name: one.state for name, one in stored(two_moves).items()} == {
        "d1-a": "pending",
        "d1-b": "pending",
        "d2-a": "superseded",
        "d2-b": "superseded",
        **dict.fromkeys(("every-1", "every-2", "x0", "x1"), "pending"),
    }


def test_a_ref_that_nobody_knows_has_no_later_move(two_moves: Database) -> None:
    """Its row may have been deleted with its history."""
    supersede(two_moves, request("d2-a"), generation=2, ref="refs/heads/unknown")
    assert {one.state for one in stored(two_moves).values()} == {"pending"}


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


def test_three_moves_in_the_wrong_order_leave_the_last_one(database: Database) -> None:
    """In any order: for each trigger the request of the latest move is published."""
    connection(database)
    moves = [push(database, f"d{number}", *ends) for number, ends in enumerate([(A, B), (B, C), (C, A)])]
    for number in (1, 2, 0):
        plan(database, moves[number], request(f"d{number}-a"))
        supersede(database, request(f"d{number}-a"), generation=number + 1)
    assert {name: (one.state, one.superseded_by) for name, one in stored(database).items()} == {
        "d0-a": ("superseded", "d2-a"),
        "d1-a": ("superseded", "d2-a"),
        "d2-a": ("pending", None),
    }


def test_of_three_moves_the_middle_one_may_turn_out_to_be_the_last(database: Database) -> None:
    """Its request is run, and those of the two others are not."""
    connection(database)
    moves = [push(database, f"d{number}", *ends) for number, ends in enumerate([(A, B), (B, C), (C, A)])]
    for number in range(3):
        plan(database, moves[number], request(f"d{number}-a"), request(f"d{number}-b"))
        for trigger in "ab":
            supersede(database, request(f"d{number}-{trigger}"), generation=number + 1)
    with database.writing() as conn:
        supersession.promote(conn, moves[1], connection="c1", ref=MAIN, generation=9)
    assert {name: (one.state, one.superseded_by) for name, one in stored(database).items()} == {
        "d0-a": ("superseded", "d1-a"),
        "d0-b": ("superseded", "d1-b"),
        "d1-a": ("pending", None),
        "d1-b": ("pending", None),
        "d2-a": ("superseded", "d1-a"),
        "d2-b": ("superseded", "d1-b"),
    }
