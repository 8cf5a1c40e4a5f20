"""A runner with FastStream. `python runner_faststream.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from pathlib import Path

from execution import read
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue
from faststream.rabbit.schemas import Channel
from inbox import Inbox
from step import Unusable, log

# Pushgate or an operator declares the queue; the runner only checks that it exists.
QUEUE = RabbitQueue(os.environ.get("QUEUE", "pushgate.executions"), declare=False)


def application(url: str, count: int | None) -> FastStream:
    """Return an application that processes requests one by one, and stops after `count`, if it is given."""
    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=1), logger=None)
    app, inbox = FastStream(broker), Inbox(Path("inbox.db"))
    left, one_at_a_time = [count], asyncio.Lock()

    @app.on_startup
    async def begin() -> None:
        await asyncio.to_thread(inbox.execute_pending)

    # FastStream delivers the next message while an execution runs. It waits here for the lock, at most as
    # long as the consumer time-out of the queue.
    @broker.subscriber(QUEUE, ack_policy=AckPolicy.MANUAL)
    async def take(message: RabbitMessage) -> None:
        async with one_at_a_time:
            try:
                request = read(message.body, message.headers)
            except Unusable as error:
                log(f"rejected for good: {error}")
                await message.reject(requeue=False)
            else:
                inbox.add(request)
                await message.ack()
                await asyncio.to_thread(inbox.execute_pending)
        if left[0] is not None:
            left[0] -= 1
            if left[0] == 0:
                app.exit()

    return app


if __name__ == "__main__":
    asyncio.run(application(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None).run())  # noqa: PLR2004
