"""Outages of the webhook endpoint are noticed when they are over, and have failed deliveries requested."""

import asyncio
from datetime import datetime, timedelta

import pytest
import structlog
from sqlalchemy import text

from gateway.intake.refusal_log import RefusalLog
from gateway.intake.uptime import Uptime
from gateway.store import redeliveries
from gateway.store.database import Database
from gateway.store.refusals import Refusal
from testing.records import NOW, connection

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def is_due(database: Database, now: datetime) -> bool:
    """Return whether a log of deliveries is to be searched."""
    with database.reading() as conn:
        return redeliveries.is_due(conn, now=now)


@pytest.fixture
def watched(database: Database) -> Database:
    """Return a store with one connection whose log is searched."""
    connection(database)
    with database.writing() as conn:
        redeliveries.watch(conn, "c1", may_lack=False, now=NOW)
    return database


def test_an_outage_is_noticed_when_it_is_over(watched: Database) -> None:
    """Of the process, which each start ends, and of the store."""
    now, notified = NOW, []

    def process() -> Uptime:
        return Uptime(watched, notify=lambda: notified.append(now), clock=lambda: now)

    async def until_stopped(uptime: Uptime) -> None:
        uptime.start()
        await uptime.stop()

    with asyncio.Runner() as runner, structlog.testing.capture_logs() as lines:
        runner.run(until_stopped(process()))
        assert not is_due(watched, now)
        now += SECOND
        uptime = process()
        runner.run(uptime.record())
        assert is_due(watched, now)
        for names in ("last_seen RENAME TO away", "away RENAME TO last_seen"):
            with watched.writing() as conn:
                conn.execute(text(f"ALTER TABLE {names}"))
            now += 30 * SECOND
            runner.run(uptime.record())
    outages = [line for line in lines if line["event"].startswith("webhooks were not received")]
    assert [line["since"] for line in outages] == [NOW.isoformat(), (NOW + SECOND).isoformat()]
    assert notified == [NOW + SECOND, NOW + 61 * SECOND]


def test_a_delivery_that_could_not_be_stored_is_requested(watched: Database) -> None:
    """Also if that could not be recorded at once."""
    notified: list[bool] = []
    uptime = Uptime(watched, notify=lambda: notified.append(True), clock=lambda: NOW)
    for number in range(2000):
        uptime.failed("c1" if number == 0 else f"of nobody {number}")
    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        for names in ("last_seen RENAME TO away", "away RENAME TO last_seen"):
            with watched.writing() as conn:
                conn.execute(text(f"ALTER TABLE {names}"))
            assert not is_due(watched, NOW)
            runner.run(uptime.record())
    assert is_due(watched, NOW)
    assert notified == [True]


def test_an_unverified_delivery_is_requested_later(watched: Database) -> None:
    """When its cause may have been removed; a repetition is not what a body that is too large needs."""

    async def refuse(status: int) -> None:
        log = RefusalLog(watched, interval=3600.0)
        log.add(
            Refusal(
                connection="c1",
                client=None,
                status=status,
                cause="x",
                reason="x",
                event="",
                provider_delivery_id=None,
                first_at=NOW,
                last_at=NOW,
            )
        )
        await log.stop()

    asyncio.run(refuse(413))
    assert not is_due(watched, NOW + 10 * MINUTE)
    asyncio.run(refuse(401))
    assert not is_due(watched, NOW + 9 * MINUTE)
    assert is_due(watched, NOW + 10 * MINUTE)
