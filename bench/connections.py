"""Many connections in a store on PostgreSQL, as copies of one: the gateway takes milliseconds to add each."""

from datetime import UTC, datetime

import sqlalchemy
from sqlalchemy import ColumnElement, Integer, Table, Text, Uuid, cast, func, insert, literal, select, true

from gateway.store import accept, connections, tables
from gateway.store.database import Database
from testing.records import A, B, arrival, made, move

_PROJECTS = 100

Changes = dict[str, ColumnElement[str]]


def add_connections(database: Database, count: int, *, hosts: int, with_push: bool = False) -> None:
    """Store connections in 100 projects on so many git hosts, each with a pending push if wanted."""
    name = f"{0:024}"
    url = f"https://host0.example/acme/{name}.git"
    first = made(name, name=name, url=url, project="project 0")
    with database.writing() as conn:
        connections.add(conn, first)
        if with_push:
            new = arrival(move(A, B), connection=first.id, received_at=datetime.now(UTC))
            accept.record(conn, [new])
        _copy(conn, count - 1, hosts=hosts)
    analyze(database)


def analyze(database: Database) -> None:
    """Do what a running system does by itself, and more often for few rows than for all at once."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE")


def _copy(conn: sqlalchemy.Connection, count: int, *, hosts: int) -> None:
    """Copy all rows of the only connection so many times."""
    numbers = select(func.generate_series(1, count, type_=Integer).label("number")).subquery()
    number = numbers.c.number
    name = func.lpad(cast(number, Text), 24, "0")
    host = literal("host") + cast(number % hosts, Text) + ".example"
    key = host + "/acme/" + name
    delivery = cast(cast(func.md5(name), Uuid), Text)
    own: dict[Table, Changes] = {
        tables.connections: {
            "id": name,
            "name": name,
            "url": literal("https://") + key + ".git",
            "host": host,
            "repository_key": key,
            "project": literal("project ") + cast(number % _PROJECTS, Text),
        },
        tables.leases: {"connection": name},
        tables.reconciliations: {"connection": name, "host": host},
        tables.deliveries: {"connection": name, "id": delivery, "provider_delivery_id": delivery},
        tables.ref_updates: {"connection": name, "delivery": delivery},
        tables.refs: {"connection": name, "delivery": delivery},
    }
    for table, changes in own.items():
        columns = [column for column in table.columns if column is not table.autoincrement_column]
        copied = [changes.get(column.name, column) for column in columns]
        copies = select(*copied).select_from(table.join(numbers, true()))
        conn.execute(insert(table).from_select(columns, copies))
