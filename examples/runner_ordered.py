"""A runner that executes the requests of a partition in order, with aio-pika.

`QUEUE=pushgate.executions.ordered.1 python runner_ordered.py amqp://… [COUNT]`. Run one for each partition.
The inbox belongs to the partition: a runner that stands by for it must share the inbox, and so this folder.
"""

import asyncio
import os
import sys
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractQueue
from inbox import Inbox

QUEUE = os.environ.get("QUEUE", "pushgate.executions.ordered.1")
IDLE_SECONDS = 30


async def receive(queue: AbstractQueue, inbox: Inbox) -> bool:
    """Take one message; return False if none has arrived for a while."""
    try:
        async with queue.iterator(timeout=IDLE_SECONDS) as messages:
            message = await anext(messages)
            accepted = inbox.take(message.body, message.headers)
    except TimeoutError:
        return False
    # The consumer was cancelled before: the broker delivers no further message, which would be held here
    # while an execution runs. A runner that stands by may receive the next one. It stores it in the same
    # inbox, and waits there until this one has ended.
    await (message.ack() if accepted else message.reject(requeue=False))
    return True


async def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path(f"{QUEUE}.db"))
    await asyncio.to_thread(inbox.execute_pending)
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(QUEUE)
        while count is None or count > 0:
            if await receive(queue, inbox):
                count = None if count is None else count - 1
            await asyncio.to_thread(inbox.execute_pending)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
