"""However much is stored, each statement of the gateway reads a few rows, by an index.

On PostgreSQL every statement is explained and counted on a store of 180 days. On SQLite, which has no
counts, its plan is checked: a plan that uses an index there uses the same one among millions of rows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
import sqlalchemy
import zstandard
from sqlalchemy import event, text

from gateway.api.scrape import StoreState
from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound
from gateway.store import (
    accept,
    connections,
    deliveries,
    executions,
    looks,
    past_updates,
    platforms,
    reconciliations,
    retention,
    work_queue,
)
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.delivery_search import DeliveryFilters
from gateway.store.execution_search import ExecutionFilters
from gateway.store.executions import NewRequest
from gateway.store.ids import delivery_ids_since
from gateway.store.tables import metadata
from gateway.store.work_queue import Settlement
from testing.postgres import Postgres
from testing.records import NOW, A, B, C, arrival, connection, move

DELIVERIES = 200_000
CONNECTIONS = 2_000
DAYS = 180
BEGIN = NOW - timedelta(days=DAYS)
LATER = NOW + timedelta(seconds=60)
# A page is 100; a connection's pending updates, or its refs, are a few hundred.
MOST_ROWS = 2_500
BODY = "\\x" + zstandard.compress(b"{}").hex()
LARGE = {"deliveries", "ref_updates", "executions", "execution_bodies", "refs"}

# One delivery every 78 seconds, of 2,000 connections; a tenth of them is of one, c1. A few are rare in their
# verdict, and old, as far as possible from where a page begins; the newest are pending.
FILL = f"""
SET LOCAL session_replication_role = replica;
INSERT INTO connections (id, name, provider, url, project, auth, triggers, yaml_path, created_at, updated_at)
    SELECT 'c' || n, 'acme', 'github', 'https://host.example/' || n, 'p', '{{}}', '[]', 'valohai.yaml',
        '{BEGIN}', '{BEGIN}' FROM generate_series(1, {CONNECTIONS}) AS n;
INSERT INTO leases (connection, attempts, due_at) SELECT id, 0, created_at FROM connections;
INSERT INTO reconciliations (connection, due_at) SELECT id, '{LATER}' FROM connections;
UPDATE reconciliations SET due_at = '{NOW}' WHERE connection = 'c3';
INSERT INTO platform_fetches (connection, attempts, due_at)
    SELECT id, 0, CASE WHEN id = 'c4' THEN timestamptz '{NOW}' END FROM connections;
