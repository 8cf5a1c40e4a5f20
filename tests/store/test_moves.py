"""A provider that shuffles, delays, repeats and drops webhooks, and replicas that lag, against the store."""

import os
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.store import accept, connections, deliveries, executions, looks, reconciliations, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.ids import delivery_id
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.reconciler import differences
from testing.postgres import Postgres
from testing.records import NOW, arrival, made, move

REF = "refs/heads/main"
GRACE = timedelta(seconds=10)


# Two pushes, the second one's webhook first.
REORDERED: list[tuple[Any, ...]] = [
    ("push", False),
    ("push", False),
    ("deliver", 1),
    ("work", 5),
    ("deliver", 0),
    ("work", 5),
]
# A webhook, then a replica that does not have the push yet.
LAGGING: list[tuple[Any, ...]] = [("push", False), ("deliver", 0), ("look", 1), ("look", 1), ("look", 0)]
# A recovered push, another missed one, and one whose webhook arrives: it looks like part of the first.
AFTER_A_GAP: list[tuple[Any, ...]] = [
    ("push", True),
    ("look", 0),
    ("look", 0),
    ("push", True),
    ("push", False),
]
# The webhook of a new connection, then a first look at a replica that does not have the push yet.
LAGGING_AT_FIRST: list[tuple[Any, ...]] = [("push", False), ("push", False), ("deliver", 1), ("look", 2)]
# A branch that is made again twice, while webhooks are lost: the last report fits an older gap too.
MADE_AGAIN: list[tuple[Any, ...]] = [
    ("delete", False),
    ("deliver", 0),
    ("back", 0, True),
    ("push", False),
    ("deliver", 0),
    ("look", 0),
    ("delete", True),
    ("push", False),
]
# A first look, the webhook of an older push, and a replica that lags just then.
LAGGING_AFTER_A_FIRST_LOOK: list[tuple[Any, ...]] = [
    ("push", False),
    ("push", False),
    ("push", False),
    ("look", 0),
    ("deliver", 0),
    ("look", 2),
    ("deliver", 5),
]
# Three pushes that a look finds as one move, and the webhook of the last of them, twice.
FOUND_AND_REPEATED: list[tuple[Any, ...]] = [
    ("push", False),
    ("push", False),
    ("deliver", 0),
    ("deliver", 0),
    ("push", False),
    ("push", False),
    ("push", False),
    ("look", 0),
    ("look", 0),
    ("deliver", 2),
    ("repeat", 2),
]
# A branch that is deleted, made again and led back to the commit that the first look had found.
BACK_TO_THE_FIRST: list[tuple[Any, ...]] = [
    ("push", True),
    ("delete", False),
    ("deliver", 0),
    ("look", 3),
    ("push", False),
    ("push", False),
    ("back", 5, False),
    ("look", 0),
]
# A branch that is deleted, made again and led back, while the webhook of the delete is late.
DELETED_BEFORE: list[tuple[Any, ...]] = [
    ("push", False),
    ("delete", False),
    ("push", True),
    ("deliver", 0),
    ("back", 1, False),
    ("deliver", 5),
    ("look", 0),
]
# A branch that is made again and led back; the next webhook overtakes that of the move back.
PUSHED_AFTER_ALL: list[tuple[Any, ...]] = [
    ("delete", True),
    ("push", False),
    ("push", False),
    ("deliver", 0),
    ("deliver", 0),
    ("back", 4, False),
    ("push", False),
    ("deliver", 5),
    ("look", 2),
]
# A branch that is deleted and made again twice; the webhooks come after a look at a replica that lags.
DELETED_TWICE: list[tuple[Any, ...]] = [
    ("delete", False),
    ("push", False),
    ("push", False),
    ("delete", False),
    ("push", False),
    ("push", False),
    ("push", False),
    ("delete", False),
    ("look", 1),
    ("look", 1),
    ("deliver", 0),
    ("deliver", 0),
    ("deliver", 5),
]
# A branch that is led back twice before the first look; the webhook of the second time is lost.
BACK_BEFORE_THE_FIRST_LOOK: list[tuple[Any, ...]] = [
    ("push", False),
    ("back", 0, False),
    ("push", False),
    ("back", 0, True),
]
# A webhook that overtakes the one before it, after a look at a replica that lags, and comes twice.
OVERTAKEN_AND_REPEATED: list[tuple[Any, ...]] = [
    ("push", False),
    ("deliver", 0),
    ("look", 1),
    ("push", True),
    ("look", 0),
    ("push", False),
    ("push", False),
    ("look", 2),
    ("deliver", 1),
    ("deliver", 0),
    ("repeat", 1),
]
# How many random histories `make soak` tries; 0 means the suite, which tries the same in each run.
RANDOM_HISTORIES = int(os.environ.get("SOAK_HISTORIES", "0"))


