"""Events, from a push to the consumers that have bound a queue for them."""

import asyncio
import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import jsonschema
from aio_pika.abc import AbstractIncomingMessage

from testing.broker import Broker
from testing.service import Project, Service, wait_for
from tests.publish.runner import Runner

BOTH = "push.fetched, delivery.failed"


@contextmanager
def queue(broker: Broker, exchange: str, *keys: str, **arguments: Any) -> Iterator[str]:
    """Return a queue bound with these keys, as a consumer of events would bind it."""
    name = f"events-{uuid.uuid4().hex}"

    async def bind() -> None:
        async with Runner(broker.url) as runner:
            made = await runner.channel.declare_queue(name, arguments=arguments)
            await runner.channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)
            for key in keys:
                await made.bind(exchange, key)

    async def remove() -> None:
        async with Runner(broker.url) as runner:
            await runner.channel.queue_delete(name)

    asyncio.run(bind())
    try:
        yield name
    finally:
        asyncio.run(remove())


def take(broker: Broker, name: str, count: int) -> list[AbstractIncomingMessage]:
    """Take messages."""

    async def taken() -> list[AbstractIncomingMessage]:
        async with Runner(broker.url) as runner:
            return await runner.take(name, count)

    return asyncio.run(taken())


def rest(broker: Broker, name: str) -> list[AbstractIncomingMessage]:
    """Take the messages that are there, without waiting."""

    async def taken() -> list[AbstractIncomingMessage]:
        async with Runner(broker.url) as runner:
            return await runner.rest(name)

    return asyncio.run(taken())


def gateway(data: Path, broker: Broker, exchange: str, **settings: str) -> Service:
    """Return a gateway that has an exchange of its own."""
    return Service(data, AMQP_URL=broker.url, AMQP_EXCHANGE=exchange, AMQP_QUEUE=exchange, **settings)


def answer(service: Service, path: str) -> Any:
    """Get a resource that needs no token."""
    with urllib.request.urlopen(service.url + path) as answered:  # noqa: S310 - our own gateway
        return json.load(answered)


def metric(service: Service, name: str) -> float:
    """Return the value of a metric."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        lines = answered.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def published(service: Service, count: int) -> Callable[[], bool]:
    """Return the condition that so many execution requests are published."""
    return lambda: len(service.api.get("/executions", state="published")["items"]) == count


def test_subscribers_learn_how_each_push_ended(tmp_path: Path, project: Project, broker: Broker) -> None:
    """What was fetched and planned, and what failed: valid by the schemas that the gateway serves."""
    exchange = f"events-{uuid.uuid4().hex}"
    with (
        queue(broker, exchange, "push.fetched.#", "delivery.failed.#") as mine,
        gateway(tmp_path / "data", broker, exchange, AMQP_EVENTS=BOTH) as service,
    ):
        connection = service.connect(project.url, "train@main", "test@other")
        second = project.push("Second", {"train.py": "print(2)\n"})
        _, good = service.deliver(connection, project.payload(project.first, second))
        third = project.push("Third", {"valohai.yaml": "- step: {}\n"})
        _, bad = service.deliver(connection, project.payload(second, third))
        fetched, failed = take(broker, mine, 2)

        body = json.loads(fetched.body)
        assert body == {
            "id": fetched.message_id,
            "project": "digits",
            "connection": connection["id"],
            "delivery": good["delivery"],
            "repository": {"provider": "github", "id": body["repository"]["id"], "name": "acme/digits"}
            | {"url": project.url},
            "ref": {"name": "main", "kind": "branch"},
            "commit": second,
            "before": project.first,
            "pull_request": None,
            "merge_group": None,
            "pushed_by": body["pushed_by"],
            "requests": 1,
            "triggers": ["train@main"],
            "reason": "1 execution request",
        }
        assert fetched.routing_key == "push.fetched.digits"
        assert (fetched.type, fetched.correlation_id) == ("dev.pushgate.push.fetched.v1", good["delivery"])
        assert fetched.delivery_mode == aio_pika.DeliveryMode.PERSISTENT

        failure = json.loads(failed.body)
        [update] = service.settled(bad["delivery"])["updates"]
        assert (
            (update["state"], update["reason"])
            == (failure["state"], failure["reason"])
            == ("failed", failure["reason"])
        )
        assert (failure["commit"], failure["requests"], failure["triggers"]) == (third, 0, [])
        assert failure["failures"] == [{"trigger": "train@main", "reason": failure["reason"]}]
        assert failed.routing_key == "delivery.failed.digits"
        for message in (fetched, failed):
            schema = str(message.headers["ce-dataschema"]).rpartition("/schemas/")[2]
            jsonschema.validate(json.loads(message.body), answer(service, f"/schemas/{schema}"))

        assert len(service.api.get("/executions")["items"]) == 1
        wait_for(lambda: metric(service, "pushgate_events_published_total") == 2, "both are counted")
        wait_for(lambda: metric(service, "pushgate_pending_events") == 0, "both are forgotten")
        wait_for(lambda: metric(service, "pushgate_requests_published_total") == 1, "and the request too")


def test_in_structured_mode_requests_and_events_are_envelopes(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """One setting changes both, and the gateway's AsyncAPI document shows it."""
    exchange = f"structured-{uuid.uuid4().hex}"
    with (
        queue(broker, exchange, "#") as everything,
        gateway(
            tmp_path / "data",
            broker,
            exchange,
            AMQP_EVENTS="push.fetched",
            AMQP_CONTENT_MODE="structured",
        ) as service,
    ):
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        service.deliver(connection, project.payload(project.first, pushed))
        messages = take(broker, everything, 2)
        document = answer(service, "/asyncapi.json")
    assert {message.content_type for message in messages} == {"application/cloudevents+json"}
    envelopes = {message.type: json.loads(message.body) for message in messages}
    request = envelopes["dev.pushgate.execution.requested.v1"]
    fetched = envelopes["dev.pushgate.push.fetched.v1"]
    assert request["data"]["commit"]["id"] == fetched["data"]["commit"] == pushed
    assert request["traceparent"].split("-")[1] == fetched["traceparent"].split("-")[1]
    assert set(document["components"]["messages"]) == {
        "executionRequestedStructured",
        "executionCancelledStructured",
        "pushFetchedStructured",
        "executionStatus",
    }
    assert document["channels"]["pushFetched"]["bindings"]["amqp"]["exchange"]["name"] == exchange


