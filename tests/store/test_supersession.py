"""Supersession: a later move of a ref takes back the pending requests of the moves before it."""

from dataclasses import replace

import pytest

from gateway.store import executions, supersession
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from testing.records import A, B, C, connection
from tests.store.requests import LATER, LATEST, MAIN, TOPIC, end, plan, push, request, stored
from tests.store.test_refused import REQUEST


def supersede(database: Database, request: NewRequest, generation: int, ref: str = MAIN) -> None:
    """Make a request of a move the latest of its ref."""
    with database.writing() as conn:
        supersession.supersede(conn, request, ref=ref, generation=generation, commit=B)


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
