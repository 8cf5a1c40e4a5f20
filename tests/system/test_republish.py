"""What waits for weeks, or is published again, can be executed: its package can be downloaded."""

import asyncio
import hashlib
import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage
from playwright.sync_api import expect
from sqlalchemy import update

from gateway.cli.api_client import ApiError
from gateway.store.database import Database
from gateway.store.execution_tables import execution_bodies, executions
from gateway.store.packages import forget
from gateway.store.tables import packages
from testing.broker import Broker
from testing.browser import running_browser, visit
from testing.service import Project, Service, run_pushgate, wait_for
from tests.publish.runner import Runner

DAY = timedelta(days=1)
STOP = "dev.pushgate.execution.cancelled.v1"


@pytest.fixture
def queue() -> str:
    """Return a unique queue name at the shared broker."""
    return f"republished-{uuid.uuid4().hex}"


@pytest.fixture
def publishing(tmp_path: Path, broker: Broker, queue: str) -> Iterator[Service]:
    """Start a gateway that publishes to that queue."""
    with Service(tmp_path / "data", AMQP_URL=broker.url, AMQP_EXCHANGE=queue, AMQP_QUEUE=queue) as service:
        yield service


def push(service: Service, project: Project) -> Any:
    """Push, and return the planned execution."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    return execution


def published(service: Service, execution: Any) -> Any:
    """Wait until the broker has confirmed an execution, and return it."""

    def found() -> Any:
        shown = service.api.get(f"/executions/{execution['id']}")
        return shown if shown["state"] == "published" else None

    return wait_for(found, f"execution {execution['id']} is published")


def take(broker: Broker, queue: str) -> tuple[AbstractIncomingMessage, Any]:
    """Take the next message; return it and the package that it names."""

    async def taken() -> AbstractIncomingMessage:
        async with Runner(broker.url) as runner:
            [message] = await runner.take(queue, 1)
            return message

    message = asyncio.run(taken())
    return message, json.loads(message.body)["package"]


def reported(message: AbstractIncomingMessage, state: str) -> Any:
    """Report a state as the runner that has taken a message does; return the answer."""
    request = json.loads(message.body)
    body = {"id": request["id"], "state": state, "at": datetime.now(UTC).isoformat(), "sequence": 1}
    with urllib.request.urlopen(request["status_url"], json.dumps(body).encode()) as answer:  # noqa: S310
        return json.load(answer)


def downloaded(package: Any) -> str:
    """Download a package as a runner does; return the digest of the file."""
    with urllib.request.urlopen(package["url"]) as answer:  # noqa: S310 - our own gateway
        return hashlib.sha256(answer.read()).hexdigest()


def age(service: Service, execution: Any, days: int, *, url: str | None) -> None:
    """Make everything so many days older; with a URL, as an earlier version stored the package."""
    moment = datetime.now(UTC) - days * DAY
    with (
        closing(Database(f"sqlite:///{service.data / 'pushgate.db'}")) as database,
        database.writing() as conn,
    ):
        conn.execute(update(executions).values(planned_at=moment))
        conn.execute(update(packages).values(made_at=moment, last_used_at=moment))
        if url is not None:
            named = {**execution["message"]["package"], "url": url}
            former = {name: named[name] for name in ("id", "url", "sha256", "size", "format")}
            body = json.dumps({**execution["message"], "package": former}, separators=(",", ":"))
            conn.execute(update(execution_bodies).values(body=body.encode()))


@pytest.mark.parametrize(
    "former_url", [None, "https://former.example/api/v1/packages/1?expires=1&signature=0"]
)
def test_a_request_planned_thirty_days_ago_is_published_with_a_url_that_works(
    tmp_path: Path, project: Project, broker: Broker, queue: str, former_url: str | None
) -> None:
    """There was no broker, and the gateway's address has changed; also as an earlier version planned it."""
    before = Service(tmp_path / "data")
    with before:
        execution = push(before, project)
        assert execution["state"] == "pending"
        assert downloaded(execution["message"]["package"]) == execution["message"]["package"]["sha256"]
        assert before.stop() == 0
    age(before, execution, 30, url=former_url)
    names = {"AMQP_URL": broker.url, "AMQP_EXCHANGE": queue, "AMQP_QUEUE": queue}
    with Service(tmp_path / "data", **names) as service:
        assert service.url != before.url
        published(service, execution)
        message, package = take(broker, queue)
        assert message.message_id == execution["id"]
        assert package["url"].startswith(f"{service.url}/api/v1/packages/")
        assert downloaded(package) == package["sha256"]
        expires_in = datetime.fromisoformat(package["expires_at"]) - datetime.now(UTC)
        assert 6.9 * DAY < expires_in <= 7 * DAY
        assert "ce-redrive" not in message.headers
        shown = service.api.get(f"/executions/{execution['id']}")["message"]["package"]
        assert downloaded(shown) == package["sha256"]


