"""SIGTERM: no more claims, running work is handed back, and the broker's confirms are recorded."""

import asyncio
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from testing.broker import Broker
from testing.github import push_payload
from testing.postgres import Postgres
from testing.service import Project, Service, wait_for
from tests.publish.proxy import Proxy
from tests.publish.runner import Runner


def test_a_confirm_that_comes_while_the_process_ends_is_written_down(
    tmp_path: Path, broker: Broker, project: Project
) -> None:
    """So the next start does not publish the request again."""

    async def scenario() -> tuple[int, list[str | None]]:
        async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
            service, queue = await _with_one_unconfirmed(tmp_path, project, proxy, runner)
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            await asyncio.to_thread(wait_for, lambda: not _listens(service), "the process is ending")
            proxy.heal()
            status = await stopping
            await asyncio.to_thread(_publish_the_rest, service)
            return status, [message.message_id for message in await runner.rest(queue)]

    status, ids = asyncio.run(scenario())
    assert status == 0
    assert len(ids) == len(set(ids)) == 2


def test_a_broker_that_says_nothing_does_not_keep_the_process(
    tmp_path: Path, broker: Broker, project: Project
) -> None:
    """It ends cleanly; the next start publishes unconfirmed requests again, with the same ids."""

    async def scenario() -> tuple[int, list[str | None]]:
        async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
            service, queue = await _with_one_unconfirmed(tmp_path, project, proxy, runner)
            status = await asyncio.to_thread(service.stop)
            proxy.heal()
            await asyncio.to_thread(_publish_the_rest, service)
            return status, [message.message_id for message in await runner.rest(queue)]

    status, ids = asyncio.run(scenario())
    assert status == 0
    assert (len(ids), len(set(ids)), ids[1]) == (3, 2, ids[2])


async def _with_one_unconfirmed(
    tmp_path: Path, project: Project, proxy: Proxy, runner: Runner
) -> tuple[Service, str]:
    """Start a gateway; one request is published, another is at the broker, with its confirm held back."""
    queue = f"draining-{uuid.uuid4().hex}"
    service = Service(tmp_path / "data", AMQP_URL=proxy.url, AMQP_EXCHANGE=queue, AMQP_QUEUE=queue)

    def first() -> tuple[Any, str]:
        service.start()
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        service.deliver(connection, project.payload(project.first, pushed))
        _wait_until_all_are_published(service)
        return connection, pushed

    def second(connection: Any, before: str) -> None:
        pushed = project.push("Third", {"train.py": "print(3)\n"})
        service.deliver(connection, project.payload(before, pushed))

    connection, before = await asyncio.to_thread(first)
    proxy.hold_answers()
    await asyncio.to_thread(second, connection, before)
    await runner.until_holds(queue, 2)
    return service, queue


def _publish_the_rest(service: Service) -> None:
    with service:
        _wait_until_all_are_published(service)


def _wait_until_all_are_published(service: Service) -> None:
    wait_for(
        lambda: (
            service.api.get("/executions", state="published")["items"]
            and not service.api.get("/executions", state="pending")["items"]
        ),
        "all is published",
    )


def _listens(service: Service) -> bool:
    try:
        with urllib.request.urlopen(f"{service.url}/livez"):  # noqa: S310 - our own gateway
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield the address of a git host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_is_under_way_is_handed_back_and_taken_up_by_another(
    tmp_path: Path, postgres: Postgres, silent: str
) -> None:
    """At once, although the lease is still valid and the ending process has the mirror."""
    shared = {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32}
    one = Service(tmp_path / "one", **shared)
    other = Service(tmp_path / "other", **shared, ROLE="worker")
    with psycopg.connect(shared["DATABASE_URL"], autocommit=True) as store:

        def at_work() -> str | None:
            found = store.execute("SELECT process FROM leases WHERE owner IS NOT NULL").fetchone()
            return None if found is None else str(found[0]).rpartition("/")[2]

        with one:
            connection = one.connect(f"{silent}/acme/digits.git")
            body = push_payload(
                url=connection["url"],
                full_name="acme/digits",
                ref="refs/heads/main",
                before=None,
                after="a" * 40,
            )
            assert one.deliver(connection, body)[0] == 202
            assert wait_for(at_work, "it is under way") == "one"
            with other:
                assert one.stop() == 0
                wait_for(lambda: at_work() == "other", "the other has taken it up")
                assert other.stop() == 0
        assert store.execute("SELECT name FROM processes").fetchall() == []
        assert at_work() is None
