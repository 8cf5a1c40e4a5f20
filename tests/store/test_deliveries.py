"""What is new, and what is a duplicate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event, select

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound
from gateway.store import connections, deliveries, histories, tables, work_queue
from gateway.store.accept import NewDelivery
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.other_repositories import OtherRepository
from gateway.store.work_queue import Settlement
from testing.records import NOW, A, B, C, arrival, connection, move
from tests.store.accepting import HOUR, D, E, got, head, record


def test_a_new_push_is_accepted(database: Database) -> None:
    """The delivery and its update can be read again, as they came."""
    connection(database)
    sent = arrival(move(A, B))
    assert record(database, sent) == ["accepted"]
    with database.reading() as conn:
        kept = deliveries.get(conn, sent.id)
        assert deliveries.body(conn, sent.id) == sent.body
    assert (kept.verdict, kept.received_at, kept.pusher) == ("accepted", NOW, "ada")
    [update] = kept.updates
    assert (update.update, update.state, update.generation) == (move(A, B), "pending", 1)


def test_the_use_of_a_secret_is_remembered(database: Database, keyring: Keyring) -> None:
    """During a rotation operators see whether the old secret is still in use."""
    connection(database)
    with database.writing() as conn:
        connections.add_secret(conn, keyring, "c1", b"old", now=NOW)
        connections.add_secret(conn, keyring, "c1", b"new", now=NOW)
        new, old = connections.live_secrets(conn, keyring, "c1")
    later = NOW + timedelta(minutes=1)
    record(database, arrival(move(A, B), secret=old.id, received_at=later))
    with database.reading() as conn:
        used = [secret.last_used_at for secret in connections.secret_dates(conn, ["c1"])["c1"]]
    assert used == [None, later]
    assert (new.value, old.value) == (b"new", b"old")


def test_a_delivery_teaches_the_repository_id_once(database: Database) -> None:
    """The first id learned stays."""
    connection(database)
    record(database, arrival(move(A, B), teaches="1"))
    record(database, arrival(move(B, C), teaches="2"))
    with database.reading() as conn:
        assert connections.get(conn, "c1").repository_id == "1"


def test_pages_follow_one_another(database: Database) -> None:
    """The newest first, and each delivery on exactly one page."""
    connection(database)
    sent = [arrival(move(A, B), id=f"{number:04}") for number in range(5)]
    record(database, *sent)
    with database.reading() as conn:
        first = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=3)
        rest = deliveries.page(conn, connection="c1", verdict=None, before=first[-1].id, limit=3)
    assert [delivery.id for delivery in first + rest] == ["0004", "0003", "0002", "0001", "0000"]


def due(database: Database) -> dict[str, tuple[datetime, bool]]:
    """Return when each reconciliation is due, and which delivery requested it."""
    columns = (
        tables.reconciliations.c.connection,
        tables.reconciliations.c.due_at,
        tables.reconciliations.c.asked,
    )
    with database.reading() as conn:
        return {name: (due_at, asked) for name, due_at, asked in conn.execute(select(*columns))}


def test_each_delivery_is_found_by_its_own_id(three: Database) -> None:
    """With its own body and updates; an unknown id is not found."""
    sent = [arrival(move(A, B), id=f"d{n}", connection=f"c{n}", body=b"%d" % n) for n in (1, 2, 3)]
    record(three, *sent)
    with three.reading() as conn:
        for one in sent:
            found = deliveries.get(conn, one.id)
            assert (found.id, found.connection, len(found.updates)) == (one.id, one.connection, 1)
            assert deliveries.body(conn, one.id) == one.body
        for look in (deliveries.get, deliveries.body):
            with pytest.raises(NotFound, match="no delivery has the id d4"):
                look(conn, "d4")


def test_pages_hold_what_the_filters_say_and_nothing_else(three: Database) -> None:
    """By connection, by verdict, by age, and by all of them; without a filter they hold everything."""
    record(
        three,
        *(arrival(move(A, B), id=f"d{n}", connection=f"c{n}", provider_delivery_id="1") for n in (1, 2, 3)),
        *(arrival(move(A, B), id=f"e{n}", connection=f"c{n}", provider_delivery_id="1") for n in (1, 2, 3)),
        *(arrival(id=f"f{n}", connection=f"c{n}", verdict="ignored") for n in (1, 2, 3)),
        *(arrival(id=f"g{n}", connection=f"c{n}", verdict="unreadable") for n in (1, 2, 3)),
    )

    def page(**filters: Any) -> list[str]:
        every: dict[str, Any] = {"connection": None, "verdict": None, "before": None, "limit": 100}
        with three.reading() as conn:
            return [one.id for one in deliveries.page(conn, **{**every, **filters})]

    assert page() == [f"{letter}{n}" for letter in "gfed" for n in (3, 2, 1)]
    assert page(connection="c2") == ["g2", "f2", "e2", "d2"]
    assert page(verdict="duplicate") == ["e3", "e2", "e1"]
    assert page(verdict="ignored", before="f3") == ["f2", "f1"]
    assert page(connection="c2", verdict="accepted", before="d3", limit=1) == ["d2"]


def test_deliveries_are_found_by_the_commit_that_they_brought(three: Database) -> None:
    """Whole or by its beginning, also by way of a tag; commits listed in pushes are searched separately."""
    tag = replace(move(None, C, "refs/tags/v1"), peeled=D)
    listing = replace(move(B, E), commits=(D, E))
    record(three, arrival(move(A, B), id="d1"), arrival(tag, id="d2"), arrival(listing, id="d3"))

    def found(commit: str) -> list[str]:
        every: dict[str, Any] = {"connection": None, "verdict": None, "before": None, "limit": 100}
        with three.reading() as conn:
            return [one.id for one in deliveries.page(conn, **every, commit=commit)]

    assert [found(commit) for commit in (B, "b" * 7, "c", D, "d" * 7, E, A)] == [
        ["d1"], ["d1"], ["d2"], ["d2"], ["d2"], ["d3"], [],
    ]  # fmt: skip


def test_only_the_newest_pushes_are_searched_for_what_they_list(
    three: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first: it would take too long to read them all."""
    monkeypatch.setattr(deliveries, "_SEARCHED", 3)
    walk = [A, B, C, A, C, B]
    moves = [replace(move(old, new), commits=(E, D)) for old, new in pairwise(walk)]
    record(three, *(arrival(one, id=f"d{number}") for number, one in enumerate(moves)))
    with three.reading() as conn:
        for commit in (D, "d" * 7, E):
            found = deliveries.containing(conn, commit, limit=100)
            assert [one.id for one in found] == ["d4", "d3", "d2"]
        assert len(deliveries.containing(conn, D, limit=1)) == 1
        assert deliveries.containing(conn, "de", limit=1) == []


