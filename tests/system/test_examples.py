"""The recipes in examples/, as independent consumers: each takes real requests from a real broker."""

import asyncio
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aio_pika
import pytest

from testing.broker import Broker
from testing.service import Project, Service, wait_for
from tests.publish.runner import Runner
from tests.system.recipes import NODE, RECIPES, command, environment, indented, prepare

TRAIN = """\
import os, sys
open(os.environ['VH_OUTPUTS_DIR'] + '/model.txt', 'w').close()
print('trained', open('data.txt').read(), sys.argv[1:])
print('{"accuracy": 0.93}')
"""


@pytest.fixture
def queue() -> str:
    """Return a unique queue name at the shared broker."""
    return f"recipe-{uuid.uuid4().hex}"


@pytest.fixture
def service(tmp_path: Path, broker: Broker, queue: str) -> Iterator[Service]:
    """Start a gateway that publishes to that queue."""
    with Service(tmp_path / "data", AMQP_URL=broker.url, AMQP_EXCHANGE=queue, AMQP_QUEUE=queue) as service:
        yield service


def run(
    recipe: str, broker: Broker, queue: str, count: int, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a recipe until it has taken so many messages."""
    return subprocess.run(
        [*command(recipe, folder), broker.url, str(count)],
        cwd=folder,
        env=environment(queue, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def publish(broker: Broker, queue: str, body: bytes) -> None:
    """Put a message into the queue, as a repetition or a mistake would."""

    async def send() -> None:
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            await channel.default_exchange.publish(aio_pika.Message(body), queue)

    asyncio.run(send())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_what_was_pushed(
    recipe: str,
    service: Service,
    project: Project,
    broker: Broker,
    queue: str,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """In the package's folder, once despite repetitions, and reports; an invalid message is a dead letter."""
    prepare(recipe, tmp_path, pytestconfig.cache)
    connection = service.connect(project.url, "train@main")
    files = {
        "train.py": TRAIN,
        "data.txt": "42",
    }
    pushed = project.push("Second", files)
    service.deliver(connection, project.payload(project.first, pushed))
    wait_for(lambda: service.api.get("/executions", state="published")["items"], "it is published")
    [execution] = service.api.get("/executions")["items"]

    async def message() -> bytes:
        async with Runner(broker.url) as runner:
            found = await (await runner.channel.get_queue(queue)).get(timeout=20)
            assert found is not None
            await found.reject(requeue=True)
            return found.body

    body = asyncio.run(message())
    publish(broker, queue, body)
    # As PUSHGATE_AMQP_CONTENT_MODE=structured has it.
    publish(broker, queue, b'{"specversion": "1.0", "data": ' + body + b"}")
    publish(broker, queue, b"no request")
    done = run(recipe, broker, queue, 4, tmp_path)
    assert done.returncode == 0, done.stderr
    trained = ["+ python train.py --epochs=3", "trained 42 ['--epochs=3']", '{"accuracy": 0.93}']
    assert done.stdout.splitlines() == trained, done.stderr
    assert f"{execution['id']} ended with status 0" in done.stderr
    assert "rejected for good: this is not an execution request" in done.stderr

    reported = service.api.get(f"/executions/{execution['id']}")
    said = ["ended with status 0"] if recipe == NODE else ["ended with status 0", "", *indented(trained)]
    assert (reported["state"], reported["run"]["summary"].splitlines()) == ("succeeded", said)
    assert reported["run"]["metrics"] == (None if recipe == NODE else {"accuracy": 0.93})
    outputs = [{"name": "model.txt", "url": None}]
    assert reported["run"]["outputs"] == (None if recipe == NODE else outputs)
    assert reported["run"]["accepted_at"] <= reported["run"]["started_at"] <= reported["run"]["ended_at"]

    async def left() -> tuple[int, list[bytes]]:
        async with Runner(broker.url) as runner:
            dead = [one.body for one in await runner.take(f"{queue}.dead", 1)]
            return await runner.count(queue), dead

    assert asyncio.run(left()) == (0, [b"no request"])
    service.api.send("POST", f"/executions/{execution['id']}/republish", {})
    republished = run(recipe, broker, queue, 1, tmp_path)
    assert republished.stdout.splitlines() == trained, republished.stderr
    # As after a kill during the execution: the broker no longer has the message.
    if recipe == NODE:
        [ended] = (tmp_path / "inbox" / "ended").iterdir()
        ended.rename(tmp_path / "inbox" / "pending" / ended.name)
    else:
        with closing(sqlite3.connect(tmp_path / "inbox.db")) as inbox, inbox:
            inbox.execute("UPDATE requests SET ended = NULL")
    again = run(recipe, broker, queue, 0, tmp_path)
    assert f"{execution['id']} ended with status 0" in again.stderr
