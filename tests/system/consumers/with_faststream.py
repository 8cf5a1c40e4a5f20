"""FastStream: a subscriber that takes one message at a time."""

import asyncio
import sys

from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, RabbitQueue

from tests.system.consumers.protocol import record, run


async def main(url: str, name: str) -> None:
    """Take one request, and run it."""
    async with RabbitBroker(url, logger=None) as broker:
        subscriber = broker.subscriber(RabbitQueue(name, declare=False), ack_policy=AckPolicy.MANUAL)
        await subscriber.start()
        message = None
        while message is None:
            message = await subscriber.get_one(timeout=5)
        request = record(message.body)
        await message.ack()
        await asyncio.to_thread(run, request)


asyncio.run(main(*sys.argv[1:]))