CREATE TEMPORARY TABLE push ON COMMIT DROP AS
    SELECT n, overlay(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') PLACING '-' FROM 9 FOR 0)
        || '-7000-8000-' || lpad(n::text, 12, '0') AS id,
        'c' || CASE WHEN n % 10 = 0 THEN 1 ELSE n % {CONNECTIONS} + 1 END AS connection,
        at, encode(sha256(n::text::bytea), 'hex') AS commit,
        CASE WHEN n % 30 = 7 THEN 'ignored' WHEN n % 100 = 9 THEN 'duplicate'
            WHEN n < 200 AND n % 10 = 1 THEN 'unreadable' ELSE 'accepted' END AS verdict
    FROM generate_series(1, {DELIVERIES}) AS n
    CROSS JOIN LATERAL (SELECT timestamptz '{BEGIN}' + n * interval '{DAYS} days' / {DELIVERIES}) AS t (at);
INSERT INTO deliveries
    (id, connection, source, event, provider_delivery_id, received_at, verdict, headers, body, outcome,
        pusher_key)
    SELECT id, connection, 'webhook', 'push', 'guid-' || n, at, verdict, '{{}}', '{BODY}',
        CASE WHEN verdict = 'unreadable' THEN 'failed' WHEN verdict = 'accepted' THEN 'ran' ELSE verdict END,
        'person-' || n % 1000 FROM push;
INSERT INTO ref_updates (seq, connection, delivery, ref, kind, name, before, after, action, commits,
        generation, state, settled_at)
    SELECT n, connection, id, 'refs/heads/' || n % 50, 'branch', n % 50, commit, commit, 'update', '[]', n,
        CASE WHEN n > {DELIVERIES} - 1000 THEN 'pending' WHEN n < 100 THEN 'gone' ELSE 'planned' END, at
    FROM push WHERE verdict = 'accepted';
INSERT INTO executions (seq, id, connection, delivery, ref_update, project, trigger, target, subject,
        state, planned_at, published_at)
    SELECT n, 'request-' || n, connection, id, n, 'p', 'train', 'train', 'acme',
        CASE WHEN n BETWEEN {DELIVERIES} - 2000 AND {DELIVERIES} - 1000 THEN 'pending'
            WHEN n < 100 THEN 'superseded' ELSE 'published' END, at, at
    FROM push WHERE verdict = 'accepted' AND n <= {DELIVERIES} - 1000;
INSERT INTO execution_bodies (execution, body) SELECT seq, '{{}}' FROM executions;
INSERT INTO refs (connection, ref, generation, delivery)
    SELECT connection, 'refs/heads/' || branch, n, id FROM push, generate_series(0, 49) AS branch
    WHERE n > {DELIVERIES} - {CONNECTIONS} AND n % 10 > 0;
SELECT setval('ref_updates_seq_seq', {DELIVERIES}), setval('executions_seq_seq', {DELIVERIES});
"""  # noqa: S608 - numbers of our own


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> Iterator[Database]:
    """Return a PostgreSQL that has been in use for 180 days."""
    with closing(Database(postgres.database())) as database:
        database.migrate()
        with database.writing() as conn:
            for statement in FILL.split(";\n"):
                conn.execute(text(statement))
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connected:
            connected.execute(text("VACUUM ANALYZE"))
        yield database


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Return an SQLite store with few rows: its plans don't depend on their number."""
    folder = tmp_path_factory.mktemp("plans")
    with closing(Database(f"sqlite:///{folder / 'pushgate.db'}")) as database:
        database.migrate()
        for name in ("c1", "c2", "c3", "c4"):
            connection(database, name)
        with database.writing() as conn:
            accept.record(
                conn,
                [
                    arrival(move(A, B), id=delivery_ids_since(BEGIN) + "-of-long-ago", verdict="ignored"),
                    arrival(move(A, C), connection="c2"),
                ],
            )
        yield database


@contextmanager
def explained(database: Database, plans: list[Any]) -> Iterator[sqlalchemy.Connection]:
    """Open a transaction that is rolled back; put the text and plan of each statement into `plans`."""
    with database.engine.connect() as conn:

        @event.listens_for(conn, "before_cursor_execute")
        def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
            if database.is_embedded:
                cursor.execute("EXPLAIN QUERY PLAN " + statement, parameters)
                plans.append((statement, [row[-1] for row in cursor.fetchall()]))
            else:
                cursor.execute("SAVEPOINT explained")
                cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters)
                plans.append((statement, cursor.fetchone()[0][0]["Plan"]))
                cursor.execute("ROLLBACK TO explained")

        yield conn
        conn.rollback()


def record(conn: sqlalchemy.Connection) -> None:
    """Record a batch of deliveries of many connections."""
    names = [row[0] for row in conn.execute(text("SELECT id FROM connections ORDER BY id LIMIT 50"))]
    batch = [arrival(move(A, B, f"refs/heads/{number % 50}")) for number in range(len(names))]
    named = [replace(one, connection=name) for one, name in zip(batch, names, strict=True)]
    asking = replace(arrival(), asks_for_reconciliation=True, teaches="1")
    accept.record(conn, [*named, asking])


def find(conn: sqlalchemy.Connection) -> None:
    """Look up a connection as the webhook endpoint does."""
    connections.get(conn, "c2")
    connections.live_secrets(conn, Keyring("k" * 32), "c2")


def carry(conn: sqlalchemy.Connection) -> None:
    """Take a connection's pending updates, and settle them with requests that supersede others."""
    mine = Claims(process="p", per_project=4, per_host=8)
    [name] = mine.claim(conn, owner="w", now=LATER, until=LATER)
    work_queue.renew(conn, name, owner="w", until=LATER)
    updates = work_queue.pending(conn, name, limit=200)
    work_queue.record_progress(conn, updates, "fetching")
    ends = [
        Settlement(update=one, state="planned", reason="", requests=(latest(one, f"new-{one.seq}"),))
        for one in updates
    ]
    work_queue.settle(conn, name, ends[:2], owner="w", now=LATER)
    work_queue.postpone(conn, name, updates[2:], owner="w", due_at=LATER, reason="remote down")