def test_an_execution_is_published_again_by_command_and_in_the_dashboard(
    publishing: Service, project: Project, broker: Broker, queue: str
) -> None:
    """Under its id, with a new URL, and marked; each time is counted and shown."""
    execution = push(publishing, project)
    path = f"/executions/{execution['id']}"
    published(publishing, execution)
    first, _ = take(broker, queue)
    assert reported(first, "failed")["state"] == "failed"

    done = run_pushgate("republish", execution["id"], service=publishing)
    assert (done.returncode, done.stdout) == (
        0,
        f"{execution['id']} will be published again, with ce-redrive 1\n",
    )
    second, package = take(broker, queue)
    assert (second.message_id, second.headers["ce-redrive"]) == (first.message_id, "1")
    assert downloaded(package) == package["sha256"]
    shown = published(publishing, execution)
    assert reported(second, "running")["state"] == "running"
    assert (shown["redrives"], shown["republished_at"] > execution["planned_at"]) == (1, True)
    assert shown["published_at"] > shown["republished_at"]

    with running_browser() as browser, visit(browser, publishing) as page:
        page.goto(path)
        page.get_by_role("button", name="Put back").click()
        expect(page.get_by_role("main")).to_contain_text("2 times, the last")
    third, _ = take(broker, queue)
    assert (third.message_id, third.headers["ce-redrive"]) == (first.message_id, "2")
    explained = run_pushgate("explain", execution["id"], service=publishing)
    assert "redrive 2, requested 20" in explained.stdout


def test_an_execution_is_cancelled_and_run_again_by_command_and_in_the_dashboard(
    publishing: Service, project: Project, broker: Broker, queue: str
) -> None:
    """The runner is told after it has the request; the re-run is another request for the same package."""
    execution = push(publishing, project)
    published(publishing, execution)
    stops = f"{queue}-stops"
    asyncio.run(bind(broker, stops, exchange=queue, key="execution.cancelled.#"))
    done = run_pushgate("cancel", execution["id"], service=publishing)
    assert done.stdout == f"{execution['id']} is published: its runner is told to stop it\n", done.stderr
    first, package = take(broker, queue)
    [stop] = asyncio.run(taken_from(broker, stops))
    assert (stop.type, stop.routing_key) == (STOP, f"execution.cancelled.{execution['project']}")
    body = json.loads(stop.body)
    assert (body["execution"], body["redrive"], body["id"]) == (execution["id"], 0, stop.message_id)
    answer = reported(first, "cancelled")
    assert answer == {"state": "cancelled", "cancel_requested_at": body["requested_at"]}

    with running_browser() as browser, visit(browser, publishing) as page:
        page.goto(f"/executions/{execution['id']}")
        page.get_by_role("button", name="Re-run").click()
        page.get_by_role("link", name=execution["id"]).click()
        expect(page.get_by_role("main")).to_contain_text("Re-run by")
    second, same = take(broker, queue)
    request = json.loads(second.body)
    assert (request["id"], request["rerun_of"]) == (second.message_id, execution["id"])
    assert (same["id"], request["id"] == execution["id"]) == (package["id"], False)
    explained = run_pushgate("explain", execution["id"], service=publishing).stdout
    assert f"execution {request['id']}, a re-run of {execution['id']}" in explained
    assert "cancel requested 20" in explained
    again = run_pushgate("rerun", request["id"], service=publishing)
    assert again.stdout.endswith(f" runs {request['id']} again\n"), again.stderr


async def bind(broker: Broker, name: str, *, exchange: str, key: str) -> None:
    """Declare a queue, as a runner that obeys cancellations does."""
    async with Runner(broker.url) as runner:
        queue = await runner.channel.declare_queue(name, durable=True)
        await queue.bind(exchange, key)


async def taken_from(broker: Broker, name: str) -> list[AbstractIncomingMessage]:
    """Take one message, and delete the queue."""
    async with Runner(broker.url) as runner:
        messages = await runner.take(name, 1)
        await runner.channel.queue_delete(name)
        return messages


def test_without_a_broker_a_request_is_dropped_but_not_republished(
    service: Service, project: Project
) -> None:
    """The command says so, and the dashboard offers only what is possible."""
    execution = push(service, project)
    refused = run_pushgate("republish", execution["id"], service=service)
    assert (refused.returncode, "no broker is configured" in refused.stderr) == (1, True)
    with running_browser() as browser, visit(browser, service) as page:
        page.goto(f"/executions/{execution['id']}")
        assert page.get_by_role("button", name="Put back").count() == 0
        page.get_by_role("button", name="Drop").click()
        expect(page.get_by_role("main")).to_contain_text("An operator has dropped it")
        assert page.get_by_role("button", name="Put back").count() == 0


@pytest.mark.parametrize("what", ["the file", "the package"])
def test_a_package_that_is_gone_is_built_again_by_a_replay(
    publishing: Service, project: Project, broker: Broker, queue: str, what: str
) -> None:
    """The answer says so; the message that is then published says that it was built again."""
    execution = push(publishing, project)
    path = f"/executions/{execution['id']}"
    published(publishing, execution)
    _, former = take(broker, queue)
    [file] = (publishing.data / "packages").glob("*/*")
    file.unlink()
    if what == "the package":
        with (
            closing(Database(f"sqlite:///{publishing.data / 'pushgate.db'}")) as database,
            database.writing() as conn,
        ):
            forget(conn, former["id"], former["format"])
    with pytest.raises(ApiError, match="its package has expired: replay delivery"):
        publishing.api.send("POST", f"{path}/republish", {})
    assert publishing.api.get(path)["redrives"] == 0

    publishing.api.send("POST", f"/deliveries/{execution['delivery']}/replay", {})
    publishing.settled(execution["delivery"])
    publishing.api.send("POST", f"{path}/republish", {})
    message, package = take(broker, queue)
    assert (message.headers["ce-redrive"], package["id"]) == ("1", former["id"])
    assert (former["rebuilt"], package["rebuilt"]) == (False, True)
    assert downloaded(package) == package["sha256"]
