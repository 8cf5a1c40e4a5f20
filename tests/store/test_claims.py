"""Claims: which worker gets which connection, on either database."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text

from gateway.store import accept, claims, work_queue
from gateway.store.claims import GONE_AFTER, MAX_LEASE_AHEAD, MIRROR_AFFINITY, Claims
from gateway.store.database import Database
from gateway.store.ready_queue import MAX_DELAY
from gateway.store.tables import metadata, processes
from gateway.store.tables import turns as turns_of
from gateway.store.work_queue import Backlog, Postponement
from testing.records import NOW, A, B, arrival, connection, move
from tests.store.claiming import LEASE, SECOND, claim, finish, first, push, release, turns


def beat(database: Database, process: str, now: datetime = NOW) -> None:
    """Record a heartbeat of a process."""
    with database.writing() as conn:
        claims.beat(conn, process, now=now)


def test_connections_take_turns(database: Database) -> None:
    """A storm in one repository does not delay the others of its project."""
    for one in ("c1", "c2", "c3"):
        connection(database, one)
    push(database, "c1", times=50)
    push(database, "c2", "c3")
    had = turns(database, 6)
    assert set(had[:3]) == set(had[3:]) == {"c1", "c2", "c3"}


def test_projects_take_turns(database: Database) -> None:
    """A project with many waiting connections gets as many turns as one with a single one."""
    many = [f"many{number}" for number in range(20)]
    for one in many:
        connection(database, one, project="many")
    connection(database, "single", project="single")
    push(database, *many)
    push(database, "single", at=NOW + SECOND)
    assert Counter(one == "single" for one in turns(database, 10)) == {True: 5, False: 5}


def test_projects_take_turns_where_more_wait_than_one_claim_reads(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks before each claim, and the look passes over none of them."""
    monkeypatch.setattr(claims, "_MAX_PROJECTS", 2)
    projects = {f"{project}-{number}": project for project in "abcdef" for number in range(4)}
    for one, project in projects.items():
        connection(database, one, name=one, project=project)
    push(database, *projects)
    process = Claims(process="p1")
    had = set()
    for number in range(12):
        now = NOW + number * SECOND
        with database.reading() as conn:
            assert process.has_work(conn, now=now)
        claimed = claim(database, process, now)
        assert claimed is not None
        had.add(projects[claimed])
    assert had == set(projects.values())


def test_a_free_worker_goes_to_the_project_that_has_the_fewest(database: Database) -> None:
    """Even if another one had its turn longer ago: that turn is still running."""
    for one in ("c1", "c2"):
        connection(database, one, project="slow")
    connection(database, "c3", project="quick")
    push(database, "c1", "c2", "c3")
    process = Claims(process="p1")
    first, second = claim(database, process), claim(database, process, NOW + SECOND)
    assert {first, second} in ({"c1", "c3"}, {"c2", "c3"})
    release(database, "c3", NOW + 2 * SECOND)
    assert claim(database, process, NOW + 2 * SECOND) == "c3"


def test_quotas_hold_however_many_claim_at_once(database: Database) -> None:
    """The count of a process is still true when it claims."""
    url = database.engine.url.render_as_string(hide_password=False)
    names = [f"c{number}" for number in range(16)]
    for one in names:
        connection(database, one, project="digits")
    push(database, *names)
    all_at_once = threading.Barrier(8)

    def process(number: int) -> list[str | None]:
        mine = Database(url)
        try:
            with mine.reading():
                all_at_once.wait()
            return [claim(mine, Claims(process=f"p{number}", per_project=5)) for _ in range(2)]
        finally:
            mine.close()

    with ThreadPoolExecutor(8) as threads:
        held = [one for found in threads.map(process, range(8)) for one in found if one is not None]
    assert len(held) == len(set(held)) == 5


def test_a_connection_stays_with_the_process_that_has_its_mirror(database: Database) -> None:
    """While that process lives, others do not take it; they get connections without a mirror."""
    connection(database, "c1")
    connection(database, "c2")
    here, there = Claims(process="p1"), Claims(process="p2")
    beat(database, "p1")
    push(database, "c1")
    assert claim(database, here) == "c1"
    finish(database, "c1")
    push(database, "c1", "c2")
    assert claim(database, there) == "c2"
    assert claim(database, there) is None
    assert claim(database, here) == "c1"