def latest(update: work_queue.PendingUpdate, name: str) -> NewRequest:
    """Return a request that supersedes earlier ones."""
    return NewRequest(
        id=name,
        connection=update.connection,
        delivery=update.delivery,
        project="p",
        trigger="train",
        target="train",
        subject="acme",
        body=b"{}",
        is_latest_only=True,
    )


def play(conn: sqlalchemy.Connection) -> None:
    """Read the pages of a dry run, of a busy connection and of one of many."""
    for name in ("c1", "c2"):
        past_updates.page(conn, name, since=None, before=None, limit=100)
        past_updates.page(conn, name, since=BEGIN + timedelta(days=1), before=SINCE, limit=100)


def relay(conn: sqlalchemy.Connection) -> None:
    """Take unpublished requests, and mark them as published or refused."""
    waiting = executions.pending(conn, limit=512, without=())
    executions.pending(conn, limit=512, without=["c1", "c2"])
    names = [one.id for one in waiting]
    executions.record(
        conn,
        published=names[2:],
        refused=dict.fromkeys(names[:1], "full"),
        undeliverable=dict.fromkeys(names[1:2], "too large"),
        now=LATER,
    )
    with suppress(NotFound):  # the small store has no reconciliation
        executions.drop(conn, next(iter(names), "no such"))


def reconcile(conn: sqlalchemy.Connection) -> None:
    """Take the reconciliation that is due, and record its result."""
    assert reconciliations.is_due(conn, now=LATER)
    reconciliation = reconciliations.claim(conn, now=LATER, until=LATER)
    assert reconciliation is not None
    found = arrival(move(None, A, "refs/tags/new"), connection=reconciliation.connection)
    reconciliations.known_refs(conn, reconciliation.connection)
    looks.record(conn, replace(reconciliation, is_first=False, asked_by=found.id), found, next_at=LATER)


def replay(conn: sqlalchemy.Connection) -> None:
    """Replay a delivery, and read it."""
    [one] = deliveries.page(conn, connection="c2", verdict=None, before=None, limit=1)
    deliveries.get(conn, one.id)
    deliveries.body(conn, one.id)
    work_queue.replay(conn, one.id, now=LATER)


def forget(conn: sqlalchemy.Connection) -> None:
    """Delete old rows, at the beginning and further on."""
    before = NOW - timedelta(days=30)
    for after in (BEGIN, BEGIN + timedelta(days=60)):
        retention.forget(conn, before=before, after=delivery_ids_since(after))


def page_of_deliveries(**filters: Any) -> Callable[[sqlalchemy.Connection], object]:
    """Return what reads a page."""
    return lambda conn: deliveries.page(conn, **filters, limit=51)


def page_of_executions(**filters: Any) -> Callable[[sqlalchemy.Connection], object]:
    """Return what reads a page."""
    return lambda conn: executions.page(conn, **filters, limit=51)


def search_of_deliveries(**filters: Any) -> Callable[[sqlalchemy.Connection], object]:
    """Return what searches."""
    return lambda conn: deliveries.search(conn, DeliveryFilters(**filters), before=None, limit=50)


def search_of_executions(**filters: Any) -> Callable[[sqlalchemy.Connection], object]:
    """Return what searches."""
    return lambda conn: executions.search(conn, ExecutionFilters(**filters), before=None, limit=50)


def _name(kind: str, filters: Mapping[str, Any]) -> str:
    return (
        f"{kind} by {', '.join(f'{name} {value}' for name, value in filters.items() if value) or 'nothing'}"
    )


