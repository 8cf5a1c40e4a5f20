"""Why a pending request waits."""

import asyncio
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

from gateway.store import accept, executions, outages, waiting_requests, work_queue
from gateway.store.database import Database, Lock
from gateway.store.outbox import Outbox
from testing.postgres import Postgres
from testing.records import NOW, A, arrival, connection, move
from tests.store.test_refused import REQUEST


def test_each_pending_request_says_why_it_waits(database: Database) -> None:
    """Its own refusal, an outage, or the refused one before it; ended requests keep their reason."""
    connection(database)
    connection(database, "c2")
    with database.writing() as conn:
        accept.record(conn, [arrival(move(None, A), id="d1")])
        [update] = work_queue.pending(conn, "c1", limit=1)
        new = [replace(REQUEST, id=f"r{number}", trigger=f"t{number}") for number in range(4)]
        new.append(replace(REQUEST, id="other", connection="c2"))
        executions.add(conn, new, ref_update=update.seq, now=NOW)
        executions.record(
            conn, published=["r0"], refused={"r1": "full"}, undeliverable={"r3": "large"}, now=NOW
        )

        def reasons(*, has_broker: bool = True) -> list[str | None]:
            found = executions.of_deliveries(conn, ["d1"])
            explained = waiting_requests.explained(conn, found, has_broker=has_broker, now=NOW)
            return [one.reason for one in explained]

        on_its_way = "it is on its way to the broker, which has not confirmed it yet"
        assert reasons() == [None, "full", "it waits behind r1: full", "large", on_its_way]
        assert reasons(has_broker=False) == [None, "full", None, "large", None]
        outages.record(conn, "request", "the broker is away", now=NOW)
        assert reasons() == [None, "full", "the broker is away", "large", "the broker is away"]


def test_an_outage_begins_once_and_ends(database: Database) -> None:
    """Its reason may change meanwhile; an outage of events is separate."""
    later = NOW + timedelta(minutes=1)
    with database.writing() as conn:
        outages.record(conn, "request", None, now=NOW)
        outages.record(conn, "request", "it is away", now=NOW)
        outages.record(conn, "request", "it refuses us", now=later)
        outages.record(conn, "event", "it is away", now=later)
        assert [(one.what, one.reason, one.since) for one in outages.current(conn)] == [
            ("event", "it is away", later),
            ("request", "it refuses us", NOW),
        ]
        outages.record(conn, "request", None, now=later)
        assert [one.what for one in outages.current(conn)] == ["event"]


def test_a_process_that_cannot_publish_takes_the_lead_from_nobody(postgres: Postgres) -> None:
    """It reports only if no other process relays, and another can begin at once."""
    url = postgres.database()
    with closing(Database(url)) as cut_off, closing(Database(url)) as well:
        cut_off.migrate()

        async def recorded(database: Database, outage: str | None) -> bool:
            return await Outbox(database).record_outage(outage)

        assert asyncio.run(recorded(cut_off, "the broker is away")) is True
        assert asyncio.run(well.is_leader(Lock.RELAY)) is True
        assert asyncio.run(recorded(cut_off, "the broker is still away")) is False
        assert asyncio.run(recorded(well, None)) is True
        with well.reading() as conn:
            assert outages.current(conn) == []


def test_an_outage_is_that_of_requests_or_of_events(database: Database) -> None:
    """Each ends separately, and has its latest reason."""
    with database.writing() as conn:
        for what in ("request", "event"):
            outages.record(conn, what, "away", now=NOW)
        outages.record(conn, "event", "refused", now=NOW)
        assert [(one.what, one.reason) for one in outages.current(conn)] == [
            ("event", "refused"),
            ("request", "away"),
        ]
        outages.record(conn, "event", None, now=NOW)
        assert [(one.what, one.reason) for one in outages.current(conn)] == [("request", "away")]
        outages.record(conn, "request", "refused", now=NOW)
        outages.record(conn, "event", None, now=NOW)
        assert [(one.what, one.reason) for one in outages.current(conn)] == [("request", "refused")]
