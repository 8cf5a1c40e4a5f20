"""A consumer at the broker, as a runner would be, with its own connection."""

import asyncio
from types import TracebackType
from typing import Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from gateway.publish.topology import Topology
from testing.broker import Broker
from testing.service import WAIT_SECONDS


class Runner:
    """Consumes from queues, and inspects them."""

    connection: AbstractConnection
    channel: AbstractChannel

    def __init__(self, url: str) -> None:
        """Connect on entering."""
        self._url = url

    async def __aenter__(self) -> Self:
        """Connect."""
        self.connection = await aio_pika.connect(self._url, timeout=WAIT_SECONDS)
        self.channel = await self.connection.channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self.connection.close()

    async def take(self, queue: str, count: int, *, reject: bool = False) -> list[AbstractIncomingMessage]:
        """Take so many messages, and acknowledge or reject each."""
        messages: list[AbstractIncomingMessage] = []
        source = await self.channel.get_queue(queue)
        async with asyncio.timeout(WAIT_SECONDS), source.iterator() as incoming:
            while len(messages) < count:
                message = await anext(incoming)
                await (message.reject() if reject else message.ack())
                messages.append(message)
        return messages

    async def rest(self, queue: str) -> list[AbstractIncomingMessage]:
        """Take the remaining messages."""
        source = await self.channel.get_queue(queue)
        # `get` costs a round trip for each message: it takes only what has arrived meanwhile.
        messages = await self.take(queue, await self.count(queue))
        while message := await source.get(fail=False):
            await message.ack()
            messages.append(message)
        return messages

    async def until_holds(self, queue: str, count: int) -> None:
        """Return once a queue holds at least so many messages."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.count(queue) < count:  # noqa: ASYNC110 - a queue at the broker sends no notification
                await asyncio.sleep(0.01)

    async def count(self, queue: str) -> int:
        """Return how many messages a queue holds ready."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def remove(broker: Broker, topology: Topology) -> None:
    """Remove all that a topology may have left; missing items are no error."""
    async with Runner(broker.url) as runner:
        for name in topology.queues:
            for queue in (name, *topology.partitions(name)):
                await runner.channel.queue_delete(queue)
            await runner.channel.exchange_delete(topology.hash_exchange(name))
        await runner.channel.queue_delete(topology.dead_queue)
        for exchange in (topology.exchange, topology.dead_exchange):
            await runner.channel.exchange_delete(exchange)
