"""Requests of one connection in order at the runners: partitions with a single active consumer."""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aio_pika.abc import AbstractIncomingMessage

from gateway.errors import PublishError
from gateway.publish.cloudevents import PARTITION_HEADER, routing_key
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from testing.broker import Broker
from testing.service import WAIT_SECONDS
from tests.publish.outbox import MemoryOutbox, request
from tests.publish.runner import Runner, remove

PARTITIONS = 3
CONNECTIONS = 12
EACH = 10
PREFETCH = 5
HANDLED_BEFORE = 13


@pytest.fixture
def ordered(topology: Topology) -> Topology:
    """Return a topology with partitions."""
    return dataclasses.replace(topology, ordered=PARTITIONS)


def publisher(broker: Broker, topology: Topology) -> RabbitMQ:
    """Return a publisher that is not connected yet."""
    return RabbitMQ(broker.url, public_url="https://push.example", topology=topology)


async def establish(broker: Broker, topology: Topology) -> None:
    """Connect and close, so that the topology is declared."""
    connecting = publisher(broker, topology)
    try:
        await connecting.open()
    finally:
        await connecting.close()


def refusal(broker: Broker, topology: Topology) -> str:
    """Return why publishing to the broker is impossible."""
    with pytest.raises(PublishError) as caught:
        asyncio.run(establish(broker, topology))
    return str(caught.value)


class Consumers:
    """Consumers of all partitions; they note which consumer handled what, each in turn."""

    def __init__(self, broker: Broker, topology: Topology) -> None:
        """Begin without consumers."""
        self._broker = broker
        self._queues = topology.partitions(topology.queue)
        self._changed = asyncio.Condition()
        self.handled: list[tuple[str, str]] = []
        self.kept: list[AbstractIncomingMessage] = []

    @asynccontextmanager
    async def consumer(self, name: str, *, stops_after: int | None = None) -> AsyncIterator[None]:
        """Run a consumer. After `stops_after` messages it keeps further ones unacknowledged."""
        async with Runner(self._broker.url) as runner:
            await runner.channel.set_qos(prefetch_count=PREFETCH)

            async def handle(message: AbstractIncomingMessage) -> None:
                async with self._changed:
                    if len(self.handled) == stops_after:
                        self.kept.append(message)
                    else:
                        self.handled.append((name, message.message_id or ""))
                        await message.ack()
                    self._changed.notify_all()

            for queue in self._queues:
                await (await runner.channel.get_queue(queue)).consume(handle)
            yield

    async def until(self, count: int) -> None:
        """Return once so many are handled."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.handled) >= count)

    async def until_kept(self, count: int) -> None:
        """Return once so many are kept."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.kept) >= count)


async def rest(runner: Runner, topology: Topology, queue: str) -> list[list[AbstractIncomingMessage]]:
    """Take what each partition of a queue holds. `basic.get` is not for queues with an active consumer."""
    return [await runner.take(one, await runner.count(one)) for one in topology.partitions(queue)]


def plan(outbox: MemoryOutbox, numbers: range) -> None:
    """Plan requests of many connections, in turn."""
    for number in numbers:
        for connection in range(CONNECTIONS):
            outbox.plan(f"{connection}/{number}", connection=f"c{connection}")


def in_order(handled: list[tuple[str, str]]) -> dict[str, list[int]]:
    """Return the numbers of each connection's requests, as they were handled."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for _, name in handled:
        connection, _, number = name.partition("/")
        found[connection].append(int(number))
    return dict(found)


def test_a_connection_s_requests_all_go_to_one_partition(broker: Broker, ordered: Topology) -> None:
    """Whatever their project, and so their routing key, which stays as in the contract."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        for number in range(5):
            for connection in range(CONNECTIONS):
                outbox.plan(f"{connection}/{number}", connection=f"c{connection}", project=f"p{number}")
        async with Runner(broker.url) as runner:
            async with outbox.relayed_by(publisher(broker, ordered)):
                await outbox.until_all_are_published()
            held = await rest(runner, ordered, ordered.queue)
        connections = [{str(message.headers[PARTITION_HEADER]) for message in messages} for messages in held]
        assert sum(len(messages) for messages in held) == len(outbox.requests)
        assert sum(len(names) for names in connections) == len(set().union(*connections)) == CONNECTIONS
        assert all(connections)
        keys = {message.routing_key for messages in held for message in messages}
        assert keys == {f"execution.requested.p{number}.train" for number in range(5)}

    asyncio.run(scenario())


