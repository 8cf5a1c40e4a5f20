"""The reference runner: plain aio-pika. `python runner_aio_pika.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from execution import Inbox, Unusable, read, tell

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


async def take(message: AbstractIncomingMessage, inbox: Inbox) -> None:
    """Take one request over, and say so to the broker."""
    try:
        request = read(message.body)
    except Unusable as error:
        tell(f"rejected for good: {error}")
        await message.reject(requeue=False)
    else:
        inbox.take(request)
        await message.ack()


async def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    inbox = Inbox(Path("inbox.db"))
    await asyncio.to_thread(inbox.work_off)
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(QUEUE)
        while count is None or count > 0:
            # Asked for, not consumed: nothing waits here while an execution runs.
            message = await queue.get(fail=False)
            if message is None:
                await asyncio.sleep(1)
                continue
            await take(message, inbox)
            await asyncio.to_thread(inbox.work_off)
            count = None if count is None else count - 1


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
