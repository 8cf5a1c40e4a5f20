"""Web processes and workers on one PostgreSQL and one RabbitMQ, all of them killed in turn."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.broker import Broker
from testing.git_host import GitHost
from testing.postgres import Postgres, end_all_connections
from testing.service import Project, Service, run_pushgate, wait_for
from tests.publish.runner import Runner

PUSHES_A_ROUND = 3


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres, broker: Broker) -> dict[str, str]:
    """Return the settings of all processes."""
    packages = tmp_path / "packages"
    packages.mkdir()
    name = f"cluster-{uuid.uuid4().hex}"
    return {
        "DATABASE_URL": postgres.database(),
        "SECRET_KEY": "s" * 32,
        "AMQP_URL": broker.url,
        "AMQP_EXCHANGE": name,
        "AMQP_QUEUE": name,
        "PACKAGES_URL": packages.as_uri(),
        "PUBLIC_URL": "https://push.example",
    }


@pytest.fixture
def cluster(tmp_path: Path, shared: dict[str, str]) -> Iterator[tuple[list[Service], list[Service]]]:
    """Start three web processes and three workers."""
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(Service(tmp_path / f"web{number}", **shared, ROLE="web"))
            for number in range(3)
        ]
        workers = [
            stack.enter_context(Service(tmp_path / f"worker{number}", **shared, ROLE="worker"))
            for number in range(3)
        ]
        yield receivers, workers


async def arrived(broker: Broker, queue: str) -> list[tuple[str, str]]:
    """Return ids and bodies of all messages, in the order of their arrival."""
    async with Runner(broker.url) as runner:
        return [(one.message_id or "", one.body.decode()) for one in await runner.rest(queue)]


def deliver(receivers: list[Service], connection: Any, body: bytes) -> None:
    """Deliver to any web process that accepts, with retries, as a load balancer and a provider would."""

    def is_taken() -> bool:
        for receiver in receivers:
            try:
                status, _ = receiver.deliver(connection, body)
            except ApiError:
                continue  # the process is dead, or was killed during the request
            if status == 202:
                return True
        return False

    wait_for(is_taken, "a web process takes the delivery")


def test_nothing_is_lost_whatever_dies(
    cluster: tuple[list[Service], list[Service]],
    shared: dict[str, str],
    githost: GitHost,
    tmp_path: Path,
    broker: Broker,
) -> None:
    """Under load: workers, web processes, database connections and the broker are killed, one by one.

    Each push is published with one id, and those of a repository in their order. When the
    leases of a dead worker expire, another takes over.
    """
    receivers, workers = cluster
    projects = [Project(githost, tmp_path, f"acme/{name}") for name in ("digits", "faces", "letters")]
    connections = [receivers[0].connect(project.url, "train@main") for project in projects]
    commits = [[project.first] for project in projects]

    def push_some(number: int) -> None:
        project, pushed = projects[number], commits[number]
        for _ in range(PUSHES_A_ROUND):
            pushed.append(project.push(f"Number {len(pushed)}", {"train.py": f"print({len(pushed)})\n"}))
            deliver(receivers, connections[number], project.payload(*pushed[-2:]))

    def published() -> int:
        return len(receivers[2].api.get("/executions", state="published", limit=200)["items"])

    def broker_restarts() -> None:
        # RabbitMQ 3 persists declarations later; a clean stop does so at once.
        wait_for(lambda: published() > 0, "the queue is in use")
        broker.stop()
        broker.start()

    def broker_dies() -> None:
        broker.kill()
        broker.start()

    faults: list[Callable[[], object]] = [
        broker_restarts,
        workers[0].kill,
        lambda: end_all_connections(shared["DATABASE_URL"]),
        receivers[0].kill,
        broker_dies,
        workers[1].kill,
        workers[0].start,
    ]
    with ThreadPoolExecutor(len(projects)) as senders:
        for fault in faults:
            sending = [senders.submit(push_some, one) for one in range(len(projects))]
            fault()
            for one in sending:
                one.result()
    count = len(faults) * PUSHES_A_ROUND * len(projects)
    wait_for(lambda: published() == count, "all are published", seconds=180)
    messages = asyncio.run(arrived(broker, shared["AMQP_QUEUE"]))
    first_times = list(dict.fromkeys(messages))
    assert len(first_times) == len({request_id for request_id, _ in messages}) == count
    bodies = [json.loads(body) for _, body in first_times]
    for connection, pushed in zip(connections, commits, strict=True):
        came = [body["commit"]["id"] for body in bodies if body["connection"] == connection["id"]]
        assert came == pushed[1:]


def test_a_repository_stays_with_its_worker_until_that_ends(
    cluster: tuple[list[Service], list[Service]], project: Project
) -> None:
    """The first worker clones it, once; when that worker ends, another takes over."""
    receivers, workers = cluster
    connection = receivers[0].connect(project.url, "train@main")
    before = project.first

    def push(number: int) -> None:
        nonlocal before
        after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
        _, answer = receivers[0].deliver(connection, project.payload(before, after))
        receivers[0].settled(answer["delivery"])
        before = after

    for number in range(6):
        push(number)
    [home] = [worker for worker in workers if _settled(worker)]
    assert _settled(home) == 6
    assert home.stop() == 0
    for number in range(6, 9):
        push(number)
    assert sorted(_settled(worker) for worker in workers) == [0, 3, 6]


def _settled(worker: Service) -> int:
    return sum(line["event"] == "push settled" for line in worker.log())


def test_a_worker_has_no_webhook_endpoint(tmp_path: Path, shared: dict[str, str]) -> None:
    """It serves only its health and metrics."""
    with Service(tmp_path / "worker", **shared, ROLE="worker") as worker:
        done = run_pushgate("connections", service=worker)
        assert done.returncode == 1
        assert "nothing is at the path /api/v1/connections" in done.stderr


def test_the_schema_can_be_brought_up_to_date_beforehand(shared: dict[str, str]) -> None:
    """`pushgate migrate`, as a job before a new version starts; a second run changes nothing."""
    variables = {f"PUSHGATE_{name}": value for name, value in shared.items()}
    for _ in range(2):
        done = run_pushgate("migrate", variables=variables)
        assert (done.returncode, done.stdout) == (0, "The database is up to date.\n"), done.stderr