@dataclass
class World:
    """One branch at a provider, the webhooks on their way, and the gateway's store."""

    conn: sqlalchemy.Connection
    connection: str
    chance: random.Random
    now: datetime = NOW
    line: list[str | None] = field(default_factory=list)
    arrivals: Counter[str] = field(default_factory=Counter)
    on_their_way: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    # The newest move that the remote has shown, and whether the look before showed an older one.
    newest_shown: int = 0
    has_lagged: bool = False

    def push(self, after: str | None, *, is_dropped: bool) -> None:
        """Move the branch; its webhook is on its way, or dropped."""
        before = self.line[-1]
        if after == before:
            return
        self.line.append(after)
        if after is not None:
            self.arrivals[after] += 1
        if not is_dropped:
            self.on_their_way.append((f"guid-{len(self.line)}", before, after))

    def deliver(self, which: int) -> None:
        """Deliver one of the pending webhooks."""
        if self.on_their_way:
            sent = self.on_their_way.pop(which % len(self.on_their_way))
            self.sent.append(sent)
            self._receive(*sent)

    def repeat(self, which: int, *, is_another_id: bool) -> None:
        """Send a webhook once more, with its own id or with another one."""
        if self.sent:
            guid, before, after = self.sent[which % len(self.sent)]
            self._receive(f"{guid}-{self.chance.random()}" if is_another_id else guid, before, after)

    def _receive(self, guid: str, before: str | None, after: str | None) -> None:
        self.now += timedelta(milliseconds=10)
        if after is not None:
            self.reported.add(after)
        sent = arrival(
            move(before, after, REF),
            id=delivery_id(self.now),
            connection=self.connection,
            provider_delivery_id=guid,
            received_at=self.now,
        )
        accept.record(self.conn, [sent])

    def look(self, lag: int) -> None:
        """Compare with a replica that lags by so many moves; do the work that falls due meanwhile.

        Once the remote has shown a move, two looks in a row do not find it missing: a replica that lags by
        more than the grace is no longer served.
        """
        self.now += timedelta(minutes=6)
        reconciliation = reconciliations.claim(
            self.conn, now=self.now, until=self.now + timedelta(minutes=15)
        )
        if reconciliation is None:
            return
        known = reconciliations.known_refs(self.conn, self.connection)
        shown = self.line[self._index_shown(lag)]
        moves = differences(known, {REF: shown} if shown is not None else {})
        found = arrival(
            *moves,
            id=delivery_id(self.now),
            connection=self.connection,
            provider_delivery_id=None,
            source="reconciliation",
            received_at=self.now,
        )
        moved = {one.ref for one in moves}
        looks.record(
            self.conn,
            reconciliation,
            found,
            next_at=self.now + timedelta(minutes=5),
            look_again_at=self.now + GRACE,
            agreeing={ref: at for ref, at in known.items() if ref not in moved},
        )

    def _index_shown(self, lag: int) -> int:
        index = max(self.newest_shown if self.has_lagged else 0, len(self.line) - 1 - lag)
        self.has_lagged = index < self.newest_shown
        self.newest_shown = max(index, self.newest_shown)
        return index

    def work(self, most: int) -> None:
        """Plan some pending updates, each with one request of a trigger for the latest commit only."""
        _plan(self.conn, self.connection, now=self.now, most=most)

    def rest(self) -> None:
        """Deliver all webhooks that were not dropped, and let the remote show its present state."""
        while self.on_their_way:
            self.deliver(0)
        for _ in range(3):
            self.now += timedelta(hours=3)
            self.look(0)
            self.look(0)
        self.work(1000)

    def check(self) -> None:
        """Compare the store with the history."""
        known = reconciliations.known_refs(self.conn, self.connection)
        every: dict[str, Any] = {"connection": self.connection, "before": None, "limit": 1000}
        recorded = deliveries.page(self.conn, verdict=None, **every)
        requests, _ = executions.page(self.conn, delivery=None, state=None, **every)
        planned = Counter(
            one.update.after
            for delivery in recorded
            for one in delivery.updates
            if one.state != "duplicate" and one.update.after is not None
        )
        assert self.reported <= planned.keys(), "a commit that a webhook reported was left unplanned"
        moves = [one for each in recorded for one in each.updates if one.state != "duplicate"]
        assert len({one.generation for one in moves}) == len(moves), "two moves have the same generation"
        twice = {commit: count for commit, count in planned.items() if count > self.arrivals[commit]}
        assert not twice, "a move was planned twice"
        assert known.get(REF) == self.line[-1], "the known position is not the remote's"
        left = [one.subject for one in requests if one.state != "superseded"]
        if self.line[-1] in planned:
            assert left == [self.line[-1]], "the latest is not what the remote has"


