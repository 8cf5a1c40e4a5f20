"""The reference runner: plain aio-pika. `python runner_aio_pika.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from execution import LIMIT, Done, Unusable, execute, read, tell

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


async def take(message: AbstractIncomingMessage, done: Done) -> None:
    """Carry out one request, and say so to the broker."""
    try:
        request = read(message.body)
        if request["id"] not in done:
            status = await asyncio.to_thread(execute, request)
            tell(f"{request['id']} ended with status {status}")
            done.add(request["id"])
    except Unusable as error:
        tell(f"rejected for good: {error}")
        await message.reject(requeue=False)
    except OSError as error:
        # The quorum queue counts how often it has handed a message out.
        tries = int(str(message.headers.get("x-delivery-count", 0))) + 1
        tell(f"try {tries} of {LIMIT} has failed: {error}")
        await message.reject(requeue=tries < LIMIT)
    else:
        await message.ack()


async def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    done = Done(Path("done.db"))
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(QUEUE)
        async with queue.iterator() as messages:
            async for message in messages:
                await take(message, done)
                if count is not None and (count := count - 1) == 0:
                    return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
