"""The reference runner, with aio-pika. `python runner_aio_pika.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from pathlib import Path

import aio_pika
from inbox import Inbox

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


async def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    await asyncio.to_thread(inbox.execute_pending)
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(QUEUE)
        while count is None or count > 0:
            # `get` instead of `consume`: no message is held here while an execution runs.
            message = await queue.get(fail=False)
            if message is None:
                await asyncio.sleep(1)
            else:
                if inbox.take(message.body, message.headers):
                    await message.ack()
                else:
                    await message.reject(requeue=False)
                count = None if count is None else count - 1
            await asyncio.to_thread(inbox.execute_pending)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
