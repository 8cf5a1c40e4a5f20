"""The relay, from an outbox to a real broker."""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from structlog.testing import capture_logs

from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from testing.broker import Broker
from tests.publish.outbox import MemoryOutbox
from tests.publish.proxy import Proxy
from tests.publish.runner import Runner

CONNECTIONS = 40
EACH = 50


def publisher(url: str, topology: Topology) -> RabbitMQ:
    """Return a publisher that is not connected yet."""
    return RabbitMQ(url, public_url="https://push.example", topology=topology)


def plan_many(outbox: MemoryOutbox) -> None:
    """Plan requests of many connections, in turn."""
    for number in range(EACH):
        for connection in range(CONNECTIONS):
            outbox.plan(f"{connection}/{number}", connection=f"c{connection}")


def first_times(messages: Iterable[AbstractIncomingMessage]) -> dict[str, list[int]]:
    """Return, for each connection, the numbers of its requests in the order of their first arrival."""
    arrived: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for message in messages:
        connection, _, number = (message.message_id or "").partition("/")
        arrived[connection].setdefault(int(number))
    return {connection: list(numbers) for connection, numbers in arrived.items()}


EVERYTHING_IN_ORDER = {str(connection): list(range(EACH)) for connection in range(CONNECTIONS)}


def test_what_is_planned_is_published_once_and_marked(broker: Broker, topology: Topology) -> None:
    """Without faults there are no repeats, and each connection's requests come in planned order."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        async with Runner(broker.url) as runner:
            async with outbox.relayed_by(publisher(broker.url, topology)):
                await outbox.until_all_are_published()
            messages = await runner.rest(topology.queue)
        assert len(messages) == len(outbox.requests)
        assert first_times(messages) == EVERYTHING_IN_ORDER

    asyncio.run(scenario())


def test_news_are_published_at_once(broker: Broker, topology: Topology) -> None:
    """An idle relay is notified, and does not wait for its poll."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        async with Runner(broker.url) as runner, outbox.relayed_by(publisher(broker.url, topology)):
            outbox.plan("first")
            await outbox.until_all_are_published()
            outbox.plan("second")
            await outbox.until_all_are_published()
            assert await runner.count(topology.queue) == 2

    asyncio.run(scenario())


def test_an_unroutable_request_is_seen_and_holds_up_only_its_connection(
    broker: Broker, topology: Topology
) -> None:
    """The reason is recorded, the next of its connection waits, others go out; a binding fixes it."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        async with Runner(broker.url) as runner:
            queue = await _bound_to(runner, broker, topology, "execution.requested.digits.#")
            outbox.plan("first", connection="stuck", project="unknown")
            outbox.plan("second", connection="stuck", project="digits")
            outbox.plan("other", connection="free", project="digits")
            with capture_logs() as logs:
                async with outbox.relayed_by(publisher(broker.url, _checked(topology))):
                    await outbox.until(lambda: outbox.published() == ["other"])
                    await outbox.until(lambda: outbox.requests["first"].reason is not None)
                    assert outbox.requests["first"].state == "pending"
                    assert outbox.requests["second"].state == "pending"
                    assert "execution.requested.unknown.train" in str(outbox.requests["first"].reason)
                    outbox.plan("another", connection="free", project="digits")
                    await outbox.until(lambda: outbox.published() == ["other", "another"])
                    await queue.bind(topology.exchange, "execution.requested.unknown.#")
                    await outbox.until_all_are_published()
            names = [message.message_id for message in await runner.rest(topology.queue)]
            assert names == ["other", "another", "first", "second"]
            assert outbox.requests["first"].reason is None
        refusals = [log for log in logs if log["event"] == "message refused by the broker"]
        assert [log["id"] for log in refusals] == ["first"]

    asyncio.run(scenario())


def test_a_full_queue_is_seen_and_holds_up_only_what_goes_there(broker: Broker, topology: Topology) -> None:
    """Its requests stay pending with the reason, in order, until a consumer makes room."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        small = dataclasses.replace(topology, max_length=1)
        async with Runner(broker.url) as runner:
            await _bound_to(runner, broker, small, "execution.requested.busy.#")
            roomy = await runner.channel.declare_queue(f"{topology.queue}.roomy", exclusive=True)
            await roomy.bind(topology.exchange, "execution.requested.quiet.#")
            busy = [f"busy {number}" for number in range(20)]
            for name in busy:
                outbox.plan(name, connection="busy", project="busy")
            outbox.plan("quiet", connection="quiet", project="quiet")
            async with outbox.relayed_by(publisher(broker.url, _checked(small))):
                await outbox.until(lambda: "quiet" in outbox.published())
                await outbox.until(lambda: any(one.reason for one in outbox.requests.values()))
                reasons = [one.reason for one in outbox.requests.values() if one.reason]
                assert ["full" in reason for reason in reasons] == [True]
                messages = await runner.take(topology.queue, len(busy))
                await outbox.until_all_are_published()
            assert [message.message_id for message in messages] == busy

    asyncio.run(scenario())


