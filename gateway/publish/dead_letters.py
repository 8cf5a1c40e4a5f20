"""Counts the dead letters at the broker."""

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed

from gateway.errors import PublishError
from gateway.publish.brokers import Brokers, close
from gateway.publish.topology import Topology


async def count_dead_letters(brokers: Brokers, topology: Topology) -> int:
    """Return how many dead letters wait in their queue. Raise `PublishError`."""
    connection = await brokers.open(_as_it_is)
    try:
        async with brokers.talking():
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(topology.dead_queue, passive=True)
            except ChannelClosed as error:
                raise PublishError(
                    f"the dead letters in {topology.dead_queue} cannot be counted ({error})"
                ) from error
            return queue.declaration_result.message_count or 0
    finally:
        await close(connection)


async def _as_it_is(connection: AbstractConnection) -> AbstractConnection:
    return connection
