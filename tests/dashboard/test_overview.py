"""What the viewers of the overview share, and for how long."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy
from sqlalchemy import event, update

from gateway.api.health_overview import in_states
from gateway.store.database import Database
from gateway.store.tables import reconciliations
from testing.in_process import InProcess
from testing.records import connection
from testing.service import ADMIN_TOKEN

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Return a gateway with three connections, of which the last cannot be read."""
    with InProcess(tmp_path_factory.mktemp("overview") / "data") as gateway:
        for number in range(3):
            connection(gateway.database, f"c{number}", name=f"acme/r{number}")
        fail(gateway.database, "c2")
        yield gateway


def fail(database: Database, name: str, reason: str | None = "nobody answers") -> None:
    """Record a look at the remote of a connection, which has failed for a reason."""
    with database.writing() as conn:
        values: dict[str, Any] = {"reason": reason, "tried_at": NOW}
        conn.execute(update(reconciliations).where(reconciliations.c.connection == name).values(values))


@pytest.fixture
def cookie(gateway: InProcess) -> str:
    """Return the cookie of a user who has signed in."""
    form = {"content_type": "application/x-www-form-urlencoded"}
    body = urlencode({"token": ADMIN_TOKEN}).encode()
    answer = gateway.send("POST", "/sign-in", body, token=None, **form)
    return answer.headers["set-cookie"].partition(";")[0]


def overview(gateway: InProcess, cookie: str) -> str:
    """Return the page."""
    return gateway.send("GET", "/", token=None, cookie=cookie).body.decode()


def statements(database: Database) -> list[str]:
    """Return a list to which each further statement is added."""
    found: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def _add(_conn: object, _cursor: object, statement: str, *_more: object) -> None:
        found.append(statement)

    return found


def test_the_page_after_an_action_shows_its_result(gateway: InProcess, cookie: str) -> None:
    """Also if somebody else has just seen the page."""
    fail(gateway.database, "c0", None)
    act(gateway, cookie)
    assert "acme/r0" not in overview(gateway, cookie)
    fail(gateway.database, "c0")
    act(gateway, cookie)
    assert "acme/r0" in overview(gateway, cookie)


def act(gateway: InProcess, cookie: str) -> None:
    """Send a form of the dashboard."""
    assert gateway.send("POST", "/connections/c1/fetch", token=None, cookie=cookie).status == 303


def test_an_identity_that_ends_soon_needs_attention(gateway: InProcess, cookie: str) -> None:
    """Also if nothing uses it: no connection's health names it then."""
    for name, days in (("ends-soon", 3), ("ends-late", 300)):
        ends = (NOW + timedelta(days=days)).isoformat()
        identity = {"name": name, "provider": "github", "token": "t", "expires_at": ends}
        assert gateway.send("POST", "/api/v1/identities", identity).status == 201
    act(gateway, cookie)
    page = overview(gateway, cookie)
    assert "The identity ends soon, and no connection uses it" in page
    assert "ends-soon" in page
    assert "ends-late" not in page


def test_the_second_viewer_costs_a_fraction(gateway: InProcess, cookie: str) -> None:
    """Nothing is examined or counted again, but the newest records are read."""
    act(gateway, cookie)
    ran = statements(gateway.database)
    overview(gateway, cookie)
    first = len(ran)
    ran.clear()
    overview(gateway, cookie)
    assert len(ran) < first / 2
    assert any("FROM deliveries" in one for one in ran)
    assert not any("reconciliations" in one for one in ran)


def test_each_connection_is_examined_once_for_all_states(gateway: InProcess) -> None:
    """So many of each state are returned, the oldest first."""
    for name, reason in (("c0", "away"), ("c1", None), ("c2", "away")):
        fail(gateway.database, name, reason)

    def of(conn: sqlalchemy.Connection, limit: int) -> dict[str, list[str]]:
        shown = in_states(conn, ("failing", "warning"), limit=limit)
        return {state: [each.id for each in found] for state, found in shown.items()}

    with gateway.database.reading() as conn:
        assert of(conn, 8) == {"failing": ["c0", "c2"], "warning": []}
        assert of(conn, 1) == {"failing": ["c0"], "warning": []}