SINCE = delivery_ids_since(NOW - timedelta(days=90))
HOT: dict[str, Callable[[sqlalchemy.Connection], object]] = {
    "accept": record,
    "find": find,
    "carry": carry,
    "relay": relay,
    "reconcile": reconcile,
    "replay": replay,
    "forget": forget,
    "play": play,
    "scrape": StoreState.of,
    "platforms": lambda conn: platforms.is_due(conn, now=LATER),
    "follow": lambda conn: executions.planned_after(conn, executions.last_seq(conn) - 3, limit=100),
}
for _one in product(
    (None, "c1", "c2"), (None, "accepted", "ignored", "unreadable"), (None, SINCE), (None, "aaaaaaa", A)
):
    _filters = dict(zip(("connection", "verdict", "before", "commit"), _one, strict=True))
    HOT[_name("deliveries", _filters)] = page_of_deliveries(**_filters)
for _other in product(
    (None, "c1", "c2"), (None, SINCE), (None, "pending", "superseded", "published"), (None, DELIVERIES // 2)
):
    _wanted = dict(zip(("connection", "delivery", "state", "before"), _other, strict=True))
    HOT[_name("executions", _wanted)] = page_of_executions(**_wanted)


_SEARCHES: list[dict[str, Any]] = [
    {"outcome": "failed"},
    {"outcome": "ran", "connection": "c1"},
    {"branch": "7"},
    {"branch": "refs/heads/7", "connection": "c2"},
    {"branch": "none", "outcome": "ran"},
    {"author": "Person-7"},
    {"author": "person-7", "connection": "c1", "outcome": "ran"},
    {"search": "1"},
    {"search": "person-77", "connection": "c1"},
    {"search": "aaaaaaa"},
    {"since": BEGIN, "until": BEGIN + timedelta(days=9), "branch": "7"},
]
for _wanted in _SEARCHES:
    HOT[_name("deliveries", _wanted)] = search_of_deliveries(**_wanted)
    if "outcome" not in _wanted:
        HOT[_name("executions", _wanted)] = search_of_executions(**_wanted)


@pytest.mark.parametrize("name", HOT)
def test_among_hundreds_of_thousands_a_few_rows_are_read(filled: Database, name: str) -> None:
    """PostgreSQL counts the rows that each part of a plan has read, including discarded ones."""
    plans: list[Any] = []
    with explained(filled, plans) as conn:
        HOT[name](conn)
    check(plans)


def test_after_an_outage_of_the_broker_no_batch_reads_all_that_waits(filled: Database) -> None:
    """Nor all that was published before: the statistics, old or new, suggest one or the other."""
    plans: list[Any] = []
    with explained(filled, plans) as conn:
        many = f"UPDATE executions SET state = 'pending' WHERE seq > {DELIVERIES} - 4 * {MOST_ROWS}"  # noqa: S608
        conn.execute(text(many))
        plans.clear()
        relay(conn)
    check(plans)


def check(plans: list[Any]) -> None:
    """Check that each part of these plans has read few rows."""
    assert plans
    for statement, plan in plans:
        for node in nodes(plan):
            thrown_away = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
            read = (node["Actual Rows"] + thrown_away) * node["Actual Loops"]
            assert read <= MOST_ROWS, (statement, node)
            whole = node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
            assert not whole, (statement, node)


def nodes(plan: Any) -> Iterator[Any]:
    """Return each node of a plan."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.mark.parametrize("name", HOT)
def test_sqlite_reads_no_large_table_from_end_to_end(embedded: Database, name: str) -> None:
    """Except for an unfiltered page, which is read from its end, and the small indexes of pending rows."""
    small = (" ix_ref_updates_pending", " ix_ref_updates_new")
    plans: list[Any] = []
    with explained(embedded, plans) as conn:
        HOT[name](conn)
    assert plans
    for statement, plan in plans:
        in_order = "LIMIT" in statement and not any("TEMP B-TREE FOR ORDER BY" in line for line in plan)
        for line in plan:
            scanned = re.fullmatch(r"SCAN (\w+)( USING .*)?", line)
            if scanned and scanned[1] in LARGE and not line.endswith(small):
                assert in_order, (statement, plan)


def test_what_is_deleted_is_referred_to_by_an_index() -> None:
    """Deleting a row searches for references to it, which no plan shows."""
    unfound = [
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        for key in column.foreign_keys
        if key.column.table.name in {"deliveries", "ref_updates", "executions"}
        and next(iter(table.primary_key)) is not column
        and not any(next(iter(index.columns)) is column for index in table.indexes)
    ]
    assert unfound == []