def _plan(
    conn: sqlalchemy.Connection,
    connection: str,
    *,
    now: datetime,
    most: int,
    without: Collection[str | None] = (),
) -> None:
    """Plan pending updates; those that lead to the commits of `without` have no request."""
    claims, until = Claims(process="p1"), now + timedelta(seconds=60)
    if not claims.claim(conn, owner="w1", now=now, until=until):
        return
    ends = [
        Settlement(
            update=one,
            state="planned",
            reason="",
            requests=() if one.after in without else _requests(one),
        )
        for one in work_queue.pending(conn, connection, limit=most)
    ]
    work_queue.settle(conn, connection, ends, owner="w1", now=now)
    work_queue.release(conn, connection, owner="w1", now=now)


def _requests(update: PendingUpdate) -> tuple[NewRequest, ...]:
    if update.after is None:
        return ()
    request = NewRequest(
        id=f"{update.connection}-{update.seq}-{update.generation}",
        connection=update.connection,
        delivery=update.delivery,
        project="digits",
        trigger="train",
        target="train",
        subject=update.after,
        body=b"{}",
        is_latest_only=True,
    )
    return (request,)


def _events(*, with_revisits: bool) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    number = st.integers(0, 30)
    pushes = st.tuples(st.just("push"), st.sampled_from([False, False, False, True]))
    others: list[st.SearchStrategy[Any]] = [
        st.tuples(st.just("deliver"), number),
        st.tuples(st.just("deliver"), number),
        st.tuples(st.just("look"), st.integers(0, 3)),
        st.tuples(st.just("work"), st.integers(1, 5)),
        st.tuples(st.just("repeat"), number),
    ]
    if with_revisits:
        others.append(st.tuples(st.just("back"), number, st.booleans()))
        others.append(st.tuples(st.just("delete"), st.booleans()))
    return st.lists(st.one_of(pushes, *others), max_size=30)


def _live(world: World, events: list[tuple[Any, ...]], *, starts_known: bool, with_revisits: bool) -> None:
    start = f"{1:040x}"
    world.line.append(start)
    world.arrivals[start] += 1
    connections.add(world.conn, made(world.connection))
    if starts_known:
        world.look(0)
    for number, (what, *how) in enumerate(events, start=2):
        match what:
            case "push":
                world.push(f"{number:040x}", is_dropped=how[0])
            case "back":
                world.push(world.line[how[0] % len(world.line)], is_dropped=how[1])
            case "delete":
                world.push(None, is_dropped=how[0])
            case "deliver":
                world.deliver(how[0])
            case "repeat":
                world.repeat(how[0], is_another_id=not with_revisits)
            case "look":
                world.look(how[0])
            case "work":
                world.work(how[0])
    world.rest()
    world.check()


def _try(database: Database, events: list[tuple[Any, ...]], seed: int, **how: bool) -> None:
    """Run these events in a transaction, and roll it back."""
    with database.engine.connect() as conn, conn.begin() as begun:
        try:
            _live(World(conn, "c1", random.Random(seed)), events, **how)  # noqa: S311 - no secret
        finally:
            begun.rollback()


