"""The relay under faults: it loses nothing, keeps the order, reports each fault once, and continues."""

import asyncio
import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage
from structlog.testing import capture_logs

from gateway.errors import Unroutable
from gateway.publish.cloudevents import Stored
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from gateway.store.executions import StoredRequest
from testing.broker import Broker
from testing.service import wait_for
from tests.publish.outbox import MemoryOutbox
from tests.publish.proxy import Proxy
from tests.publish.runner import Runner

# Of the relay.
WINDOW = 64
BATCH_SECONDS = 0.5
CONNECTIONS = 6
EACH = 4
AWAY = "the broker is unavailable; messages wait in the store"
# How long the code under test waits for an answer, in seconds; its defaults are 10 and 30.
WITHIN = 0.5

Logs = list[Any]


def plan_many(outbox: MemoryOutbox, *, begin: int = 0) -> None:
    """Plan requests of some connections, in turn."""
    for number in range(begin, begin + EACH):
        for connection in range(CONNECTIONS):
            outbox.plan(f"{connection}/{number}", connection=f"c{connection}")


def first_times(messages: list[AbstractIncomingMessage]) -> dict[str, list[int]]:
    """Return, for each connection, the numbers of its requests in the order of their first arrival."""
    arrived: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for message in messages:
        connection, _, number = (message.message_id or "").partition("/")
        arrived[connection].setdefault(int(number))
    return {connection: list(numbers) for connection, numbers in arrived.items()}


def in_order(count: int) -> dict[str, list[int]]:
    """Return the result of `first_times` when nothing is missing."""
    return {str(connection): list(range(count)) for connection in range(CONNECTIONS)}


def logged(logs: Logs) -> list[str]:
    """Return the log events for operators, except those of published requests."""
    return [log["event"] for log in logs if log["event"] != "messages published"]


async def until_logged(logs: Logs, event: str) -> None:
    """Return once it is logged."""
    await asyncio.to_thread(wait_for, lambda: event in logged(logs), event)


def publisher(url: str, topology: Topology, within: float = 30.0) -> RabbitMQ:
    """Return a publisher that is not connected yet, with this time limit for answers."""
    return RabbitMQ(
        url,
        public_url="https://push.example",
        topology=topology,
        connect_within=within,
        confirm_within=within,
    )


class Relayed:
    """A relay, a proxy between it and the broker, and a consumer that inspects the queue."""

    def __init__(self, outbox: MemoryOutbox, proxy: Proxy, runner: Runner, logs: Logs) -> None:
        """Hold them."""
        self.outbox, self.proxy, self.runner, self.logs = outbox, proxy, runner, logs

    def logs_of(self, event: str) -> str:
        """Return the reason in a log event."""
        return str(next(log["reason"] for log in self.logs if log["event"] == event))


@asynccontextmanager
async def relayed(
    broker: Broker, topology: Topology, *, query: str = "", within: float = 30.0
) -> AsyncIterator[Relayed]:
    """Run a relay that has published the first requests of each connection already."""
    outbox = MemoryOutbox()
    async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
        with capture_logs() as logs:
            async with outbox.relayed_by(publisher(proxy.url + query, topology, within)):
                plan_many(outbox)
                await outbox.until_all_are_published()
                # Earlier log events are from a slow start on a busy machine.
                logs.clear()
                yield Relayed(outbox, proxy, runner, logs)


@pytest.mark.parametrize(
    "cut",
    [{"there": 0}, {"there": 5}, {"there": 300}, {"there": 3000}, {"back": 0}, {"back": 5}, {"back": 30}],
    ids=str,
)
def test_wherever_a_connection_is_cut_nothing_is_lost(
    broker: Broker, topology: Topology, cut: dict[str, int]
) -> None:
    """Before the broker has it, within a frame, and after it arrived but before the confirm."""

    async def scenario() -> None:
        async with relayed(broker, topology) as it:
            it.proxy.cut_after(**cut)
            plan_many(it.outbox, begin=EACH)
            await it.outbox.until_all_are_published()
            await until_logged(it.logs, "the relay continues")
            messages = await it.runner.rest(topology.queue)
        assert first_times(messages) == in_order(2 * EACH)
        # Each connection has one request in flight, and only that one can be repeated.
        repeats = Counter(message.message_id for message in messages).values()
        assert sum(repeats) - len(repeats) <= CONNECTIONS
        assert logged(it.logs) == [AWAY, "the relay continues"]

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", [Proxy.freeze, Proxy.hold_answers])
def test_a_frozen_network_is_given_up_and_tried_again(
    broker: Broker, topology: Topology, fault: Callable[[Proxy], None]
) -> None:
    """During publishing, whether the broker receives our bytes or not; the relay continues afterwards."""

    async def scenario() -> None:
        async with relayed(broker, topology, within=WITHIN) as it:
            fault(it.proxy)
            plan_many(it.outbox, begin=EACH)
            await until_logged(it.logs, AWAY)
            it.proxy.heal()
            await it.outbox.until_all_are_published()
            await until_logged(it.logs, "the relay continues")
            messages = await it.runner.rest(topology.queue)
        assert first_times(messages) == in_order(2 * EACH)
        assert logged(it.logs) == [AWAY, "the relay continues"]
        assert it.logs_of(AWAY) == "the broker did not confirm within 0.5 s"

    asyncio.run(scenario())


