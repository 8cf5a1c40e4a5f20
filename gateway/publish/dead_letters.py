"""Counts the dead letters at the broker."""

from aio_pika.abc import AbstractConnection

from gateway.publish.brokers import Brokers, close
from gateway.publish.topology import Topology


async def count_dead_letters(brokers: Brokers, topology: Topology) -> int:
    """Return how many dead letters wait in their queue. Raise `PublishError`."""
    connection = await brokers.open(_as_it_is)
    try:
        async with brokers.talking():
            channel = await connection.channel()
            # Passive: the queue is only looked at, which needs no permission to configure.
            queue = await channel.declare_queue(topology.dead_queue, passive=True)
            return queue.declaration_result.message_count or 0
    finally:
        await close(connection)


async def _as_it_is(connection: AbstractConnection) -> AbstractConnection:
    return connection