def test_the_connections_of_a_process_that_is_gone_are_anybodys(database: Database) -> None:
    """After missing heartbeats, or its announced end; then they stay with their new process."""
    here, there = Claims(process="p1"), Claims(process="p2")
    for one in ("c1", "c2"):
        connection(database, one)
    beat(database, "p1")
    push(database, "c1", "c2")
    for _ in range(2):
        finish(database, str(claim(database, here)))
    gone = NOW + GONE_AFTER
    push(database, "c1", at=gone)
    assert claim(database, there, gone - SECOND) is None
    assert claim(database, there, gone) == "c1"
    beat(database, "p1", gone)
    beat(database, "p2", gone)
    finish(database, "c1", gone)
    push(database, "c1", "c2", at=gone)
    assert claim(database, there, gone) == "c1"
    with database.writing() as conn:
        claims.leave(conn, "p1")
    assert claim(database, there, gone) == "c2"


def test_what_waits_long_for_a_busy_process_is_anybodys(database: Database) -> None:
    """Counted from its arrival, its release, or its next try."""
    connection(database)
    here, there = Claims(process="p1"), Claims(process="p2")
    push(database, "c1")
    assert claim(database, here) == "c1"
    given_back = NOW + SECOND
    release(database, "c1", given_back)
    later = given_back + MIRROR_AFFINITY
    beat(database, "p1", later)
    assert claim(database, there, later - SECOND) is None
    assert claim(database, there, later) == "c1"


def test_a_push_does_not_count_as_waiting_from_before_it_came(database: Database) -> None:
    """After a long idle time, and next to others that have waited long, it still waits for its process."""
    here, there = Claims(process="p1"), Claims(process="p2")
    connection(database, "c1")
    connection(database, "c2")
    push(database, "c1")
    assert claim(database, here) == "c1"
    finish(database, "c1")
    push(database, "c2")
    much_later = NOW + 100 * MIRROR_AFFINITY
    beat(database, "p1", much_later)
    push(database, "c1", at=much_later)
    assert claim(database, there, much_later) == "c2"
    assert claim(database, there, much_later) is None


def test_what_was_put_off_does_not_count_as_waiting(database: Database) -> None:
    """Neither for a later push to another ref, nor for itself before it is due: the mirror is elsewhere."""
    connection(database)
    push(database, "c1")
    mine, other = Claims(process="p1"), Claims(process="p2")
    claim(database, mine)
    due = NOW + 10 * MIRROR_AFFINITY
    with database.writing() as conn:
        [late] = work_queue.pending(conn, "c1", limit=2)
        put_off = Postponement(update=late, due_at=due, reason="a submodule is away")
        work_queue.settle(conn, "c1", [], owner="w", now=NOW, postponed=[put_off])
    release(database, "c1", NOW)
    beat(database, "p1", due)
    later = due - MIRROR_AFFINITY / 2
    assert claim(database, other, due + SECOND) is None
    with database.writing() as conn:
        topic = move(A, B, ref="refs/heads/topic")
        accept.record(conn, [arrival(topic, id="later", received_at=later)])
    assert claim(database, other, later + SECOND) is None
    assert claim(database, mine, later + SECOND) == "c1"
    release(database, "c1", later)
    beat(database, "p1", due + MIRROR_AFFINITY)
    assert claim(database, other, due + MIRROR_AFFINITY) == "c1"


def put_off(database: Database, connection_id: str, due: datetime) -> None:
    """Postpone the first pending push, as for an unavailable submodule, and release the connection."""
    with database.writing() as conn:
        [late, *_] = work_queue.pending(conn, connection_id, limit=1)
        delay = Postponement(update=late, due_at=due, reason="a submodule is away")
        work_queue.settle(conn, connection_id, [], owner="w", now=NOW, postponed=[delay])
        work_queue.release(conn, connection_id, owner="w", now=NOW)


def push_to_main(database: Database, *connections: str, at: datetime = NOW) -> None:
    """Record a push to the main branch of each of these connections."""
    with database.writing() as conn:
        for one in connections:
            accept.record(conn, [arrival(move(A, B), connection=one, received_at=at)])


def test_what_was_put_off_holds_up_no_other_repository(database: Database) -> None:
    """Nor a branch with the same name there, for any process that may take it."""
    for one in ("c1", "c2"):
        connection(database, one)
    push_to_main(database, "c1")
    mine = Claims(process="p1")
    claim(database, mine)
    put_off(database, "c1", NOW + 10 * MIRROR_AFFINITY)
    push_to_main(database, "c2")
    assert claim(database, mine) == "c2"
    release(database, "c2", NOW)
    # The other process takes it over after a long wait.
    beat(database, "p1", NOW + MIRROR_AFFINITY)
    assert claim(database, Claims(process="p2"), NOW + MIRROR_AFFINITY) == "c2"


