"""The main job, end to end: a real push, the delivery that GitHub would send, a real broker's message."""

import asyncio
import json
from pathlib import Path

import aio_pika
import jsonschema
from aio_pika.abc import AbstractIncomingMessage

from gateway.plan.request import schema
from tests.broker import Broker
from tests.service import Project, Service, wait_for

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
    with Service(tmp_path / "data", AMQP_URL=broker.url) as service:
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


def test_a_killed_process_loses_nothing(tmp_path: Path, project: Project, broker: Broker) -> None:
    """SIGKILL right after the 202; the next start carries the delivery to the end."""
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
