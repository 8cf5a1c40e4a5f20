"""What the API answers about webhooks at providers while no worker runs."""

import asyncio
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import update
from starlette.requests import Request

from gateway.api.registrations import Registrations
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.registrations import is_due
from gateway.store.tables import connections
from testing.records import connection


def test_a_check_that_no_worker_has_done_is_no_result(tmp_path: Path) -> None:
    """The task stays due, and the answer says what it waits for."""
    with closing(Database(f"sqlite:///{tmp_path / 'pushgate.db'}")) as database:
        database.migrate()
        connection(database)
        with database.writing() as conn:
            conn.execute(update(connections).values(identity="bot"))
        api = Registrations(database=database, pushes=Notifier())
        scope = {"type": "http", "headers": [], "query_string": b"wait=0", "path_params": {"id": "c1"}}
        answer = asyncio.run(api.check_webhook(Request(scope)))
        assert answer.reason == "no worker has done it yet: it goes on, if a worker runs"
        assert answer.checked_at is None
        with database.reading() as conn:
            assert is_due(conn, now=datetime.now(UTC))
