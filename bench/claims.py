"""Claims on PostgreSQL: with 10,000 connections waiting, and a look that finds nothing with 10,000 postponed.

The connections are spread over 100 projects and 100 git hosts. One process claims as many as a worker has
places, and releases each in a transaction of its own, in threads, as workers do; all of them remain in the
queue. The yardsticks are fixed numbers: what a large installation needs.
"""

import statistics
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import update

from bench.connections import add_connections
from bench.report import Progress, Rounds, Row
from gateway.store import ready_queue, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.tables import leases
from testing.postgres import Postgres

_CONNECTIONS = 10_000
_HOSTS = 100
_PLACES = 16
_THREADS = 4
_ROUNDS = 3
_SECONDS = 30
_CLAIMS_EACH = 10
_LOOKS = 20
_LEASE = timedelta(seconds=60)
_NEEDED_PER_SECOND = 1_000
_MOST_MS = 5


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with (
        Postgres(durable=True) as postgres,
        closing(Database(postgres.database())) as database,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        database.migrate()
        progress(f"claims: {_CONNECTIONS:,} connections with a push each")
        add_connections(database, _CONNECTIONS, hosts=_HOSTS, with_push=True)
        _sort_in(database)
        claims = Claims(process="bench")
        waiting = Rounds("claims", progress, most=_ROUNDS, seconds=_SECONDS)
        for _ in waiting:
            waiting.measure("claims", _claim_and_release, database, claims, threads)
        _postpone_all(database)
        postponed = Rounds("looks", progress, most=_ROUNDS, seconds=_SECONDS)
        for _ in postponed:
            postponed.measure("look", _look_ms, database, claims)
    name = f"claims: claims and releases a second, with {_CONNECTIONS:,} connections waiting"
    rate = waiting.row(name, "claims", _NEEDED_PER_SECOND, aim=1, higher_is_better=True)
    name = f"claims: ms of a look that finds nothing, with {_CONNECTIONS:,} connections postponed"
    return [rate, postponed.row(name, "look", _MOST_MS, aim=1, higher_is_better=False)]


def _claim_and_release(database: Database, claims: Claims, threads: Executor) -> float:
    """Return the rate of claimed and released connections per second."""
    done = 0
    started = time.perf_counter()
    for number in range(_CLAIMS_EACH):
        now = datetime.now(UTC)
        owner = f"owner {number}"
        with database.writing() as conn:
            claimed = claims.claim(conn, owner=owner, now=now, until=now + _LEASE, most=_PLACES)
        list(threads.map(partial(_release, database, owner), claimed))
        done += len(claimed)
    return done / (time.perf_counter() - started)


def _release(database: Database, owner: str, connection: str) -> None:
    with database.writing() as conn:
        work_queue.release(conn, connection, owner=owner, now=datetime.now(UTC))


def _sort_in(database: Database) -> None:
    """Move all waiting connections into the queue, as claims do bit by bit."""
    while True:
        now = datetime.now(UTC)
        with database.writing() as conn:
            if not ready_queue.has_changed(conn, now=now):
                return
            ready_queue.refresh(conn, now=now)


def _postpone_all(database: Database) -> None:
    later = datetime.now(UTC) + timedelta(minutes=10)
    postponed = {"owner": None, "expires_at": None, "due_at": later, "ready_at": later}
    with database.writing() as conn:
        conn.execute(update(leases).values({**postponed, "queue_host": None, "queue_project": None}))


def _look_ms(database: Database, claims: Claims) -> float:
    """Return the median duration of a look, in ms; it must find nothing."""
    durations = []
    for _ in range(_LOOKS):
        started = time.perf_counter()
        with database.reading() as conn:
            found = claims.has_work(conn, now=datetime.now(UTC))
        durations.append((time.perf_counter() - started) * 1000)
        assert not found, "a postponed connection was found"
    return statistics.median(durations)
