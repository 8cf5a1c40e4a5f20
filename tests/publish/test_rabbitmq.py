"""The publisher, with a real broker."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiormq.exceptions import ChannelAccessRefused

from gateway.errors import BrokerUnavailable, PublishError, Unroutable
from gateway.publish.cloudevents import routing_key, traceparent
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from testing.broker import Broker
from tests.publish.outbox import PLANNED_AT, event, request
from tests.publish.publishing import PUBLIC_URL, connected, refusal, whole
from tests.publish.runner import Runner


async def publish_until_refused(publisher: RabbitMQ) -> list[str]:
    """Publish until the queue is full; return the accepted messages."""
    taken: list[str] = []
    try:
        for number in range(100):
            await publisher.publish(request(f"r{number}"))
            taken.append(f"r{number}")
    except Unroutable as error:
        assert "full" in str(error)  # noqa: PT017 - that it is raised shows in what was taken
    return taken


def test_a_published_request_arrives_with_everything_that_the_contract_names(
    broker: Broker, topology: Topology
) -> None:
    """Properties, headers and body are what an independent consumer may rely on."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            [message] = await runner.take(topology.queue, 1)
        assert message.body == b"r1"
        assert message.exchange == topology.exchange
        assert message.routing_key == routing_key(request("r1"))
        assert message.headers == {
            "ce-specversion": "1.0",
            "ce-id": "r1",
            "ce-source": f"{PUBLIC_URL}/api/v1/connections/c1",
            "ce-type": "dev.pushgate.execution.requested.v1",
            "ce-subject": "train at 1234567",
            "ce-time": "2026-11-23T09:00:00+00:00",
            "ce-dataschema": "https://pushgate.dev/schemas/execution-request-1.3.json",
            "ce-partitionkey": "c1",
            "ce-traceparent": traceparent(request("r1")),
            "traceparent": traceparent(request("r1")),
        }
        assert message.content_type == "application/json"
        assert (message.message_id, message.correlation_id) == ("r1", "delivery of r1")
        assert (message.type, message.app_id) == ("dev.pushgate.execution.requested.v1", "pushgate")
        assert (message.delivery_mode, message.timestamp) == (2, PLANNED_AT)

    asyncio.run(scenario())


def test_a_message_that_no_queue_takes_is_an_error(broker: Broker, topology: Topology) -> None:
    """Mandatory and confirmed: the broker says that it dropped the message, and the error names the key."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            queue = await runner.channel.get_queue(topology.queue)
            await queue.unbind(topology.exchange, "execution.requested.#")
            with pytest.raises(Unroutable, match=r"execution\.requested\.digits\.train"):
                await publisher.publish(request())

    asyncio.run(scenario())


def test_an_event_goes_to_whoever_has_bound_a_queue_for_it(broker: Broker, topology: Topology) -> None:
    """And nowhere else: the queue of the execution requests does not receive it."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(event("before anybody listens"))
            queue = await runner.channel.declare_queue(exclusive=True)
            await queue.bind(topology.exchange, "push.fetched.#")
            await publisher.publish(event("e1"))
            await publisher.publish(event("f1", name="delivery.failed"))
            [message] = await runner.rest(queue.name)
            assert (message.message_id, message.routing_key) == ("e1", "push.fetched.digits")
            assert message.delivery_mode == 2
            assert await runner.count(topology.queue) == 0

    asyncio.run(scenario())


def test_a_full_queue_refuses(broker: Broker, topology: Topology) -> None:
    """`reject-publish`: messages over the limit are refused, and accepted ones are kept."""

    async def scenario() -> None:
        small = dataclasses.replace(topology, max_length=3)
        async with connected(broker.url, small) as publisher, Runner(broker.url) as runner:
            taken = await publish_until_refused(publisher)
            # The limit is soft: the queue may take a few more.
            assert 3 <= len(taken) < 100
            messages = await runner.take(topology.queue, len(taken))
            assert [message.message_id for message in messages] == taken

    asyncio.run(scenario())