def test_an_event_that_nobody_takes_holds_up_nothing(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """No queue is bound for it: the broker drops it, and the relay does not retry."""
    exchange = f"unbound-{uuid.uuid4().hex}"
    with gateway(tmp_path / "data", broker, exchange, AMQP_EVENTS=BOTH) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        service.deliver(connection, project.payload(project.first, pushed))
        wait_for(published(service, 1), "the request is published")
        wait_for(lambda: metric(service, "pushgate_events_published_total") == 1, "the event is done with")
        assert metric(service, "pushgate_pending_events") == 0
        assert [line for line in service.log() if line["event"] == "message refused by the broker"] == []


def test_a_full_queue_of_events_holds_up_no_request(tmp_path: Path, project: Project, broker: Broker) -> None:
    """Events wait in order until there is room; requests are published meanwhile."""
    exchange = f"full-{uuid.uuid4().hex}"
    limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
    commits = [project.first]
    with (
        queue(broker, exchange, "push.fetched.#", **limit) as mine,
        gateway(tmp_path / "data", broker, exchange, AMQP_EVENTS="push.fetched") as service,
    ):
        connection = service.connect(project.url, "train@main")
        for number in range(1, 5):
            commits.append(project.push(f"Number {number}", {"train.py": f"print({number})\n"}))
            service.deliver(connection, project.payload(*commits[-2:]))
        wait_for(published(service, 4), "every request is published")
        wait_for(lambda: metric(service, "pushgate_pending_events") == 3, "three events wait")
        events = take(broker, mine, 4)
    assert [json.loads(event.body)["commit"] for event in events] == commits[1:]


def test_without_the_setting_no_event_is_published(tmp_path: Path, project: Project, broker: Broker) -> None:
    """Only the execution request is published, and nothing else was stored."""
    exchange = f"quiet-{uuid.uuid4().hex}"
    with (
        queue(broker, exchange, "#") as everything,
        gateway(tmp_path / "data", broker, exchange) as service,
    ):
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, one = service.deliver(connection, project.payload(project.first, pushed))
        service.settled(one["delivery"])
        wait_for(published(service, 1), "the request is published")
        assert metric(service, "pushgate_pending_events") == 0
        [message] = rest(broker, everything)
        described = set(answer(service, "/asyncapi.json")["components"]["messages"])
        assert described == {"executionRequested", "executionStatus", "executionCancelled"}
    assert message.type == "dev.pushgate.execution.requested.v1"


def test_without_a_broker_no_event_is_kept(tmp_path: Path, project: Project) -> None:
    """No event could be published."""
    with Service(tmp_path / "data", AMQP_EVENTS=BOTH) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, one = service.deliver(connection, project.payload(project.first, pushed))
        assert service.settled(one["delivery"])["updates"][0]["state"] == "planned"
        assert metric(service, "pushgate_pending_events") == 0