def test_a_delivery_names_the_secret_that_proved_it(three: Database, keyring: Keyring) -> None:
    """By the secret's creation time; only that secret is marked as in use."""
    made = [NOW + timedelta(minutes=minute) for minute in range(3)]
    with three.writing() as conn:
        for moment in made:
            connections.add_secret(conn, keyring, "c1", b"a secret", now=moment)
        ids = {
            created_at: number
            for number, created_at in conn.execute(select(tables.secrets.c.id, tables.secrets.c.created_at))
        }
        kept = sorted(ids)
    secret = kept[len(kept) // 2]
    sent = arrival(move(A, B), secret=ids[secret], received_at=NOW + HOUR)
    record(three, sent, arrival(id="unproven"))
    assert got(three, sent.id).secret_made_at == secret
    assert got(three, "unproven").secret_made_at is None
    with three.reading() as conn:
        used = conn.execute(select(tables.secrets.c.created_at, tables.secrets.c.last_used_at)).all()
    assert {made_at: used_at for made_at, used_at in used if used_at is not None} == {secret: NOW + HOUR}


def test_what_a_pull_request_is_stays_with_its_head(three: Database) -> None:
    """Triggers need its facts; other refs have none."""
    moves = [head(A), move(None, B), move(None, C, "refs/tags/v1")]
    record(three, arrival(*moves, detail={"pull_request": {"number": "5"}}), arrival(head(A, "6")))
    kept = select(tables.ref_updates.c.ref, tables.ref_updates.c.pull_request)
    with three.reading() as conn:
        assert dict(tuple(row) for row in conn.execute(kept)) == {
            "refs/pull/5/head": {"number": "5"},
            "refs/heads/main": None,
            "refs/tags/v1": None,
            "refs/pull/6/head": None,
        }


def test_a_remote_is_looked_at_soon_where_the_order_of_moves_was_assumed(three: Database) -> None:
    """Of that connection only, never later than otherwise, and not for moves that follow one another."""
    record(three, *(arrival(move(A, B), connection=name) for name in ("c1", "c2", "c3")))
    record(three, arrival(move(B, C), connection="c2"))
    assert set(due(three).values()) == {(NOW + HOUR, False)}
    record(three, arrival(move(D, E), connection="c2"))
    later = {"c1": (NOW + HOUR, False), "c3": (NOW + HOUR, False)}
    assert due(three) == {**later, "c2": (NOW + timedelta(seconds=5), False)}
    record(three, arrival(move(D, E), connection="c2", received_at=NOW + HOUR))
    record(three, arrival(move("1" * 40, "2" * 40), connection="c2", received_at=NOW + HOUR))
    assert due(three) == {**later, "c2": (NOW + timedelta(seconds=5), False)}


def test_who_asks_has_the_remote_looked_at_now(three: Database) -> None:
    """Only its own remote."""
    record(three, arrival(connection="c2", asks_for_reconciliation=True), arrival(connection="c1"))
    assert due(three) == {"c1": (NOW + HOUR, False), "c2": (NOW, True), "c3": (NOW + HOUR, False)}


def test_another_repository_is_remembered_of_its_connection_and_looked_into(three: Database) -> None:
    """The remote may confirm it: the look is due now, unless it was due earlier."""
    other = OtherRepository(id="2", name="acme/digits", delivery="d1", refs={"refs/heads/main": A})
    claiming = arrival(connection="c2", verdict="ignored", other_repository=other)
    record(three, claiming, arrival(connection="c1"), arrival(connection="c3"))
    assert due(three) == {"c1": (NOW + HOUR, False), "c2": (NOW, False), "c3": (NOW + HOUR, False)}
    record(three, replace(claiming, id="d2", provider_delivery_id="d2", received_at=NOW + HOUR))
    assert due(three)["c2"] == (NOW, False)
    with three.reading() as conn:
        known = {name: connections.get(conn, name).other_repository for name in ("c1", "c2", "c3")}
    assert known == {"c1": None, "c2": other, "c3": None}


def test_a_repository_id_is_learned_for_its_connection_only(three: Database) -> None:
    """Others learn their own."""
    record(three, arrival(connection="c2", teaches="1"), arrival(connection="c1"))
    with three.reading() as conn:
        known = [connections.get(conn, name).repository_id for name in ("c1", "c2", "c3")]
    assert known == [None, "1", None]


def test_attempts_belong_to_the_update_that_was_replayed(three: Database) -> None:
    """The others of the delivery have none; a delivery of a deleted connection shows the deletion."""
    record(three, *(arrival(move(A, B), id=f"d{n}", connection=f"c{n}") for n in (1, 2, 3)))
    verdicts_given = [{"trigger": "t", "matched": False, "reason": "no"}]
    with three.writing() as conn:
        claims = Claims(process="p1")
        for name in claims.claim(conn, owner="w1", now=NOW, until=NOW + HOUR, most=9):
            [pending] = work_queue.pending(conn, name, limit=10)
            end = Settlement(update=pending, state="planned", reason="done", verdicts=verdicts_given)
            work_queue.settle(conn, name, [end], owner="w1", now=NOW)
        work_queue.replay(conn, "d2", now=NOW + HOUR)
        connections.remove(conn, "c3", now=NOW)
    with three.reading() as conn:
        found = deliveries.page(conn, connection=None, verdict=None, before=None, limit=10)
    attempts = {one.id: [list(each.verdicts) for each in one.updates[0].attempts] for one in found}
    assert attempts == {"d1": [], "d2": [verdicts_given], "d3": []}
    assert {one.id: list(one.updates[0].verdicts) for one in found} == {
        "d1": verdicts_given,
        "d2": [],
        "d3": verdicts_given,
    }
    assert {one.id: one.is_orphan for one in found} == {"d1": False, "d2": False, "d3": True}


def test_a_batch_of_any_size_is_known_in_full(three: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a statement takes a limited number of values, no id, ref or move is missed."""
    monkeypatch.setattr(histories, "MAX_VALUES", 6)

    def walk(old: str, new: str) -> list[NewDelivery]:
        return [
            arrival(move(old, new, f"refs/heads/{number}"), provider_delivery_id=f"{number} {new}")
            for number in range(8)
        ]

    assert record(three, *walk(A, B), *walk(B, C)) == ["accepted"] * 16
    assert record(three, *walk(A, B)) == ["duplicate"] * 8
    renamed = [replace(one, provider_delivery_id=None) for one in walk(A, B)]
    assert record(three, *renamed) == ["duplicate"] * 8
    ids = [f"{number:040x}" for number in range(1, 9)]
    moves = [move(old, new) for old, new in pairwise(ids)]
    assert record(three, *map(arrival, moves)) == ["accepted"] * 7
    assert record(three, arrival(*moves)) == ["duplicate"]


def test_the_next_move_of_a_ref_reads_no_earlier_ones(three: Database) -> None:
    """This is the usual case on the hot path, and a ref may have moved a million times."""
    record(three, arrival(move(None, A)), arrival(move(A, B, "refs/heads/older")))
    with _statements(three) as statements:
        assert record(three, arrival(move(A, B), move(None, C, "refs/tags/v1"))) == ["accepted"]
        assert record(three, arrival(move(B, C, "refs/heads/older"))) == ["accepted"]
        assert record(three, arrival(move(A, B))) == ["duplicate"]
    assert [one for one in statements if _reads_updates(one)] == []


def test_a_batch_reads_the_earlier_moves_of_all_its_refs_at_once(three: Database) -> None:
    """Pushes in the wrong order cost a statement for the batch, not for each delivery."""
    refs = [f"refs/heads/{number}" for number in range(9)]
    record(three, *(arrival(move(None, A, ref)) for ref in refs))
    with _statements(three) as statements:
        batch = [arrival(move(B, C, ref)) for ref in refs]
        assert record(three, *batch, arrival(move(C, D, refs[0]))) == ["accepted"] * 10
    assert len([one for one in statements if _reads_updates(one)]) == 1


@contextmanager
def _statements(database: Database) -> Iterator[list[str]]:
    """Yield the list of the statements that are executed in the block."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


def _reads_updates(statement: str) -> bool:
    return statement.startswith(("SELECT", "WITH")) and "ref_updates" in statement


def test_tens_of_thousands_of_refs_are_looked_up_at_once(three: Database) -> None:
    """As after a push of a whole mirror: no statement gets more values than the database takes."""
    keys = [("c1", f"refs/heads/{number}") for number in range(20_000)]
    with three.reading() as conn:
        found = histories.read_histories(conn, keys)
    assert found.keys() == set(keys)
    assert not any(history.exists for history in found.values())