@pytest.mark.parametrize("after", [0, 100, 700, 900])
def test_a_network_that_freezes_while_we_connect_or_declare_is_given_up(
    broker: Broker, topology: Topology, after: int
) -> None:
    """Closing the connection to such a broker has a limit too."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        with capture_logs() as logs:
            async with Proxy(broker.url) as proxy:
                proxy.freeze_after(back=after)
                async with outbox.relayed_by(publisher(proxy.url, topology, WITHIN)):
                    await until_logged(logs, AWAY)
                    proxy.heal()
                    await outbox.until_all_are_published()
        async with Runner(broker.url) as runner:
            assert first_times(await runner.rest(topology.queue)) == in_order(EACH)
        assert f"does not answer within {WITHIN} s" in str(logs)

    asyncio.run(scenario())


def test_heartbeats_find_a_frozen_network_where_nothing_is_published(
    broker: Broker, topology: Topology
) -> None:
    """Not only when the next request fails."""

    async def scenario() -> None:
        async with relayed(broker, topology, query="?heartbeat=1", within=WITHIN) as it:
            it.proxy.freeze()
            await until_logged(it.logs, AWAY)
            it.proxy.heal()
            await until_logged(it.logs, "the relay continues")
            plan_many(it.outbox, begin=EACH)
            await it.outbox.until_all_are_published()
            assert first_times(await it.runner.rest(topology.queue)) == in_order(2 * EACH)
        assert logged(it.logs) == [AWAY, "the relay continues"]

    asyncio.run(scenario())


async def _delete_queue(channel: Any, topology: Topology) -> None:
    await channel.queue_delete(topology.queue)


async def _delete_exchange(channel: Any, topology: Topology) -> None:
    await channel.exchange_delete(topology.exchange)


async def _unbind(channel: Any, topology: Topology) -> None:
    queue = await channel.get_queue(topology.queue)
    await queue.unbind(topology.exchange, "execution.requested.#")


@pytest.mark.parametrize("harm", [_delete_queue, _delete_exchange, _unbind])
def test_what_is_deleted_under_us_is_declared_again(
    broker: Broker, topology: Topology, harm: Callable[[Any, Topology], Awaitable[None]]
) -> None:
    """An operator deletes too much while the relay is connected: requests wait; no restart is needed."""

    async def scenario() -> None:
        async with relayed(broker, topology) as it:
            taken = await it.runner.rest(topology.queue)
            await harm(it.runner.channel, topology)
            plan_many(it.outbox, begin=EACH)
            await it.outbox.until_all_are_published()
            taken += await it.runner.rest(topology.queue)
        assert first_times(taken) == in_order(2 * EACH)

    asyncio.run(scenario())


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_a_broker_in_alarm_is_waited_for(broker: Broker, topology: Topology, resource: str) -> None:
    """It blocks the connection; the relay reports why it waits, and continues when the alarm is over."""

    async def scenario() -> None:
        async with relayed(broker, topology, within=WITHIN) as it:
            await asyncio.to_thread(broker.alarm, resource, on=True)
            try:
                plan_many(it.outbox, begin=EACH)
                await until_logged(it.logs, AWAY)
            finally:
                await asyncio.to_thread(broker.alarm, resource, on=False)
            await it.outbox.until_all_are_published()
            await until_logged(it.logs, "the relay continues")
            messages = await it.runner.rest(topology.queue)
        assert first_times(messages) == in_order(2 * EACH)
        assert logged(it.logs) == [AWAY, "the relay continues"]
        assert "it has raised an alarm, short of memory or disk" in it.logs_of(AWAY)

    asyncio.run(scenario())


def test_another_kind_of_trouble_is_logged_as_well(broker: Broker, topology: Topology) -> None:
    """A broker that returns with a topology we can't publish to needs an operator."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        plan_many(outbox)
        other = publisher(broker.url, dataclasses.replace(topology, delivery_limit=99))
        with capture_logs() as logs:
            async with Proxy(broker.url) as proxy, Runner(broker.url) as runner:
                proxy.refuse()
                async with outbox.relayed_by(publisher(proxy.url, topology)):
                    await until_logged(logs, AWAY)
                    await other.open()
                    await other.close()
                    proxy.heal()
                    await asyncio.to_thread(wait_for, lambda: "differs" in str(logs), "it is logged")
                    await runner.channel.queue_delete(topology.queue)
                    await outbox.until_all_are_published()
                    await until_logged(logs, "the relay continues")
        assert logged(logs) == [AWAY, AWAY, "the relay continues"]

    asyncio.run(scenario())


