"""aio-pika: the iterator of a queue."""

import asyncio
import sys

import aio_pika

from tests.system.consumers.protocol import record, run


async def main(url: str, name: str) -> None:
    """Take one request, and run it."""
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(name)
        async with queue.iterator() as messages:
            message = await anext(messages)
        # The consumer has been cancelled: no further message is held here.
        request = record(message.body)
        await message.ack()
        await asyncio.to_thread(run, request)


asyncio.run(main(*sys.argv[1:]))
