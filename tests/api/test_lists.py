"""Lists of the REST API: pages, filters, and what a page costs."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update
from starlette.requests import Request

from gateway.api.connections import Connections
from gateway.api.health_overview import HealthOverview
from gateway.cli.api_client import ApiError
from gateway.crypto.keyring import Keyring
from gateway.intake.connection_cache import ConnectionCache
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.tables import reconciliations
from testing.records import NOW, connection
from testing.service import Project, Service, run_pushgate

OPENAPI = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an empty store."""
    database = Database(f"sqlite:///{tmp_path / 'lists.db'}")
    database.migrate()
    yield database
    database.close()


def page(database: Database, query: str) -> Any:
    """Return the API's page of connections."""
    keyring = Keyring("k" * 32)
    api = Connections(
        database=database,
        keyring=keyring,
        cache=ConnectionCache(database, keyring),
        pushes=Notifier(),
        base_url="http://127.0.0.1:8080",
        allow_http=False,
        hosts=(),
    )
    request = Request({"type": "http", "headers": [], "query_string": query.encode()})
    return asyncio.run(api.list_connections(request))


def test_a_page_costs_the_same_number_of_statements_however_long_it_is(database: Database) -> None:
    """A list of 10,000 connections once took three statements for each of them, and 19 s."""
    for number in range(30):
        connection(database, f"{number:024x}", name=f"digits {number}")
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def _count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    counts = []
    for limit in (1, 30):
        statements.clear()
        assert len(page(database, f"limit={limit}").items) == limit
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_pages_of_connections_hold_each_of_them_once(database: Database) -> None:
    """Also those made at the same instant, and if the last one of a page is deleted meanwhile."""
    made = [
        connection(database, f"{number:024x}", created_at=NOW + timedelta(seconds=number // 3)).id
        for number in (5, 0, 3, 1, 4, 2)
    ]
    found, cursor = [], ""
    while cursor is not None:
        shown = page(database, f"limit=2&cursor={cursor}" if cursor else "limit=2")
        found += [one.id for one in shown.items]
        cursor = shown.next
    assert found == sorted(made)


def test_the_commands_follow_the_pages(service: Service) -> None:
    """`connections` and `apply` see all connections, not only the first page."""
    database = Database(f"sqlite:///{service.data / 'pushgate.db'}")
    for number in range(205):
        connection(database, f"{number:024x}", name=f"digits-{number:03}")
    database.close()
    done = run_pushgate("connections", "--json", service=service)
    assert len(json.loads(done.stdout)["items"]) == 205
    assert len(service.api.get("/connections")["items"]) == 50
    file = service.data.parent / "connections.yaml"
    file.write_text(
        "connections:\n  - {name: digits-204, provider: github, project: digits,"
        " url: https://github.example/acme/digits.git}\n"
    )
    done = run_pushgate("apply", "--file", str(file), "--dry-run", "--json", service=service)
    [change] = json.loads(done.stdout)["changes"]
    assert change["action"] == "keep", done.stderr


def test_a_connection_is_named_by_its_id_or_its_name(service: Service, project: Project) -> None:
    """In each filter; an unknown or ambiguous name is an error, not an empty list."""
    one = service.connect(project.url, name="digits")
    _, answer = service.deliver(one, project.payload(None, project.first))
    for named in ("digits", one["id"]):
        found = service.api.get("/deliveries", connection=named)["items"]
        assert [delivery["id"] for delivery in found] == [answer["delivery"]]
    assert [found["id"] for found in service.api.get("/connections", name="digits")["items"]] == [one["id"]]
    for command in ("deliveries", "executions"):
        done = run_pushgate(command, "--connection", "digitz", service=service)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no connection has the id or the name digitz" in done.stderr
    with pytest.raises(ApiError, match="no delivery has the id nope"):
        service.api.get("/executions", delivery="nope")
    service.api.send("DELETE", f"/connections/{one['id']}")
    assert service.api.get("/deliveries", connection=one["id"])["items"]


def test_a_name_that_several_connections_have_is_refused_as_a_filter(database: Database) -> None:
    """With the ids, so that the user can choose."""
    from gateway.errors import Invalid  # noqa: PLC0415
    from gateway.store import connections  # noqa: PLC0415

    for number in (1, 2):
        connection(database, f"{number:024x}", name="digits")
    with database.reading() as conn, pytest.raises(Invalid, match=f"{1:024x}, {2:024x}"):
        connections.find(conn, "digits")


def test_a_query_that_is_not_known_is_refused(service: Service) -> None:
    """At every address: with an ignored `?state=failed` the answer would hold everything."""
    operations = [
        (path, method, operation)
        for path, methods in OPENAPI["paths"].items()
        for method, operation in methods.items()
        # The answer to HEAD has no text.
        if path.startswith("/api/v1/") and method != "head"
    ]
    for path, method, operation in operations:
        known = [one["name"] for one in operation["parameters"] if one["in"] == "query"]
        plain = path.removeprefix("/api/v1").replace("{id}", "0" * 36)
        with pytest.raises(ApiError, match="unknown query parameter nope") as refused:
            service.api.send(method.upper(), plain, nope="1")
        assert all(name in str(refused.value) for name in known), path
    with pytest.raises(ApiError, match="limit is given more than once"):
        service.api.get("/deliveries?limit=1&limit=2")


def test_health_is_listed_by_its_state(database: Database) -> None:
    """A filter finds its connections behind others, and pages hold each of them once."""
    for number in range(6):
        connection(database, f"{number:024x}", name=f"digits {number}")
    with database.writing() as conn:
        failing = {"reason": "the remote cannot be fetched: its host cannot be reached", "tried_at": NOW}
        odd = reconciliations.c.connection.in_([f"{number:024x}" for number in (1, 3, 5)])
        conn.execute(update(reconciliations).where(odd).values(**failing))
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = "state=failing&limit=2" + (f"&cursor={cursor}" if cursor else "")
        request = Request({"type": "http", "headers": [], "query_string": query.encode()})
        shown = asyncio.run(HealthOverview(database=database).list_health(request))
        found += [one.name for one in shown.items]
        assert {one.health.state for one in shown.items} <= {"failing"}
        cursor = shown.next
    assert found == ["digits 1", "digits 3", "digits 5"]