class Held:
    """A publisher whose broker confirms nothing until it is released; it notes what was sent."""

    def __init__(self) -> None:
        """Begin without confirms."""
        self.sent: list[str] = []
        self.let_go = asyncio.Event()

    async def open(self) -> None:
        """See the protocol."""

    async def publish(self, stored: Stored) -> None:
        """See the protocol."""
        self.sent.append(stored.id)
        await self.let_go.wait()

    async def close(self) -> None:
        """See the protocol."""


def test_an_idle_relay_needs_no_poll() -> None:
    """The notification alone wakes it, and the end of a delay alone starts the retry of a refused message."""

    class Full(Held):
        """Refuses the first message once."""

        def __init__(self) -> None:
            super().__init__()
            self.refusals = 1
            self.let_go.set()

        async def publish(self, stored: Stored) -> None:
            if self.refusals:
                self.refusals -= 1
                raise Unroutable("the queue is full")
            await super().publish(stored)

    async def scenario() -> None:
        outbox, publisher = MemoryOutbox(), Full()
        async with outbox.relayed_by(publisher, poll=3600):
            # Only now, while the relay waits: the outbox was empty when it began.
            await outbox.until(lambda: outbox.outages == [None])
            outbox.plan("first")
            await outbox.until_all_are_published()
            outbox.plan("second")
            await outbox.until_all_are_published()
        assert publisher.sent == ["first", "second"]

    asyncio.run(scenario())


def test_a_relay_that_leads_again_records_again_that_all_is_well() -> None:
    """The leader in between may have reported an outage, and ended before its end."""

    async def scenario() -> None:
        outbox, publisher = MemoryOutbox(), Held()
        async with outbox.relayed_by(publisher, poll=0.01):
            await outbox.until(lambda: outbox.outages == [None])
            outbox.is_leader = False
            await outbox.until(lambda: len(outbox.outages) > 1)
            outbox.is_leader = True
            count = len(outbox.outages)
            await outbox.until(lambda: len(outbox.outages) > count)
        assert set(outbox.outages) == {None}

    asyncio.run(scenario())


def test_a_batch_whose_time_is_over_sends_nothing_more() -> None:
    """By then another process may lead; messages that waited for the window are read again."""

    class Asked(MemoryOutbox):
        """Notes what had been sent at each read of the outbox."""

        def __init__(self, publisher: Held) -> None:
            super().__init__()
            self.sent: list[int] = []
            self._publisher = publisher

        async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest] | None:
            self.sent.append(len(self._publisher.sent))
            return await super().pending(limit=limit, without=without)

    async def scenario() -> None:
        publisher = Held()
        outbox = Asked(publisher)
        for number in range(WINDOW + 1):
            outbox.plan(f"{number}/0", connection=f"c{number}")
        async with outbox.relayed_by(publisher):
            sent = publisher.sent
            await asyncio.to_thread(wait_for, lambda: len(sent) == WINDOW, "the window is full")
            over = time.monotonic() + BATCH_SECONDS
            await asyncio.to_thread(wait_for, lambda: time.monotonic() > over, "the batch's time is over")
            publisher.let_go.set()
            await outbox.until_all_are_published()
        assert outbox.sent[:2] == [0, WINDOW]

    asyncio.run(scenario())