def test_times_of_a_clock_that_ran_ahead_do_not_count(database: Database) -> None:
    """Neither a next try nor a lease beyond the possible maximum."""
    connection(database)
    push(database, "c1")
    process, ahead = Claims(process="p1"), NOW + timedelta(days=1)
    assert claim(database, process, ahead) == "c1"
    assert claim(database, process, ahead) is None
    assert claim(database, process) == "c1"
    release(database, "c1", ahead)
    assert claim(database, process) == "c1"
    release(database, "c1", NOW + SECOND)
    assert claim(database, process) is None


def test_the_backlog_counts_what_waits_and_since_when(database: Database) -> None:
    """The oldest by its arrival, of any connection; nothing when nothing waits."""
    assert _backlog(database) == Backlog(updates=0, oldest=None, requests=0, events=0)
    connection(database, "c1")
    connection(database, "c2")
    push(database, "c2", at=NOW)
    push(database, "c1", at=NOW + SECOND, times=3)
    assert _backlog(database) == Backlog(updates=4, oldest=NOW, requests=0, events=0)
    assert {claim(database, Claims(process="p1")) for _ in range(2)} == {"c1", "c2"}
    finish(database, "c2")
    assert _backlog(database) == Backlog(updates=3, oldest=NOW + SECOND, requests=0, events=0)


def _backlog(database: Database) -> Backlog:
    with database.reading() as conn:
        return work_queue.backlog(conn)


def test_a_claim_reads_no_whole_table(database: Database) -> None:
    """Its cost depends on pending and running work, not on the number of connections and pushes."""
    connection(database, project="digits")
    push(database, "c1")
    read: set[str] = set()
    plans: list[str] = []
    with database.writing() as conn:
        if not database.is_embedded:
            # It would read tables this small completely; an index makes that unnecessary.
            conn.execute(text("SET LOCAL enable_seqscan = off"))

        @event.listens_for(conn, "before_cursor_execute")
        def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' * database.is_embedded}{statement}", parameters)
            plan = [str(row[-1]) for row in cursor.fetchall()]
            plans.extend(plan)
            # Without an index, or with one that has nothing but the key.
            found = [re.fullmatch(r"SCAN (\w+)|.*Seq Scan on (\w+).*", line) for line in plan]
            read.update(one[1] or one[2] for one in found if one)

        assert Claims(process="p1", per_project=1, per_host=1).claim(
            conn, owner="w", now=NOW, until=NOW + LEASE
        ) == ["c1"]
    # There are never many processes.
    assert read & set(metadata.tables) <= {"processes"}, plans


def test_who_starts_again_goes_on_with_its_own_work_at_once(database: Database) -> None:
    """A restarted process does not wait for its own leases; those of others still count."""
    names = ("p0", "p1", "p2")
    for one in ("c0", "c1", "c2"):
        connection(database, one)
    push(database, "c0", "c1", "c2")
    held = {name: claim(database, Claims(process=name)) for name in names}
    assert len(set(held.values())) == len(names)
    assert claim(database, Claims(process="p1"), NOW + SECOND) is None
    with database.writing() as conn:
        work_queue.take_over(conn, "p1", now=NOW + SECOND)
    assert claim(database, Claims(process="p1"), NOW + 2 * SECOND) == held["p1"]
    assert claim(database, Claims(process="p1"), NOW + 2 * SECOND) is None


def test_a_clock_that_was_ahead_holds_nobody_up(database: Database) -> None:
    """A delay, lease, heartbeat or turn further ahead than possible is ignored."""
    ahead = NOW + timedelta(days=365)
    connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(A, B))])
        once = Claims(process="once")
        assert once.claim(conn, owner="w1", now=ahead, until=ahead + LEASE) == ["c1"]
        claims.beat(conn, "once", now=ahead)
        mine = Claims(process="p1")
        assert mine.claim(conn, owner="w2", now=NOW, until=NOW + LEASE) == ["c1"]
        updates = work_queue.pending(conn, "c1", limit=1)
        work_queue.postpone(conn, "c1", updates, owner="w2", due_at=ahead, reason="down")
        assert mine.claim(conn, owner="w2", now=NOW, until=NOW + LEASE) == ["c1"]
        work_queue.postpone(conn, "c1", updates, owner="w2", due_at=NOW + LEASE, reason="down")
        assert mine.claim(conn, owner="w2", now=NOW, until=NOW + LEASE) == []


