"""A runner with FastStream. `python runner_faststream.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from contextlib import aclosing
from pathlib import Path

from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import Channel
from faststream.rabbit.subscriber import RabbitSubscriber
from inbox import Inbox

# Pushgate or an operator declares the queue; the runner only checks that it exists.
QUEUE = RabbitQueue(os.environ.get("QUEUE", "pushgate.executions"), declare=False)
IDLE_SECONDS = 30


async def receive(subscriber: RabbitSubscriber, inbox: Inbox) -> bool:
    """Take one message; return False if none has arrived for a while."""
    # A handler would hold the next message while an execution runs. This consumer is cancelled before the
    # acknowledgement, so that there is none.
    messages = aiter(subscriber)
    try:
        # A generator, although FastStream does not declare it.
        async with aclosing(messages), asyncio.timeout(IDLE_SECONDS):  # type: ignore[type-var]
            message = await anext(messages)
            accepted = inbox.take(message.body, message.headers)
    except TimeoutError:
        return False
    await (message.ack() if accepted else message.reject(requeue=False))
    return True


async def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    await asyncio.to_thread(inbox.execute_pending)
    async with RabbitBroker(url, default_channel=Channel(prefetch_count=1), logger=None) as broker:
        subscriber = broker.subscriber(QUEUE, ack_policy=AckPolicy.MANUAL)
        await subscriber.start()
        while count is None or count > 0:
            if await receive(subscriber, inbox):
                count = None if count is None else count - 1
            await asyncio.to_thread(inbox.execute_pending)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
