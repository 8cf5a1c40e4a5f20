"""Several processes on one PostgreSQL and one RabbitMQ: doors, workers, and some of them killed."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.postgres import Postgres
from tests.publish.runner import Runner
from tests.service import Project, Service, run_pushgate, wait_for

PUSHES = 12


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres, broker: Broker) -> dict[str, str]:
    """Give the settings that all processes have."""
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
    """Give three doors and three workers."""
    with ExitStack() as stack:
        doors = [
            stack.enter_context(Service(tmp_path / f"web{number}", **shared, ROLE="web"))
            for number in range(3)
        ]
        workers = [
            stack.enter_context(Service(tmp_path / f"worker{number}", **shared, ROLE="worker"))
            for number in range(3)
        ]
        yield doors, workers


async def arrived(broker: Broker, queue: str) -> list[tuple[str, str]]:
    """Return ids and bodies of all messages, in the order of their arrival."""
    async with Runner(broker.url) as runner:
        return [(one.message_id or "", one.body.decode()) for one in await runner.rest(queue)]


def test_nothing_is_lost_when_workers_and_doors_die(
    cluster: tuple[list[Service], list[Service]], shared: dict[str, str], project: Project, broker: Broker
) -> None:
    """Each push is published at least once with one id, and those of the repository in their order."""
    doors, workers = cluster
    connection = doors[0].connect(project.url, "train@main")
    before, commits = project.first, []
    for number in range(PUSHES):
        after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
        door = doors[number % len(doors)]
        status, answer = door.deliver(connection, project.payload(before, after))
        assert (status, answer["verdict"]) == (202, "accepted")
        commits.append(after)
        before = after
        if number == PUSHES // 3:
            workers[0].kill()
        if number == PUSHES // 2:
            doors.pop().kill()
            workers[0].start()

    def done() -> bool:
        return len(doors[0].api.get("/executions", state="published", limit=50)["items"]) == PUSHES

    wait_for(done, "all are published", seconds=120)
    messages = asyncio.run(arrived(broker, shared["AMQP_QUEUE"]))
    first_times = list(dict.fromkeys(messages))
    assert len(first_times) == len({request_id for request_id, _ in messages}) == PUSHES
    assert [json.loads(body)["commit"]["id"] for _, body in first_times] == commits


def test_a_repository_stays_with_its_worker_until_that_ends(
    cluster: tuple[list[Service], list[Service]], project: Project
) -> None:
    """So it is cloned once, by whichever worker was first; when that one ends, another one goes on."""
    doors, workers = cluster
    connection = doors[0].connect(project.url, "train@main")
    before = project.first

    def push(number: int) -> None:
        nonlocal before
        after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
        _, answer = doors[0].deliver(connection, project.payload(before, after))
        doors[0].settled(answer["delivery"])
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


def test_a_worker_has_no_door(tmp_path: Path, shared: dict[str, str]) -> None:
    """It tells how it is, and nothing else."""
    with Service(tmp_path / "worker", **shared, ROLE="worker") as worker:
        done = run_pushgate("connections", service=worker)
        assert done.returncode == 1
        assert "404" in done.stderr or "not found" in done.stderr.lower()


def test_the_schema_can_be_brought_up_to_date_beforehand(shared: dict[str, str]) -> None:
    """`pushgate migrate`, as a job before a new version starts; twice is as good as once."""
    variables = {f"PUSHGATE_{name}": value for name, value in shared.items()}
    for _ in range(2):
        done = run_pushgate("migrate", variables=variables)
        assert (done.returncode, done.stdout) == (0, "The database is up to date.\n"), done.stderr