def test_one_consumer_at_a_time_handles_a_connection_s_requests(broker: Broker, ordered: Topology) -> None:
    """Of two consumers only one serves each partition, in planned order."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        await establish(broker, ordered)
        consumers = Consumers(broker, ordered)
        async with consumers.consumer("first"), consumers.consumer("second"):
            async with outbox.relayed_by(publisher(broker, ordered)):
                plan(outbox, range(EACH))
                await outbox.until_all_are_published()
            await consumers.until(CONNECTIONS * EACH)
        assert in_order(consumers.handled) == {str(one): list(range(EACH)) for one in range(CONNECTIONS)}
        assert {name for name, _ in consumers.handled} == {"first"}

    asyncio.run(scenario())


def test_the_next_consumer_goes_on_in_order_where_one_has_died(broker: Broker, ordered: Topology) -> None:
    """The dead consumer's unacknowledged messages come first; no other is handled before them."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        await establish(broker, ordered)
        consumers = Consumers(broker, ordered)
        async with AsyncExitStack() as stack:
            dying = await stack.enter_async_context(AsyncExitStack())
            await dying.enter_async_context(consumers.consumer("first", stops_after=HANDLED_BEFORE))
            await stack.enter_async_context(consumers.consumer("second"))
            async with outbox.relayed_by(publisher(broker, ordered)):
                plan(outbox, range(EACH))
                await outbox.until_all_are_published()
                # As many of each partition as it prefetches.
                await consumers.until_kept(PREFETCH * PARTITIONS)
                await dying.aclose()
                plan(outbox, range(EACH, EACH + 2))
                await outbox.until_all_are_published()
                await consumers.until(CONNECTIONS * (EACH + 2))
        assert in_order(consumers.handled) == {str(one): list(range(EACH + 2)) for one in range(CONNECTIONS)}
        names = [name for name, _ in consumers.handled]
        assert names == ["first"] * HANDLED_BEFORE + ["second"] * (len(names) - HANDLED_BEFORE)

    asyncio.run(scenario())


def test_lanes_have_partitions_of_their_own(broker: Broker, ordered: Topology) -> None:
    """A lane's requests do not wait behind the others'."""

    async def scenario() -> None:
        lanes = dataclasses.replace(ordered, lanes=("high",))
        publishing = publisher(broker, lanes)
        await publishing.open()
        try:
            await publishing.publish(dataclasses.replace(request("r1"), lane="high"))
            await publishing.publish(request("r2"))
        finally:
            await publishing.close()
        async with Runner(broker.url) as runner:
            taken = {
                queue: [one.message_id for held in await rest(runner, lanes, queue) for one in held]
                for queue in lanes.queues
            }
        await remove(broker, lanes)
        assert taken == {lanes.queue: ["r2"], f"{lanes.queue}.high": ["r1"]}

    asyncio.run(scenario())


def test_a_partition_has_dead_letters_too(broker: Broker, ordered: Topology) -> None:
    """Rejected messages go to the common dead-letter queue."""

    async def scenario() -> None:
        publishing = publisher(broker, ordered)
        await publishing.open()
        try:
            await publishing.publish(request("r1"))
        finally:
            await publishing.close()
        async with Runner(broker.url) as runner:
            for partition in ordered.partitions(ordered.queue):
                if await runner.count(partition):
                    await runner.take(partition, 1, reject=True)
            [dead] = await runner.take(ordered.dead_queue, 1)
        assert (dead.message_id, dead.routing_key) == ("r1", routing_key(request("r1")))

    asyncio.run(scenario())


def test_requests_no_longer_go_to_the_queue_that_partitions_replace(
    broker: Broker, topology: Topology, ordered: Topology
) -> None:
    """Partitions replace a single queue: its messages stay, and no message goes to both."""

    async def scenario() -> None:
        for name, stands in (("before", topology), ("after", ordered)):
            publishing = publisher(broker, stands)
            await publishing.open()
            try:
                await publishing.publish(request(name))
            finally:
                await publishing.close()
        async with Runner(broker.url) as runner:
            assert [one.message_id for one in await runner.rest(topology.queue)] == ["before"]
            counts = [await runner.count(queue) for queue in ordered.partitions(ordered.queue)]
            assert sorted(counts) == [0, 0, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("fewer", [0, PARTITIONS - 1])
def test_partitions_that_are_too_many_are_named(broker: Broker, ordered: Topology, fewer: int) -> None:
    """They would still receive requests without a consumer: an error says what to do."""
    asyncio.run(establish(broker, ordered))
    refused = refusal(broker, dataclasses.replace(ordered, ordered=fewer))
    assert f"PUSHGATE_AMQP_ORDERED={fewer}" in refused
    assert ordered.partition(ordered.queue, fewer + 1) in refused


def test_partitions_of_an_operator_are_only_looked_for(broker: Broker, ordered: Topology) -> None:
    """The error names what is missing, and nothing is declared."""
    checked = dataclasses.replace(ordered, passive=True)
    missing = refusal(broker, checked)
    assert "does not exist" in missing

    async def half() -> None:
        await establish(broker, ordered)
        async with Runner(broker.url) as runner:
            await runner.channel.queue_delete(ordered.partition(ordered.queue, 2))

    asyncio.run(half())
    assert f"'{ordered.partition(ordered.queue, 2)}'" in refusal(broker, checked)
    asyncio.run(establish(broker, ordered))
    asyncio.run(establish(broker, checked))


def test_a_missing_plugin_is_reported_by_name(broker: Broker, ordered: Topology) -> None:
    """One sentence says what needs it, and how to enable it."""
    broker.plugin(on=False)
    try:
        refused = refusal(broker, ordered)
    finally:
        broker.plugin(on=True)
    assert refused.startswith(
        "PUSHGATE_AMQP_ORDERED needs RabbitMQ's plugin rabbitmq_consistent_hash_exchange"
    )