def test_what_a_consumer_rejects_is_kept_as_a_dead_letter(broker: Broker, topology: Topology) -> None:
    """A rejected message is in the dead-letter queue, with the reason, its headers unchanged."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            await runner.take(topology.queue, 1, reject=True)
            [dead] = await runner.take(topology.dead_queue, 1)
        assert dead.message_id == "r1"
        assert dead.headers["ce-id"] == "r1"
        assert dead.headers["x-first-death-reason"] == "rejected"
        assert dead.headers["x-first-death-queue"] == topology.queue

    asyncio.run(scenario())


def test_what_fails_too_often_is_a_dead_letter(broker: Broker, topology: Topology) -> None:
    """After `delivery_limit` returns by a consumer, the message goes to the dead-letter queue."""

    async def scenario() -> None:
        limited = dataclasses.replace(topology, delivery_limit=2)
        async with connected(broker.url, limited) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            queue = await runner.channel.get_queue(topology.queue)
            async with queue.iterator() as incoming:
                for _ in range(3):
                    await (await anext(incoming)).reject(requeue=True)
            [dead] = await runner.take(topology.dead_queue, 1)
        assert dead.message_id == "r1"

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", ["returns it", "dies"])
def test_the_eleventh_failed_delivery_is_the_last(broker: Broker, topology: Topology, fails: str) -> None:
    """As the documents say: a first delivery and ten more, whether a consumer returns the message or dies."""

    async def scenario() -> None:
        deliveries = 0
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            dead = asyncio.create_task(runner.take(topology.dead_queue, 1))
            while not dead.done():
                async with Runner(broker.url) as failing:
                    queue = await failing.channel.get_queue(topology.queue)
                    message = await queue.get(fail=False)
                    if message is None:
                        await asyncio.wait({dead}, timeout=0.1)
                        continue
                    deliveries += 1
                    if fails == "returns it":
                        await message.reject(requeue=True)
            assert [one.message_id for one in dead.result()] == ["r1"]
        assert deliveries == 11

    asyncio.run(scenario())


def test_declaring_twice_changes_nothing(broker: Broker, topology: Topology) -> None:
    """A second gateway, or a second start, finds the same declarations."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as first, connected(broker.url, topology) as second:
            await first.publish(request("r1"))
            await second.publish(request("r2"))
            async with Runner(broker.url) as runner:
                assert await runner.count(topology.queue) == 2

    asyncio.run(scenario())


def test_a_checked_topology_is_published_to(broker: Broker, topology: Topology) -> None:
    """An operator has declared it; the publisher only checks it, and publishes."""

    async def scenario() -> None:
        async with connected(broker.url, topology):
            checked = dataclasses.replace(topology, passive=True)
            async with connected(broker.url, checked) as publisher:
                await publisher.publish(request())

    asyncio.run(scenario())


def test_a_checked_topology_that_is_missing_is_named(broker: Broker, topology: Topology) -> None:
    """One sentence says what is missing, and nothing is declared."""
    missing = refusal(broker.url, dataclasses.replace(topology, passive=True))
    assert "does not exist" in str(missing)
    assert f"'{topology.exchange}'" in str(missing)


def test_a_queue_with_other_properties_is_named(broker: Broker, topology: Topology) -> None:
    """One sentence says how the existing queue differs."""

    async def declare() -> None:
        async with connected(broker.url, topology):
            return

    asyncio.run(declare())
    different = refusal(broker.url, dataclasses.replace(topology, delivery_limit=99))
    assert "differs" in str(different)
    assert f"'{topology.queue}'" in str(different)
    assert "x-delivery-limit" in str(different)


def test_a_queue_of_an_earlier_version_is_taken_as_it_is(broker: Broker, topology: Topology) -> None:
    """Its arguments can't be changed: a missing or different consumer time-out is accepted."""

    async def scenario() -> None:
        async with Runner(broker.url) as runner:
            await runner.channel.declare_queue(
                topology.queue, durable=True, arguments=dict(topology.arguments)
            )
            async with connected(broker.url, topology) as publisher:
                await publisher.publish(request())
            await runner.channel.queue_delete(topology.queue)
            async with connected(broker.url, dataclasses.replace(topology, consumer_timeout=60_000)):
                pass
            async with connected(broker.url, topology) as publisher:
                await publisher.publish(request())
                assert await runner.count(topology.queue) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("ordered", [0, 2])
