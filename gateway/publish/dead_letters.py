"""Counts, reads and removes the dead letters at the broker."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelClosed

from gateway.errors import PublishError
from gateway.publish.brokers import Brokers, close
from gateway.publish.topology import Topology

MAX_READ = 200
"""How many dead letters are read at once, the oldest first."""

# RabbitMQ 4 drops a message that was returned to its queue 20 times.
_MAX_RETURNS = 10
# What another reader had is back in the queue a moment after that reader has closed its connection.
_PAUSES = (0.0, 0.2, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that nobody could deliver.

    `id` is the id of the message: that of the execution request, if it is one. `cause` is the broker's word
    for why it was dead-lettered, `queue` the queue where that happened, `since` the time; each is None if the
    broker does not say. `count` says how often it happened.
    """

    id: str
    kind: str
    cause: str | None
    queue: str | None
    since: datetime | None
    count: int


async def count_dead_letters(brokers: Brokers, topology: Topology) -> int:
    """Return how many dead letters wait in their queue. Raise `PublishError`."""
    async with _opened(brokers, topology) as (_, queue):
        return queue.declaration_result.message_count or 0


async def read_dead_letters(brokers: Brokers, topology: Topology) -> tuple[list[DeadLetter], int]:
    """Return the oldest dead letters, which stay where they are, and how many there are.

    Raise `PublishError`.
    """
    async with _opened(brokers, topology) as (channel, queue):
        letters = [_read(message) async for message in _messages(channel, queue)]
        return letters, queue.declaration_result.message_count or 0


async def remove_dead_letters(
    brokers: Brokers, topology: Topology, ids: Collection[str], *, before: datetime
) -> set[str]:
    """Remove those with these ids among the oldest dead letters; return the ids that were found.

    If some are missing, look again for a second: another reader may have had them. Leave those that became
    dead letters after `before`. Raise `PublishError`.
    """
    found: set[str] = set()
    for pause in _PAUSES:
        await asyncio.sleep(pause)
        async with _opened(brokers, topology) as (channel, queue):
            async for message in _messages(channel, queue):
                letter = _read(message)
                if letter.id in ids and (letter.since is None or letter.since <= before):
                    await message.ack()
                    found.add(letter.id)
        if found.issuperset(ids):
            break
    return found


@asynccontextmanager
async def _opened(
    brokers: Brokers, topology: Topology
) -> AsyncIterator[tuple[AbstractChannel, AbstractQueue]]:
    """Yield a channel and the queue, on a connection of its own.

    What is not acknowledged returns to its place when the connection is closed.
    """
    connection = await brokers.open(_as_it_is)
    try:
        async with brokers.talking():
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(topology.dead_queue, passive=True)
            except ChannelClosed as error:
                raise PublishError(
                    f"the dead letters in {topology.dead_queue} cannot be read ({error})"
                ) from error
            yield channel, queue
    finally:
        await close(connection)


async def _messages(channel: AbstractChannel, queue: AbstractQueue) -> AsyncIterator[AbstractIncomingMessage]:
    """Yield the oldest messages of a queue, unacknowledged."""
    for _ in range(min(queue.declaration_result.message_count or 0, MAX_READ)):
        message = await queue.get(fail=False)
        if message is None:
            return
        yield message
        returns = message.headers.get("x-delivery-count")
        if isinstance(returns, int) and returns >= _MAX_RETURNS and not message.processed:
            await _begin_again(channel, queue, message)


async def _begin_again(
    channel: AbstractChannel, queue: AbstractQueue, message: AbstractIncomingMessage
) -> None:
    """Replace a message by a copy that was never returned, at the end of the queue."""
    headers = {name: value for name, value in message.headers.items() if name != "x-delivery-count"}
    copy = Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        correlation_id=message.correlation_id,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
        delivery_mode=DeliveryMode.PERSISTENT,
    )
    await channel.default_exchange.publish(copy, routing_key=queue.name)
    await message.ack()


def _read(message: AbstractIncomingMessage) -> DeadLetter:
    death = _death(message.headers.get("x-death"))
    since, count = death.get("time"), death.get("count")
    return DeadLetter(
        id=message.message_id or "",
        kind=message.type or "",
        cause=_text(death.get("reason")),
        queue=_text(death.get("queue")),
        since=since.replace(tzinfo=since.tzinfo or UTC) if isinstance(since, datetime) else None,
        count=count if isinstance(count, int) else 1,
    )


def _death(deaths: Any) -> Mapping[str, Any]:
    """Return the last death of a message: https://www.rabbitmq.com/docs/dlx#effects."""
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


async def _as_it_is(connection: AbstractConnection) -> AbstractConnection:
    return connection