def test_processes_live_while_their_heartbeat_continues(database: Database) -> None:
    """By name. A process gone for a day is deleted, so that the table does not grow with each start."""
    beat(database, "p2", NOW)
    beat(database, "p1", NOW - SECOND)
    beat(database, "gone", NOW - GONE_AFTER)
    beat(database, "long gone", NOW - 2 * GONE_AFTER)
    with database.writing() as conn:
        assert claims.alive(conn, now=NOW) == ["p1", "p2"]
        claims.leave(conn, "p1")
        assert claims.alive(conn, now=NOW) == ["p2"]
    a_day = timedelta(days=1)

    def known(now: datetime) -> set[str]:
        beat(database, "p3", now)
        with database.reading() as conn:
            return set(conn.execute(select(processes.c.name)).scalars())

    assert known(NOW - GONE_AFTER + a_day) == {"p2", "p3", "gone"}
    assert known(NOW + a_day) == {"p2", "p3"}
    assert known(NOW + a_day + SECOND) == {"p3"}


def test_who_was_served_longest_ago_comes_first(database: Database) -> None:
    """Among projects, and among a project's connections; a turn noted by a wrong clock is ignored."""
    for number, (one, project) in enumerate((("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b"))):
        connection(database, one, project=project, created_at=NOW - (10 - number) * SECOND)
    push(database, "a1", "a2", "b1", "b2")
    process = Claims(process="p1")

    def turn(now: datetime) -> str:
        one = claim(database, process, now)
        assert one is not None
        release(database, one, now)
        return one

    assert [turn(NOW + number * SECOND) for number in range(5)] == ["a1", "b1", "a2", "b2", "a1"]
    # The last turn of a was now, that of b is in the future: as if b had never had one.
    with database.writing() as conn:
        at = {"a": NOW + 10 * SECOND, "b": NOW + 20 * SECOND}
        for project, claimed_at in at.items():
            changed = turns_of.update().where(turns_of.c.project == project)
            conn.execute(changed.values(claimed_at=claimed_at))
    assert turn(NOW + 10 * SECOND)[0] == "b"


def test_the_connection_that_is_due_longest_comes_first(database: Database) -> None:
    """In the order of their turns, not of their names or creation."""
    for number, one in enumerate(("c1", "c2", "c3")):
        connection(database, one, created_at=NOW - number * SECOND)
    push(database, "c1", "c2", "c3")
    assert [claim(database, Claims(process="p1")) for _ in range(4)] == ["c3", "c2", "c1", None]


def test_what_is_put_off_for_as_long_as_can_be_stays_put_off(database: Database) -> None:
    """Only a time even further ahead is due to a wrong clock. The same holds for leases."""
    connection(database, created_at=NOW - SECOND)
    push(database, "c1")
    process = Claims(process="p1")

    def until(now: datetime, end: datetime) -> str | None:
        with database.writing() as conn:
            return first(process.claim(conn, owner="w", now=now, until=end))

    assert until(NOW, NOW + MAX_DELAY) == "c1"
    assert until(NOW, NOW + MAX_DELAY) is None
    assert until(NOW - SECOND, NOW + MAX_DELAY) == "c1"
    release(database, "c1", NOW + MAX_DELAY)
    assert claim(database, process, NOW) is None
    assert claim(database, process, NOW - SECOND) == "c1"


@pytest.mark.parametrize("other", ["p0", "p2"])
@pytest.mark.parametrize(
    ("seen", "is_left"),
    [
        (MAX_LEASE_AHEAD - SECOND, True),
        (MAX_LEASE_AHEAD, False),
        (-GONE_AFTER, False),
        (SECOND - GONE_AFTER, True),
    ],
)
def test_a_connection_is_left_to_a_process_that_lives(
    database: Database, other: str, seen: timedelta, *, is_left: bool
) -> None:
    """Whatever its name; a heartbeat from far in the future is due to a wrong clock."""
    connection(database)
    push(database, "c1")
    assert claim(database, Claims(process=other)) == "c1"
    release(database, "c1", NOW)
    beat(database, other, NOW + seen)
    assert claim(database, Claims(process="p1")) == (None if is_left else "c1")


def test_the_oldest_that_waits_is_found_among_those_of_all_connections(database: Database) -> None:
    """By its arrival, whatever its delivery's id, and whatever has ended before it."""
    for one in ("c0", "c1", "c2"):
        connection(database, one)
    with database.writing() as conn:
        for name, one, at in (("d9", "c0", 3), ("d5", "c1", 2), ("d6", "c1", 4), ("d1", "c2", 5)):
            pushed = move(A, B, f"refs/heads/{name}")
            sent = arrival(pushed, id=name, connection=one, received_at=NOW + at * SECOND)
            accept.record(conn, [sent])
    assert _backlog(database).oldest == NOW + 2 * SECOND
    assert None not in [claim(database, Claims(process="p1"), NOW + LEASE) for _ in range(3)]
    finish(database, "c1", NOW + LEASE)
    assert _backlog(database).oldest == NOW + 3 * SECOND