def _settings(examples: int) -> settings:
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        deadline=None,
        max_examples=RANDOM_HISTORIES or examples,
        suppress_health_check=slow,
        derandomize=not RANDOM_HISTORIES,
    )


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Database]:
    """Return an empty SQLite."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    yield database
    database.close()


def _line(database: Database, order: Sequence[int]) -> tuple[str | None, list[str | None]]:
    """Record the moves of a walk one by one in this order; return the position, and the moves in their order.

    Of two moves with the same generation, only one is returned.
    """
    with database.engine.connect() as conn, conn.begin() as begun:
        connections.add(conn, made("c1"))
        for number in order:
            accept.record(conn, [arrival(move(f"{number + 1:040x}", f"{number + 2:040x}", REF))])
        known = reconciliations.known_refs(conn, "c1")[REF]
        found = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=1000)
        begun.rollback()
    line = {one.generation: one.update.after for each in found for one in each.updates}
    return known, [line[generation] for generation in sorted(line)]


def test_five_moves_in_every_order_need_no_look(embedded: Database) -> None:
    """Each transaction reads what the one before it has left: no change of the gaps is forgotten."""
    for order in permutations(range(5)):
        known, line = _line(embedded, order)
        assert known == f"{6:040x}", order
        assert line[-1] == known, order
        assert len(line) == 5, order


def test_moves_that_were_overtaken_together_are_raised_together(embedded: Database) -> None:
    """Also those that are only stored: the order of all moves is right, not only the position."""
    for rest in permutations([1, 3, 4, 5]):
        order = 0, 2, *rest
        known, line = _line(embedded, order)
        assert known == f"{7:040x}", order
        assert line == [f"{number:040x}" for number in range(2, 8)], order


def test_the_request_of_the_latest_move_stays_also_in_the_middle_of_overtaken_moves(
    embedded: Database,
) -> None:
    """Of the moves 3 and 5, the last with a request, 5 was assumed to be the older one."""
    ends = [f"{number:040x}" for number in range(7)]
    with embedded.engine.connect() as conn, conn.begin() as begun:
        connections.add(conn, made("c1"))
        for number in (1, 3, 5, 6, 4, 2):
            accept.record(conn, [arrival(move(ends[number - 1], ends[number], REF))])
            _plan(conn, "c1", now=NOW, most=1, without={ends[one] for one in (1, 2, 4, 6)})
        requests, _ = executions.page(conn, connection="c1", delivery=None, state=None, before=None, limit=10)
        begun.rollback()
    assert {one.subject: one.state for one in requests} == {ends[3]: "superseded", ends[5]: "pending"}


@_settings(150)
@example(events=REORDERED, starts_known=True, seed=0)
@example(events=LAGGING, starts_known=True, seed=0)
@example(events=AFTER_A_GAP, starts_known=True, seed=0)
@example(events=LAGGING_AT_FIRST, starts_known=False, seed=0)
@example(events=LAGGING_AFTER_A_FIRST_LOOK, starts_known=False, seed=0)
@example(events=FOUND_AND_REPEATED, starts_known=True, seed=0)
@example(events=OVERTAKEN_AND_REPEATED, starts_known=False, seed=0)
@given(events=_events(with_revisits=False), starts_known=st.booleans(), seed=st.integers(0, 10**6))
def test_pushes_in_any_order(
    embedded: Database, events: list[tuple[Any, ...]], starts_known: bool, seed: int
) -> None:
    """Every commit with a webhook is planned, none twice, and the latest is the remote's."""
    _try(embedded, events, seed, starts_known=starts_known, with_revisits=False)


@_settings(150)
@example(events=MADE_AGAIN, starts_known=True, seed=0)
@example(events=BACK_TO_THE_FIRST, starts_known=True, seed=0)
@example(events=DELETED_BEFORE, starts_known=True, seed=0)
@example(events=PUSHED_AFTER_ALL, starts_known=True, seed=0)
@example(events=DELETED_TWICE, starts_known=True, seed=0)
@example(events=BACK_BEFORE_THE_FIRST_LOOK, starts_known=False, seed=0)
@given(events=_events(with_revisits=True), starts_known=st.booleans(), seed=st.integers(0, 10**6))
def test_moves_back_and_deletes_in_any_order(
    embedded: Database, events: list[tuple[Any, ...]], starts_known: bool, seed: int
) -> None:
    """The same with a branch that goes back to where it was, is deleted and made again."""
    _try(embedded, events, seed, starts_known=starts_known, with_revisits=True)


@pytest.fixture
def served(postgres: Postgres) -> Iterator[Database]:
    """Return an empty PostgreSQL."""
    database = Database(postgres.database())
    database.migrate()
    yield database
    database.close()


@_settings(15)
@given(events=_events(with_revisits=True), starts_known=st.booleans(), seed=st.integers(0, 10**6))
def test_moves_on_postgresql(
    served: Database, events: list[tuple[Any, ...]], starts_known: bool, seed: int
) -> None:
    """The results are the same as on SQLite."""
    _try(served, events, seed, starts_known=starts_known, with_revisits=True)