def test_a_broker_that_stops_is_waited_for(broker: Broker, topology: Topology) -> None:
    """Requests wait in the store, the outage is reported once, and all are published when it is over."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        outbox.plan("before")
        with capture_logs() as logs:
            async with outbox.relayed_by(publisher(broker.url, topology)):
                await outbox.until_all_are_published()
                await asyncio.to_thread(broker.stop)
                try:
                    outbox.plan("during")
                    assert outbox.published() == ["before"]
                finally:
                    await asyncio.to_thread(broker.start)
                await outbox.until_all_are_published()
        async with Runner(broker.url) as runner:
            names = [message.message_id for message in await runner.rest(topology.queue)]
        assert names == ["before", "during"]
        warned = [log["event"] for log in logs if log["log_level"] == "warning"]
        assert warned == ["the broker is unavailable; messages wait in the store"]
        assert "the relay continues" in [log["event"] for log in logs]
        assert broker.password not in str(logs)

    asyncio.run(scenario())


def test_a_broker_that_is_killed_loses_nothing(broker: Broker, topology: Topology) -> None:
    """SIGKILL during publishing: all messages arrive, in order, repeats with the same ids."""

    async def scenario() -> None:
        await _declare(broker, topology)
        # RabbitMQ 3 persists declarations a few seconds later; a clean stop does so at once.
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
        outbox = MemoryOutbox()
        plan_many(outbox)
        async with outbox.relayed_by(publisher(broker.url, topology)):
            await outbox.until(lambda: bool(outbox.published()))
            assert len(outbox.published()) < len(outbox.requests)
            broker.kill()
            await asyncio.to_thread(broker.start)
            await outbox.until_all_are_published()
        async with Runner(broker.url) as runner:
            assert first_times(await runner.rest(topology.queue)) == EVERYTHING_IN_ORDER

    asyncio.run(scenario())


def test_a_connection_cut_before_the_confirms_loses_nothing(broker: Broker, topology: Topology) -> None:
    """Messages that the broker has, unconfirmed, are repeated with the same ids and in order."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
            async with outbox.relayed_by(publisher(proxy.url, topology)):
                outbox.plan("0/0", connection="c0")
                await outbox.until_all_are_published()
                proxy.hold_answers()
                outbox.requests.clear()
                plan_many(outbox)
                # The request that was published already, and one of each connection.
                await runner.until_holds(topology.queue, 1 + CONNECTIONS)
                assert outbox.published() == []
                await proxy.cut()
                proxy.heal()
                await outbox.until_all_are_published()
            messages = await runner.rest(topology.queue)
        assert first_times(messages) == EVERYTHING_IN_ORDER
        assert len(messages) == 1 + CONNECTIONS + CONNECTIONS * EACH

    asyncio.run(scenario())


def test_connections_cut_again_and_again_lose_nothing(broker: Broker, topology: Topology) -> None:
    """Wherever the cut is, also within a frame: nothing is lost, and the order is kept."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
            async with outbox.relayed_by(publisher(proxy.url, topology)):
                await outbox.until(lambda: bool(outbox.published()))
                for more in (50, 100, 150):
                    await runner.until_holds(topology.queue, len(outbox.published()) + more)
                    await proxy.cut()
                await outbox.until_all_are_published()
            assert first_times(await runner.rest(topology.queue)) == EVERYTHING_IN_ORDER

    asyncio.run(scenario())


def test_what_is_confirmed_but_could_not_be_marked_is_not_published_again(
    broker: Broker, topology: Topology
) -> None:
    """The store fails for a while: the relay keeps the unrecorded confirms, and continues then."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        outbox.writable = False
        async with Runner(broker.url) as runner:
            with capture_logs() as logs:
                async with outbox.relayed_by(publisher(broker.url, topology)):
                    await outbox.until(lambda: outbox.failures > 0)
                    outbox.writable = True
                    await outbox.until_all_are_published()
            assert len(await runner.rest(topology.queue)) == len(outbox.requests)
        assert "the relay is waiting for the store" in [log["event"] for log in logs]

    asyncio.run(scenario())


def test_a_relay_that_is_ended_in_the_middle_leaves_the_rest_to_the_next(
    broker: Broker, topology: Topology
) -> None:
    """Cancelled at any time, it has marked nothing that the broker lacks."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        async with Runner(broker.url) as runner:
            async with outbox.relayed_by(publisher(broker.url, topology)):
                await outbox.until(lambda: bool(outbox.published()))
            assert len(outbox.published()) < len(outbox.requests)
            async with outbox.relayed_by(publisher(broker.url, topology)):
                await outbox.until_all_are_published()
            assert first_times(await runner.rest(topology.queue)) == EVERYTHING_IN_ORDER

    asyncio.run(scenario())


async def _declare(broker: Broker, topology: Topology) -> None:
    declaring = publisher(broker.url, topology)
    await declaring.open()
    await declaring.close()


async def _bound_to(runner: Runner, broker: Broker, topology: Topology, key: str) -> AbstractQueue:
    """Declare a topology as an operator could, with its queue bound to this key only."""
    await _declare(broker, topology)
    queue = await runner.channel.get_queue(topology.queue)
    await queue.unbind(topology.exchange, "execution.requested.#")
    await queue.bind(topology.exchange, key)
    return queue


def _checked(topology: Topology) -> Topology:
    return dataclasses.replace(topology, passive=True)
