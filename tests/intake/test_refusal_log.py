"""Refused requests are counted in memory and written together, up to limits."""

import asyncio

import structlog
from sqlalchemy import event, text

from gateway.intake.refusal_log import RefusalLog
from gateway.store import refusals
from gateway.store.database import Database
from gateway.store.refusals import RecordedRefusal, Refusal
from testing.records import NOW, connection


def refused(client: str, name: str | None = "c1") -> Refusal:
    """Return a refused request of a client."""
    return Refusal(
        connection=name,
        client=client,
        status=401,
        cause="not verified",
        reason="no signature",
        event="push",
        provider_delivery_id=None,
        first_at=NOW,
        last_at=NOW,
    )


def recorded(database: Database) -> list[RecordedRefusal]:
    """Return what is stored."""
    with database.reading() as conn:
        return refusals.page(conn, connection=None, before=None, limit=1000)


def test_a_flood_is_one_small_transaction(database: Database) -> None:
    """Each client is counted; of too many clients, only some are, and each connection has its own limit."""
    connection(database)
    connection(database, "c2")
    commits: list[int] = []
    event.listen(database.engine, "commit", lambda _conn: commits.append(1))

    async def flood() -> None:
        log = RefusalLog(database, interval=3600.0)
        for _ in range(10):
            for number in range(100):
                log.add(refused(f"192.0.2.{number}"))
                log.add(refused(f"192.0.2.{number}", f"{number:024x}"), is_of_connection=False)
        log.add(refused("198.51.100.1", "c2"))
        await log.stop()

    asyncio.run(flood())
    found = recorded(database)
    assert len(commits) == 1
    assert {name: sum(each.connection == name for each in found) for name in ("c1", "c2")} == {
        "c1": 20,
        "c2": 1,
    }
    assert len(found) == 20 + 1 + 20
    assert {each.count for each in found if each.connection == "c1"} == {10}


def test_a_failed_write_is_logged_and_the_next_one_succeeds(database: Database) -> None:
    """What could not be written is dropped."""
    connection(database)

    async def write(client: str) -> None:
        log.add(refused(client))
        await log.stop()

    log = RefusalLog(database)
    with asyncio.Runner() as runner, structlog.testing.capture_logs() as lines:
        runner.run(write("192.0.2.1"))
        for names in ("refusals RENAME TO away", "away RENAME TO refusals"):
            with database.writing() as conn:
                conn.execute(text(f"ALTER TABLE {names}"))
            runner.run(write(f"of {names}"))
    assert "refused requests are not recorded" in {line["event"] for line in lines}
    assert {each.client for each in recorded(database)} == {"of away RENAME TO refusals", "192.0.2.1"}
