"""Pages and lists of a store with a month of deliveries: how long they take, in SQLite and in PostgreSQL.

100,000 deliveries over 30 days to 200 connections, or as many as the variable BENCH_DELIVERIES says, with a
ref update each, and an execution for most. A web process, the real command, answers one request at a time,
without what it keeps for other viewers of a page, except where the row says so; the clock is the client's.
PostgreSQL runs on the same machine.
"""

import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import sqlalchemy
import structlog
import zstandard
from sqlalchemy import text

from bench.connections import analyze
from bench.report import Progress, Rounds, Row
from gateway.messages.names import EXECUTION_REQUEST_SCHEMA
from gateway.messages.schema import examples
from gateway.store import connections
from gateway.store.database import Database
from gateway.store.ids import delivery_ids_since
from testing.postgres import Postgres
from testing.records import made
from testing.service import ADMIN_TOKEN, Command

DELIVERIES = int(os.environ.get("BENCH_DELIVERIES", "100000"))
CONNECTIONS = 200
DAYS = 30
_AIM_MS = 100.0
_SAMPLES = 30
_OK = 200
_NOT_FOUND = 404
_LARGE = {"deliveries", "ref_updates", "executions", "execution_bodies", "runs"}
_SECONDS = 200
# What an open page gets whenever it refreshes itself, and all viewers but the first.
_SHARED = "overview, refreshed"
_BODY = zstandard.compress(b'{"ref": "refs/heads/main"}' * 20).hex()
_UNSAFE = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000", "temp_store = MEMORY")
# Most are of `main`; a thousandth has failed; there are 500 people and 2,000 other branches.
_NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers (n) AS"
    " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})",
    "postgresql": "WITH numbers (n) AS (SELECT generate_series(1, {count}::bigint))",
}
_ID = {
    "sqlite": "printf('%08x-%04x-7000-8000-%012x', ms >> 16, ms & 65535, n)",
    "postgresql": "lpad(to_hex(ms >> 16), 8, '0') || '-' || lpad(to_hex(ms & 65535), 4, '0')"
    " || '-7000-8000-' || lpad(to_hex(n), 12, '0')",
}
_AT = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', ms / 1000, 'unixepoch')",
    "postgresql": "to_timestamp(ms / 1000)",
}
_COMMIT = {
    "sqlite": "printf('%08x%032x', n * 2654435761 & 4294967295, n)",
    "postgresql": "lpad(to_hex(n * 2654435761 & 4294967295), 8, '0') || lpad(to_hex(n), 32, '0')",
}
_BLOB = {"sqlite": f"x'{_BODY}'", "postgresql": f"'\\x{_BODY}'::bytea"}
_FILL = """
CREATE TEMPORARY TABLE push AS {numbers}
    SELECT n, {id} AS id, 'c' || (n * 7919 % {connections}) AS connection, {at} AS at, {commit} AS commit_id,
        CASE WHEN n % 1000 = 1 THEN 'failed' WHEN n % 5 = 1 THEN 'nothing-matched' ELSE 'ran' END AS outcome,
        CASE WHEN n % 4 > 0 THEN 'main' ELSE 'topic-' || n % 2000 END AS branch,
        'person-' || n % 500 AS pusher
    FROM (SELECT n, {begin} + CAST(n AS bigint) * {days} * 86400000 / {count} AS ms FROM numbers) AS pushed;
INSERT INTO deliveries (id, connection, source, event, provider_delivery_id, received_at, verdict, pusher,
        headers, body, outcome, pusher_key)
    SELECT id, connection, 'webhook', 'push', 'guid-' || n, at, 'accepted', pusher, '{{}}', {blob}, outcome,
        pusher
    FROM push ORDER BY n;
INSERT INTO ref_updates (seq, connection, delivery, ref, kind, name, before, after, action, commits,
        generation, state, reason, settled_at, verdicts, author_key, fetched_at)
    SELECT n, connection, id, 'refs/heads/' || branch, 'branch', branch, commit_id, commit_id, 'update',
        '[]', n, CASE WHEN outcome = 'failed' THEN 'failed' ELSE 'planned' END, 'done', at, '[]',
        pusher || ' <p@x>', at
    FROM push ORDER BY n;
INSERT INTO executions (seq, id, connection, delivery, ref_update, project, trigger, target, subject, state,
        planned_at, published_at)
    SELECT n, 'request-' || n, connection, id, n, 'p', 'train', 'train', 'acme', 'published', at, at
    FROM push WHERE outcome = 'ran' ORDER BY n;
INSERT INTO execution_bodies (execution, body) SELECT seq, {message} FROM executions;
INSERT INTO runs (execution, state, sequence, reported_at, revision)
    SELECT seq, CASE WHEN seq % 100 = 2 THEN 'failed' ELSE 'succeeded' END, 1, published_at, seq
    FROM executions;
DROP TABLE push
"""