def test_a_new_queue_lets_consumers_hold_messages_for_a_week(
    broker: Broker, topology: Topology, ordered: int
) -> None:
    """RabbitMQ's default of 30 minutes is shorter than many executions; the dead-letter queue keeps it."""

    async def scenario() -> None:
        async with connected(broker.url, dataclasses.replace(topology, ordered=ordered)):
            return

    asyncio.run(scenario())
    names = dataclasses.replace(topology, ordered=ordered).partitions(topology.queue) or [topology.queue]
    found = {
        name: broker.queue_argument(name, "x-consumer-timeout") for name in (*names, topology.dead_queue)
    }
    assert found.pop(topology.dead_queue) == "undefined"
    assert set(found.values()) == {"{signedint, 604800000}"}


def test_a_missing_permission_is_named(broker: Broker, topology: Topology) -> None:
    """For a user who may not declare, the error says what the broker refused, without the password."""
    refused = refusal(broker.onlooker_url, topology)
    assert "does not let Pushgate declare" in str(refused)
    assert "onlooker" in str(refused)
    assert broker.password not in whole(refused)


class Guarded:
    """A connection as of RabbitMQ 4.3, which checks a permission before it looks for a queue.

    The tests' versions do not, so this simulates it.
    """

    def __init__(self, *, but_for: str = "") -> None:
        """Refuse all names but this."""
        self._granted = but_for

    @asynccontextmanager
    async def channel(self) -> AsyncIterator["Guarded"]:
        """Return itself, as the channel."""
        yield self

    async def declare_queue(self, name: str, **_options: Any) -> None:
        """Refuse."""
        await self._look(name)

    async def declare_exchange(self, name: str, **_options: Any) -> None:
        """Refuse."""
        await self._look(name)

    async def _look(self, name: str) -> None:
        if name != self._granted:
            raise ChannelAccessRefused(
                f"ACCESS_REFUSED - access to '{name}' in vhost '/' refused for user 'u'"
            )


@pytest.mark.parametrize("granted", ["", "pushgate"])
def test_a_check_that_is_refused_is_reported_as_that(granted: str) -> None:
    """With an operator's topology: the broker is not down, and nothing is missing."""
    establishing = Topology(passive=True).establish(Guarded(but_for=granted))  # type: ignore[arg-type]
    with pytest.raises(PublishError, match="does not let Pushgate check") as caught:
        asyncio.run(establishing)
    assert not isinstance(caught.value, BrokerUnavailable)
    name = "pushgate.executions" if granted else "pushgate"
    assert f"ACCESS_REFUSED - access to '{name}'" in str(caught.value)


def test_a_wrong_password_is_said_without_it(broker: Broker, topology: Topology) -> None:
    """The error says what to check, and neither it nor its causes contain the password."""
    refused = refusal(broker.url.replace(broker.password, "not-the-secret"), topology)
    assert str(refused) == f"the broker at 127.0.0.1:{broker.port} refuses the user or the password"
    assert "not-the-secret" not in whole(refused)


def test_an_unknown_virtual_host_is_named(broker: Broker, topology: Topology) -> None:
    """The error quotes the broker."""
    refused = refusal(f"{broker.url}nowhere", topology)
    assert "nowhere" in str(refused)
    assert broker.password not in whole(refused)


def test_a_lane_has_a_queue_of_its_own(broker: Broker, topology: Topology) -> None:
    """A request of an undeclared lane is refused, with a reason; the others use the usual queue."""
    lanes = dataclasses.replace(topology, lanes=("high",))

    async def scenario() -> None:
        async with connected(broker.url, lanes) as publisher, Runner(broker.url) as runner:
            await publisher.publish(dataclasses.replace(request("r1"), lane="high"))
            await publisher.publish(request("r2"))
            [message] = await runner.take(f"{topology.queue}.high", 1)
            assert message.message_id == "r1"
            assert message.routing_key == "lane.high.execution.requested.digits.train"
            assert await runner.count(topology.queue) == 1
            with pytest.raises(Unroutable, match=r"lane\.low"):
                await publisher.publish(dataclasses.replace(request("r3"), lane="low"))
            await runner.channel.queue_delete(f"{topology.queue}.high")

    asyncio.run(scenario())
