"""Consumers that use nothing of ours follow the protocol: take, record, acknowledge, run, report."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testing.broker import Broker
from testing.service import WAIT_SECONDS, Project, Service, wait_for
from tests.publish.runner import Runner

ROOT = Path(__file__).parents[2]
CONSUMERS = ["with_aio_pika", "with_faststream", "with_kombu", "with_pika"]
# Ends only once all four run: none may hold the request of another.
TRAIN = """\
import pathlib, sys, time
begun = pathlib.Path(sys.argv[1].removeprefix("--begun="))
(begun / pathlib.Path.cwd().parent.name).touch()
while len(list(begun.iterdir())) < 4:
    time.sleep(0.02)
print('{"accuracy": 0.93}')
"""
MANIFEST = """\
- step:
    name: train
    image: python:3.12
    command: python train.py {parameters}
    parameters:
      - {name: begun, type: string}
"""


def test_consumers_of_four_libraries_follow_the_protocol(
    project: Project, broker: Broker, tmp_path: Path
) -> None:
    """Each runs one of four requests at the same time, and all end as succeeded."""
    queue = f"consumers-{uuid.uuid4().hex}"
    (tmp_path / "begun").mkdir()
    run = {"run": {"step": "train"}, "parameters": {"begun": str(tmp_path / "begun")}}
    triggers = [{"name": name, "branches": ["main"], **run} for name in CONSUMERS]
    settings = {"AMQP_URL": broker.url, "AMQP_EXCHANGE": queue, "AMQP_QUEUE": queue}
    with Service(tmp_path / "data", **settings) as service:
        connection = service.connect(project.url, triggers=triggers)
        pushed = project.push("Second", {"valohai.yaml": MANIFEST, "train.py": TRAIN})
        service.deliver(connection, project.payload(project.first, pushed))
        wait_for(
            lambda: len(service.api.get("/executions", state="published")["items"]) == 4, "all are published"
        )
        with ExitStack() as stack:
            for name in CONSUMERS:
                stack.enter_context(started(name, tmp_path / name, broker.url, queue))
        ended = service.api.get("/executions")["items"]
    assert sorted((one["state"], one["run"]["runner"]) for one in ended) == [
        ("succeeded", name) for name in CONSUMERS
    ]
    for one in ended:
        assert one["run"]["accepted_at"] <= one["run"]["started_at"] <= one["run"]["ended_at"]
        assert (one["run"]["summary"], one["run"]["metrics"]) == ("status 0", {"accuracy": 0.93})
        assert (tmp_path / one["run"]["runner"] / f"{one['id']}.json").exists()
    assert asyncio.run(left(broker, queue, f"{queue}.dead")) == [0, 0]


@contextmanager
def started(name: str, folder: Path, *arguments: str) -> Iterator[None]:
    """Run a consumer in a folder of its own, from the beginning of the block until it has succeeded."""
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", f"tests.system.consumers.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield
            _, errors = process.communicate(timeout=WAIT_SECONDS)
            assert process.returncode == 0, errors
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


async def left(broker: Broker, *queues: str) -> list[int]:
    """Return how many messages each queue has."""
    async with Runner(broker.url) as runner:
        return [await runner.count(queue) for queue in queues]
