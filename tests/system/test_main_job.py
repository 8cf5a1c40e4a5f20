"""The main job, end to end: a real push, the delivery that GitHub would send, a real broker's message."""

import asyncio
import json
import uuid
from pathlib import Path

import aio_pika
import jsonschema
import pytest
from aio_pika.abc import AbstractIncomingMessage

from gateway.messages.execution_request import schema
from gateway.publish.topology import Topology
from testing.broker import Broker
from testing.service import Command, Project, Service, wait_for
from tests.publish.runner import Runner

CHANGED = {"train.py": "print(2)\n"}


def consume(broker: Broker, connection_id: str, count: int) -> list[AbstractIncomingMessage]:
    """Take messages from the runners' queue, as a runner would, until so many are of this connection."""

    async def take() -> list[AbstractIncomingMessage]:
        connection = await aio_pika.connect(broker.url)
        async with connection, asyncio.timeout(30):
            channel = await connection.channel()
            runners = await channel.declare_queue("pushgate.executions", passive=True)
            messages = []
            async with runners.iterator() as incoming:
                async for message in incoming:
                    await message.ack()
                    if json.loads(message.body)["connection"] == connection_id:
                        messages.append(message)
                    if len(messages) == count:
                        return messages
        raise AssertionError("the queue ended")

    return asyncio.run(take())


def test_a_push_becomes_a_message_that_names_its_commit(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """A push, its signed delivery, and the runners' queue holds the step of exactly that commit."""
    with Command(tmp_path / "data", AMQP_URL=broker.url) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Train for longer", {"valohai.yaml": _with_default(7)})
        status, answer = service.deliver(connection, project.payload(project.first, pushed))
        assert (status, answer["verdict"]) == (202, "accepted")
        [message] = consume(broker, connection["id"], 1)

    body = json.loads(message.body)
    jsonschema.validate(body, schema())
    assert body["commit"]["id"] == pushed
    assert body["commit"]["before"] == project.first
    assert body["execution"]["command"] == ["python train.py --epochs=7"]
    assert body["delivery"] == answer["delivery"] == message.correlation_id
    assert message.message_id == body["id"]
    assert message.type == "dev.pushgate.execution.requested.v1"
    assert message.routing_key == "execution.requested.digits.train"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.headers["ce-id"] == body["id"]
    assert message.headers["ce-specversion"] == "1.0"
    # The kernel chose the port, and PUBLIC_URL is not set.
    assert message.headers["ce-source"] == f"{service.url}/api/v1/connections/{connection['id']}"


def test_two_pushes_before_the_worker_looks_give_both_commits_in_order(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """The branch has moved on when the worker fetches; each request still names its own commit."""
    with Service(tmp_path / "data", AMQP_URL=broker.url) as service:
        connection = service.connect(project.url, "train@main")
        second = project.push("Second", CHANGED)
        third = project.push("Third", {"train.py": "print(3)\n"})
        service.deliver(connection, project.payload(project.first, second))
        service.deliver(connection, project.payload(second, third))
        messages = consume(broker, connection["id"], 2)
    assert [json.loads(message.body)["commit"]["id"] for message in messages] == [second, third]


def test_a_broker_that_is_down_loses_nothing(tmp_path: Path, project: Project, broker: Broker) -> None:
    """The provider gets its 202 while the broker is down; the message comes once it is up again."""
    with Service(tmp_path / "data", AMQP_URL=broker.url) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Train for longer", CHANGED)
        broker.stop()
        try:
            status, answer = service.deliver(connection, project.payload(project.first, pushed))
            assert status == 202
            assert service.settled(answer["delivery"])["updates"][0]["state"] == "planned"
            [execution] = service.api.get("/executions")["items"]
            assert execution["state"] == "pending"
        finally:
            broker.start()
        [message] = consume(broker, connection["id"], 1)
        assert json.loads(message.body)["commit"]["id"] == pushed
        wait_for(
            lambda: service.api.get(f"/executions/{execution['id']}")["state"] == "published",
            "the request is marked as published",
        )


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_a_broker_in_alarm_stops_only_the_relay(
    tmp_path: Path, project: Project, broker: Broker, resource: str
) -> None:
    """The connection is blocked: webhooks are answered, fetched and planned, and published afterwards."""
    with Service(tmp_path / "data", AMQP_URL=broker.url) as service:
        connection = service.connect(project.url, "train@main")
        broker.alarm(resource, on=True)
        try:
            second = project.push("Second", CHANGED)
            third = project.push("Third", {"train.py": "print(3)\n"})
            for before, after in ((project.first, second), (second, third)):
                status, answer = service.deliver(connection, project.payload(before, after))
                assert status == 202
                assert service.settled(answer["delivery"])["updates"][0]["state"] == "planned"
            states = [one["state"] for one in service.api.get("/executions")["items"]]
            assert states == ["pending", "pending"]
        finally:
            broker.alarm(resource, on=False)
        messages = consume(broker, connection["id"], 2)
    assert [json.loads(message.body)["commit"]["id"] for message in messages] == [second, third]


def test_a_full_queue_stops_only_the_relay(tmp_path: Path, project: Project, broker: Broker) -> None:
    """The request shows the reason, webhooks are still answered, and a consumer makes room."""
    name = f"full-{uuid.uuid4().hex}"
    topology = Topology(exchange=name, queue=name, max_length=1)

    async def declare() -> None:
        async with await aio_pika.connect(broker.url) as connection:
            await topology.establish(connection)

    async def take(count: int) -> list[str]:
        async with Runner(broker.url) as runner:
            return [json.loads(one.body)["commit"]["id"] for one in await runner.take(name, count)]

    asyncio.run(declare())
    settings = {"AMQP_EXCHANGE": name, "AMQP_QUEUE": name, "AMQP_DECLARE": "false"}
    with Service(tmp_path / "data", AMQP_URL=broker.url, **settings) as service:
        connection = service.connect(project.url, "train@main")
        before, commits = project.first, list[str]()
        # The limit is soft: the queue may take a few more.
        for number in range(10):
            after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
            status, answer = service.deliver(connection, project.payload(before, after))
            assert status == 202
            service.settled(answer["delivery"])
            commits.append(after)
            before = after

        def refused() -> bool:
            reasons = [one["reason"] for one in service.api.get("/executions", state="pending")["items"]]
            return any("full" in (reason or "") for reason in reasons)

        wait_for(refused, "the reason is shown")
        assert asyncio.run(take(len(commits))) == commits


def test_a_killed_process_loses_nothing(tmp_path: Path, project: Project, broker: Broker) -> None:
    """SIGKILL right after the 202; after a restart the delivery is processed."""
    service = Service(tmp_path / "data", AMQP_URL=broker.url)
    with service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Train for longer", CHANGED)
        status, _ = service.deliver(connection, project.payload(project.first, pushed))
        service.kill()
        assert status == 202
    with service:
        [message] = consume(broker, connection["id"], 1)
    assert json.loads(message.body)["commit"]["id"] == pushed


def _with_default(epochs: int) -> str:
    return (
        "- step:\n    name: train\n    image: python:3.12\n    command: python train.py {parameters}\n"
        f"    parameters:\n      - name: epochs\n        type: integer\n        default: {epochs}\n"
    )
