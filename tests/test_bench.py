"""The report of the benchmarks, and the connections that they copy."""

import json
import re
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from rich.console import Console
from sqlalchemy import select

from bench.connections import add_connections
from bench.report import Rounds, Row, measured, show, unmeasured, write
from gateway.store import accept, connections
from gateway.store.database import Database
from gateway.store.tables import metadata
from providers.clone_urls import host_of
from testing.postgres import Postgres
from testing.records import A, B, arrival, move


def _failing(_call: str = "") -> float:
    raise FileNotFoundError("rabbitmq-server is not installed")


def _written(rows: list[Row], folder: Path) -> list[dict[str, object]]:
    write(rows, folder / "build" / "bench.json")
    listed: list[dict[str, object]] = json.loads((folder / "build" / "bench.json").read_text())
    return listed


def test_value_and_yardstick_of_a_round_belong_together(tmp_path: Path) -> None:
    """The ratio is the median of the rounds' ratios, not the ratio of the medians."""
    row = Row("claims", [10, 40, 30], [10, 20, 30], aim=1.5, higher_is_better=False)
    [written] = _written([row], tmp_path)
    assert (row.value, row.yardstick, row.ratio, row.reached) == (30, 20, 1, True)
    assert (written["lowest"], written["highest"], written["rounds"]) == (1, 2, 3)
    with pytest.raises(ValueError, match="shorter"):
        Row("claims", [10, 40], [10], aim=None, higher_is_better=True)
    with pytest.raises(ValueError, match="yardstick is 0"):
        Row("claims", [10, 40], 0, aim=None, higher_is_better=True)


def test_a_failed_measurement_costs_only_its_own_rows(tmp_path: Path) -> None:
    """Its row has the reason, in the table and in the file, and is not repeated in later rounds."""
    calls = iter(["called"])
    rounds = Rounds("relay", lambda _text: None, most=3, seconds=60)
    for number in rounds:
        rounds.measure("bare", float, number + 1)
        rounds.measure("relay", lambda: _failing(next(calls)))
        rounds.measure("SQLite", float, 2 * number + 2)
    rows = [
        rounds.row("messages", "relay", "bare", aim=0.9, higher_is_better=True),
        rounds.row("accepts", "SQLite", "bare", aim=3, higher_is_better=True),
        *measured("pushes [all]", lambda: [Row("pushes", _failing(), 1, None, higher_is_better=True)]),
        unmeasured("shares", "only root may limit a process"),
    ]
    written = _written(rows, tmp_path)
    reason = "FileNotFoundError: rabbitmq-server is not installed"
    assert [row.get("reason") for row in written] == [
        f"relay: {reason}",
        None,
        reason,
        "only root may limit a process",
    ]
    assert [row.reached for row in rows] == [None, False, None, None]
    output = StringIO()
    show(rows, Console(width=200, file=output))
    assert f"pushes [all]\nnot measured: {reason}" in re.sub(" *\n", "\n", output.getvalue())


def test_no_round_begins_that_would_exceed_the_budget() -> None:
    """The first round always takes place."""
    assert list(Rounds("relay", lambda _text: None, most=3, seconds=0)) == [0]


def _rows(conn: sqlalchemy.Connection, connection: str) -> dict[str, list[Any]]:
    """Return the rows of a connection by table, without ids and times."""
    differs = {"id", "connection", "seq", "delivery", "provider_delivery_id", "received_at", "gaps"}
    found = {}
    for table in metadata.sorted_tables:
        owner = table.c.id if table.name == "connections" else table.c.get("connection")
        if owner is not None:
            same = [column for column in table.columns if column.name not in differs]
            found[table.name] = list(conn.execute(select(*same).where(owner == connection)))
    return found


def test_copied_connections_are_like_added_ones(postgres: Postgres) -> None:
    """A copy has the rows that the gateway writes for a connection with a pending push."""
    with closing(Database(postgres.database())) as database:
        database.migrate()
        add_connections(database, 4, hosts=2, with_push=True)
        with database.writing() as conn:
            copied = connections.get(conn, f"{3:024}")
            added = replace(copied, id="added")
            connections.add(conn, added)
            accept.record(conn, [arrival(move(A, B), connection=added.id)])
            assert (host_of(copied.url), copied.project) == ("host1.example", "project 3")
            assert _rows(conn, copied.id) == _rows(conn, added.id)
