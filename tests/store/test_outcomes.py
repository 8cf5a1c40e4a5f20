"""The outcome of a delivery: its definition, and that the stored one follows every change."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random

import pytest
from sqlalchemy import select, update

from gateway.store import connections, executions, outcomes, reruns, supersession, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.deliveries import UpdateState
from gateway.store.execution_tables import executions as execution_table
from gateway.store.outcomes import Outcome
from gateway.store.tables import deliveries, ref_updates
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.outcome_repair import OutcomeRepair
from testing.records import NOW, arrival, connection, move, request
from tests.store.accepting import record
from tests.store.claiming import first

FAILURE = {"trigger": "a", "matched": True, "reason": "", "failure": "no such step"}
ENDS: Sequence[UpdateState] = ("planned", "planned", "planned", "planned", "failed", "gone")
REFS = ["refs/heads/main", "refs/heads/topic"]


@pytest.mark.parametrize(
    ("verdict", "is_waiting", "updates", "requests", "expected"),
    [
        ("unreadable", False, [], [], "failed"),
        ("duplicate", False, [("duplicate", ())], [], "duplicate"),
        ("ignored", False, [], [], "ignored"),
        ("ignored", True, [], [], "waiting"),
        ("accepted", False, [], [], "ignored"),
        ("accepted", False, [("pending", ()), ("planned", ())], ["pending"], "waiting"),
        ("accepted", False, [("pending", ()), ("failed", ())], [], "failed"),
        ("accepted", False, [("planned", ()), ("gone", ())], ["published"], "failed"),
        ("accepted", False, [("planned", [FAILURE])], ["published"], "failed"),
        ("accepted", False, [("planned", [{**FAILURE, "failure": None}])], [], "nothing-matched"),
        ("accepted", False, [("planned", ()), ("duplicate", ())], [], "nothing-matched"),
        ("accepted", False, [("planned", ())], ["superseded", "superseded"], "superseded"),
        ("accepted", False, [("planned", ())], ["superseded", "dropped"], "ran"),
    ],
)
def test_the_worst_of_the_ref_updates_counts(
    verdict: str,
    *,
    is_waiting: bool,
    updates: list[tuple[str, list[dict[str, str]]]],
    requests: list[str],
    expected: Outcome,
) -> None:
    """In the order failed, waiting, ran, superseded, nothing-matched, duplicate, ignored."""
    found = outcomes.outcome(verdict, is_waiting=is_waiting, updates=updates, requests=requests)
    assert found == expected


def stored(database: Database) -> dict[str, tuple[str | None, Outcome]]:
    """Return the stored outcome of each delivery, and the one by its definition."""
    with database.reading() as conn:
        rows = conn.execute(select(deliveries.c.id, deliveries.c.outcome))
        kept: dict[str, str | None] = {row.id: row.outcome for row in rows}
        defined = outcomes.of_stored(conn, list(kept))
    return {name: (kept[name], defined[name]) for name in kept}


@dataclass
class History:
    """Random changes of a store with one connection."""

    database: Database
    random: Random
    commits: int = 1
    sent: list[str] = field(default_factory=list)
    position: dict[str, str | None] = field(default_factory=dict)

    def change(self) -> None:
        """Make one random change."""
        changes = [self.push, self.push, self.settle, self.settle, self.settle]
        changes += [self.replay, self.promote, self.publish, self.publish, self.end_one, self.rerun]
        self.random.choice(changes)()

    def push(self) -> None:
        """Accept a delivery: with one or more new moves, a repeated one, or none."""
        verdict = self.random.choice(["accepted"] * 6 + ["ignored", "unreadable"])
        moves = []
        for ref in self.random.sample(REFS, self.random.choice([1, 1, 2])) if verdict == "accepted" else ():
            self.commits += self.random.random() < 0.8
            after = f"{self.commits:040x}"
            moves.append(move(self.position.get(ref), after, ref))
            self.position[ref] = after
        moves = [one for one in moves if one.before != one.after]
        self.sent.append(f"d{len(self.sent)}")
        record(self.database, arrival(*moves, id=self.sent[-1], verdict=verdict))

    def settle(self) -> None:
        """Settle one or two of the pending updates, in any order."""
        with self.database.writing() as conn:
            claimed = first(
                Claims(process="p").claim(conn, owner="w", now=NOW, until=NOW + timedelta(hours=1))
            )
            found = work_queue.pending(conn, "c1", limit=99)
            some = self.random.sample(found, min(len(found), 2))
            if claimed is not None:
                ends = [self.settlement(one) for one in some]
                work_queue.settle(conn, "c1", ends, owner="w", now=NOW, ends_turn=True)

    def settlement(self, pending: PendingUpdate) -> Settlement:
        """Return a random end of a ref update."""
        state = self.random.choice(ENDS)
        planned = Settlement(update=pending, state=state, reason="")
        if state != "planned":
            return planned
        triggers = self.random.sample("ab", self.random.choice([0, 1, 2]))
        requests = tuple(
            request(
                f"{pending.seq}-{trigger}",
                delivery=pending.delivery,
                trigger=trigger,
                is_latest_only=self.random.random() < 0.8,
            )
            for trigger in triggers
        )
        verdicts = [FAILURE] if self.random.random() < 0.1 else []
        return replace(planned, requests=requests, verdicts=verdicts)

    def replay(self) -> None:
        """Replay a delivery."""
        if self.sent:
            with self.database.writing() as conn:
                work_queue.replay(conn, self.random.choice(self.sent), now=NOW)

    def promote(self) -> None:
        """Find out that an earlier move was the latest."""
        with self.database.writing() as conn:
            found = conn.execute(select(ref_updates.c.seq, ref_updates.c.ref)).all()
            if found:
                seq, ref = self.random.choice(found)
                self.commits += 1
                generation = 1000 + self.commits
                supersession.promote(conn, seq, connection="c1", ref=ref, generation=generation)

    def publish(self) -> None:
        """Publish any request: also one that was superseded while it was being sent."""
        self.end(published=True)

    def end_one(self) -> None:
        """End a request unpublished."""
        self.end(published=False)

    def end(self, *, published: bool) -> None:
        """Record what became of a request."""
        with self.database.writing() as conn:
            name = self.any_request(self.database)
            if name is None:
                return
            if published:
                executions.record(conn, published=[name], refused={}, undeliverable={}, now=NOW)
            elif executions.get(conn, name).state == "pending":
                executions.drop(conn, name)

    def rerun(self) -> None:
        """Run a request again, if that is possible."""
        with self.database.writing() as conn:
            name = self.any_request(self.database)
            if name is not None and executions.get(conn, name).state != "pending":
                reruns.rerun(conn, name, now=NOW)

    def any_request(self, database: Database) -> str | None:
        """Return the id of a request."""
        with database.reading() as conn:
            table = execution_table.c
            ids = conn.execute(select(table.id).order_by(table.seq)).scalars().all()
        return self.random.choice(ids) if ids else None


@pytest.mark.parametrize("seed", range(4))
def test_the_stored_outcome_follows_every_change(database: Database, seed: int) -> None:
    """Acceptance, settlement, replay, supersession, publication, re-runs, and the end of the connection."""
    connection(database)
    history = History(database, Random(seed))  # noqa: S311 - the same in each run
    for number in range(60):
        history.change()
        if number % 3 == 0:
            differing = {name: pair for name, pair in stored(database).items() if pair[0] != pair[1]}
            assert differing == {}, number
    with database.writing() as conn:
        connections.remove(conn, "c1", now=NOW)
    assert all(kept == defined != "waiting" for kept, defined in stored(database).values())


def test_rows_of_the_previous_version_get_their_outcome(database: Database) -> None:
    """Those that it has written, those that it has ended, and those that it has replayed and ended."""
    connection(database)
    for name in ("d1", "d2", "d3"):
        after = name[-1] * 40
        record(database, arrival(move(None, after, f"refs/heads/{name}"), id=name, pusher="Ada Lovelace"))
    with database.writing() as conn:
        unknown = {"outcome": None, "pusher_key": None}
        conn.execute(update(deliveries).where(deliveries.c.id == "d1").values(unknown))
        ended = {"state": "planned", "reason": "", "verdicts": []}
        conn.execute(update(ref_updates).where(ref_updates.c.delivery != "d1").values(ended))
        work_queue.replay(conn, "d3", now=NOW)
        conn.execute(update(ref_updates).where(ref_updates.c.delivery == "d3").values(ended))
        conn.execute(update(deliveries).where(deliveries.c.id == "d3").values(outcome="failed"))
    repair = OutcomeRepair(database=database)

    async def repair_all() -> None:
        while await repair.repair():
            pass

    asyncio.run(repair_all())
    assert {name: kept for name, (kept, _) in stored(database).items()} == {
        "d1": "waiting",
        "d2": "nothing-matched",
        "d3": "failed",
    }
    asyncio.run(repair.check_recent(NOW))
    assert all(kept == defined for kept, defined in stored(database).values())
    with database.reading() as conn:
        keys = conn.execute(select(deliveries.c.pusher_key)).scalars().all()
    assert keys == ["ada lovelace"] * 3
