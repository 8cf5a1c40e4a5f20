"""A runner with FastStream. `python runner_faststream.py amqp://… [COUNT]`."""

import asyncio
import os
import sys
from pathlib import Path

from execution import LIMIT, Done, Unusable, execute, read, tell
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue
from faststream.rabbit.schemas import Channel

# Pushgate, or an operator, has declared it: it is only looked for.
QUEUE = RabbitQueue(os.environ.get("QUEUE", "pushgate.executions"), declare=False)


def application(url: str, count: int | None) -> FastStream:
    """Return an application that takes requests one by one, and ends after so many, if a number is given."""
    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=1), logger=None)
    app, done = FastStream(broker), Done(Path("done.db"))
    left = [count]

    @broker.subscriber(QUEUE, ack_policy=AckPolicy.MANUAL)
    async def take(message: RabbitMessage) -> None:
        try:
            request = read(message.body)
            if request["id"] not in done:
                tell(f"{request['id']} ended with status {await asyncio.to_thread(execute, request)}")
                done.add(request["id"])
        except Unusable as error:
            tell(f"rejected for good: {error}")
            await message.reject(requeue=False)
        except OSError as error:
            tries = int(message.headers.get("x-delivery-count", 0)) + 1
            tell(f"try {tries} of {LIMIT} has failed: {error}")
            await message.reject(requeue=tries < LIMIT)
        else:
            await message.ack()
        if left[0] is not None:
            left[0] -= 1
            if left[0] == 0:
                app.exit()

    return app


if __name__ == "__main__":
    asyncio.run(application(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None).run())  # noqa: PLR2004
