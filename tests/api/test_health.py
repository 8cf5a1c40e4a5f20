"""The probes: what makes a process unready, and what does not."""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from starlette.requests import Request

from gateway.api.health import Health
from gateway.api.scrape import Scrape
from gateway.intake.group_commit import DeliveryWriter
from gateway.store.database import Database
from testing.postgres import Postgres, end_all_connections
from testing.service import Project, Service, wait_for


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an empty store."""
    database = Database(f"sqlite:///{tmp_path / 'health.db'}")
    database.migrate()
    yield database
    database.close()


def probe(service: Service, path: str) -> tuple[int, str]:
    """Send a probe as the kubelet does."""
    try:
        with urllib.request.urlopen(service.url + path) as answered:  # noqa: S310 - our own gateway
            return answered.status, answered.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_a_gateway_that_works_says_so(service: Service, path: str) -> None:
    """Without a token."""
    assert probe(service, path) == (200, '{"status":"ok"}')


@pytest.mark.parametrize("role", ["all", "web", "worker"])
def test_an_outage_of_the_broker_makes_nothing_unready(tmp_path: Path, role: str) -> None:
    """Requests wait in the store, and readiness depends only on that."""
    with Service(tmp_path / "data", AMQP_URL="amqp://guest:guest@127.0.0.1:9/", ROLE=role) as service:
        if role != "web":
            wait_for(
                lambda: any("the broker is unavailable" in line["event"] for line in service.log()),
                "it is noticed",
            )
        assert probe(service, "/readyz")[0] == 200


def test_a_database_that_is_away_makes_unready_and_kills_nobody(tmp_path: Path, postgres: Postgres) -> None:
    """Once it is back, the process is ready again."""
    shared = {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32}
    with Service(tmp_path / "data", **shared) as service:
        assert probe(service, "/readyz")[0] == 200
        postgres.stop()
        try:
            status, body = probe(service, "/readyz")
            assert (status, "the database" in body) == (503, True)
            assert (probe(service, "/livez")[0], probe(service, "/startupz")[0]) == (200, 200)
        finally:
            postgres.start()
        wait_for(lambda: probe(service, "/readyz")[0] == 200, "it is ready again")


def test_a_database_that_only_reads_makes_unready(
    tmp_path: Path, postgres: Postgres, project: Project
) -> None:
    """As after a switch to a standby; once it accepts writes, the same workers continue."""
    url = postgres.database()
    with Service(tmp_path / "data", DATABASE_URL=url, SECRET_KEY="s" * 32) as service:
        connection = service.connect(project.url, "train@main")
        _switch(url, "on")
        status, body = probe(service, "/readyz")
        assert (status, "refuses writes" in body) == (503, True)
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        body_of_push = project.payload(project.first, pushed)
        assert service.deliver(connection, body_of_push)[0] == 503
        _switch(url, "off")
        status, answer = service.deliver(connection, body_of_push)
        assert status == 202
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned"
        wait_for(lambda: probe(service, "/readyz")[0] == 200, "it is ready again")


def test_a_start_on_a_database_that_only_reads_waits_for_writes(
    tmp_path: Path, postgres: Postgres, project: Project
) -> None:
    """As on a standby about to be promoted: it logs that in plain lines, and then works."""
    url = postgres.database()
    migrated = Database(url)
    migrated.migrate()
    migrated.close()
    _switch(url, "on")
    with Service(tmp_path / "data", DATABASE_URL=url, SECRET_KEY="s" * 32) as service:
        assert probe(service, "/readyz")[0] == 503
        _switch(url, "off")
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        assert service.settled(answer["delivery"])["updates"][0]["state"] == "planned"
        lines = [line for line in service.log() if line["level"] in {"warning", "error"}]
    assert lines
    assert not [line for line in lines if "Traceback" in str(line)]


def _switch(url: str, value: str) -> None:
    """Make the database read-only or writable, and end all connections."""
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as server:
        server.execute(f"ALTER DATABASE {server.info.dbname} SET default_transaction_read_only = {value}")
    end_all_connections(url)


def test_a_process_that_is_about_to_end_is_not_ready(database: Database) -> None:
    """Even if all else works: it should get no more requests."""

    async def scenario() -> list[int]:
        writer = DeliveryWriter(database, notify=lambda: None)
        writer.start()
        statuses = []
        closing = threading.Event()
        health = Health(database=database, writer=writer, is_closing=closing.is_set)
        statuses.append((await health.ready(Request({"type": "http"}))).status_code)
        closing.set()
        statuses.append((await health.ready(Request({"type": "http"}))).status_code)
        await writer.stop()
        return statuses

    assert asyncio.run(scenario()) == [200, 503]


def test_work_that_holds_every_thread_of_the_store_makes_nothing_unready(database: Database) -> None:
    """A long list in each of them: the probes have their own threads."""

    async def scenario() -> int:
        writer = DeliveryWriter(database, notify=lambda: None)
        writer.start()
        health = Health(database=database, writer=writer, is_closing=lambda: False)
        free = threading.Event()
        held = [asyncio.create_task(database.read(lambda _: free.wait())) for _ in range(32)]
        try:
            async with asyncio.timeout(30):
                scrape = Scrape(database=database, disk_trouble=health.disk_trouble, folders={})
                metrics = await scrape.metrics(Request({"type": "http"}))
                assert b"pushgate_pending_ref_updates 0.0" in metrics.body
                asked = [health.ready(Request({"type": "http"})) for _ in range(5)]
                return max(answer.status_code for answer in await asyncio.gather(*asked))
        finally:
            free.set()
            await asyncio.gather(*held)
            await writer.stop()

    assert asyncio.run(scenario()) == 200