def on_sqlite(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    return _measure("SQLite", None, progress)


def on_postgresql(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with Postgres(durable=True) as postgres:
        return _measure("PostgreSQL", postgres.database, progress)


def _measure(store: str, make: Callable[[], str] | None, progress: Progress) -> list[Row]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rounds = Rounds(f"lists, {store}", progress, most=1, seconds=_SECONDS)
    for _ in rounds:
        with _filled(make) as (service, paths):
            for name, path in paths.items():
                rounds.measure(name, _times, service, path, name != _SHARED)
    return [
        rounds.row(
            f"lists: {what} in ms, {store}: {name}", name, _AIM_MS, aim=aim, higher_is_better=False, of=of
        )
        for name in _paths("", "")
        for what, aim, of in (("p50", None, statistics.median), ("p95", 1, _p95))
    ]


@contextmanager
def _filled(make: Callable[[], str] | None) -> Iterator[tuple[Command, Mapping[str, str]]]:
    """Return a web process on a filled store, and the paths to measure."""
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder:
        url = make() if make is not None else f"sqlite:///{folder}/pushgate.db"
        with closing(Database(url)) as database:
            database.migrate()
            begin = datetime.now(UTC) - timedelta(days=DAYS)
            with database.writing() as conn:
                for number in range(CONNECTIONS):
                    connections.add(conn, made(f"c{number}", name=f"acme/repository-{number}"))
            _fill(database, begin)
            if not database.is_embedded:
                analyze(database)
            middle = delivery_ids_since(begin + timedelta(days=DAYS / 2))
            with database.reading() as conn:
                row = conn.execute(
                    text("SELECT id FROM deliveries WHERE id > :middle ORDER BY id LIMIT 1"),
                    {"middle": middle},
                ).one()
        settings = {"SECRET_KEY": "k" * 32, "ROLE": "web"}
        if make is not None:
            settings["DATABASE_URL"] = url
        with Command(Path(folder), **settings) as service:
            yield service, _paths(row.id, f"{DELIVERIES // 2}")


def _paths(delivery: str, execution: str) -> dict[str, str]:
    """Return the paths to measure, by their names."""
    deep = {"cursor": delivery}
    filters: dict[str, dict[str, str]] = {
        "all": {},
        "rare outcome": {"outcome": "failed"},
        "connection": {"connection": "acme/repository-7"},
        "connection, outcome": {"connection": "acme/repository-7", "outcome": "failed"},
        "branch": {"branch": "topic-42"},
        "author": {"author": "person-7"},
        "search": {"q": "person-4"},
        "search, outcome": {"q": "main", "outcome": "failed"},
        "deep cursor": deep,
    }
    pages = {
        "overview": "/",
        _SHARED: "/",
        "connection page": "/connections/c7",
        "connections": "/connections",
    }
    pages["delivery page"] = f"/deliveries/{delivery}"
    for name, query in filters.items():
        pages[f"deliveries, {name}"] = "/deliveries?" + urlencode(query, quote_via=quote)
    pages["executions"] = "/executions"
    pages["executions, failed"] = "/executions?state=failed"
    pages["executions, branch"] = "/executions?branch=topic-42"
    pages["API deliveries"] = "/api/v1/deliveries"
    pages["API deliveries, failed"] = "/api/v1/deliveries?outcome=failed"
    pages["API executions"] = "/api/v1/executions"
    pages["API executions, deep"] = f"/api/v1/executions?cursor={execution}"
    pages["API statistics, a day"] = "/api/v1/statistics"
    pages["API statistics, a week"] = "/api/v1/statistics?hours=168"
    return pages


def _fill(database: Database, begin: datetime) -> None:
    """Store the deliveries; indexes are built afterwards, at a fraction of the time."""
    kind = database.engine.dialect.name
    message = json.dumps(_message(), separators=(",", ":")).encode()
    blob = f"x'{message.hex()}'" if kind == "sqlite" else f"'\\x{message.hex()}'::bytea"
    script = _FILL.format(
        numbers=_NUMBERS[kind].format(count=DELIVERIES),
        id=_ID[kind],
        at=_AT[kind],
        commit=_COMMIT[kind],
        blob=_BLOB[kind],
        message=blob,
        connections=CONNECTIONS,
        begin=int(begin.timestamp() * 1000),
        days=DAYS,
        count=DELIVERIES,
    )
    with _filling(database) as conn:
        indexes = _without_indexes(conn)
        for statement in script.split(";\n"):
            # The driver of PostgreSQL takes a single % for the beginning of a parameter.
            conn.exec_driver_sql(statement if kind == "sqlite" else statement.replace("%", "%%"))
        for definition in indexes:
            conn.exec_driver_sql(definition)


@contextmanager
def _filling(database: Database) -> Iterator[sqlalchemy.Connection]:
    """Open a transaction that checks no foreign keys, and that SQLite does not journal.

    A journal of gigabytes would be read again for each page.
    """
    if not database.is_embedded:
        with database.writing() as conn:
            conn.execute(text("SET LOCAL session_replication_role = replica"))
            conn.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
            yield conn
        return
    # The journal can only be switched off while nobody else has the file open.
    database.engine.dispose()
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as conn:
        for setting in _UNSAFE:
            conn.exec_driver_sql(f"PRAGMA {setting}")
        yield conn
        conn.commit()
    engine.dispose()


def _message() -> dict[str, Any]:
    """Return the message of a request: an example without what differs in length."""
    [first, *_] = examples(EXECUTION_REQUEST_SCHEMA)
    return {**first, "execution": {**first["execution"], "command": ["python train.py"]}, "package": None}


def _without_indexes(conn: sqlalchemy.Connection) -> Sequence[str]:
    """Drop the indexes of the large tables, except those of constraints; return their definitions."""
    if conn.dialect.name == "sqlite":
        query = "SELECT name, sql, tbl_name FROM sqlite_master WHERE type = 'index'"
    else:
        query = "SELECT indexname, indexdef, tablename FROM pg_indexes"
    rows = conn.execute(text(query)).all()
    found = [(name, sql) for name, sql, table in rows if table in _LARGE and name.startswith("ix_")]
    for name, _ in found:
        conn.execute(text(f"DROP INDEX {name}"))
    return [definition for _, definition in found]


def _times(service: Command, path: str, is_first: bool) -> list[float]:
    """Return the times of a page in milliseconds, after one that is not counted."""
    parts = urlsplit(service.url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=60)) as client:
        client.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN}))
        answer = client.getresponse()
        answer.read()
        signed_in = {"cookie": str(answer.headers["set-cookie"]).partition(";")[0]}
        token = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        taken = []
        for _ in range(_SAMPLES + 1):
            if is_first:
                # A form of the dashboard lets the process forget what it keeps for other viewers.
                _request(client, "POST", "/connections/none/check-webhook", signed_in, expected=_NOT_FOUND)
            started = time.perf_counter()
            _request(client, "GET", path, token if path.startswith("/api") else signed_in, expected=_OK)
            taken.append((time.perf_counter() - started) * 1000)
    return taken[1:]


def _request(
    client: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], *, expected: int
) -> None:
    client.request(method, path, headers=dict(headers))
    answer = client.getresponse()
    body = answer.read()
    if answer.status != expected:
        raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]
