"""The reference runner, with aio-pika. `python runner_aio_pika.py amqp://… [COUNT]`."""

import asyncio
import json
import os
import sys
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from inbox import Inbox

QUEUE = os.environ.get("QUEUE", "pushgate.executions")
EXCHANGE = os.environ.get("EXCHANGE", "pushgate")


async def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    await asyncio.to_thread(inbox.execute_pending)
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(QUEUE)
        await obey_cancellations(inbox, channel)
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


async def obey_cancellations(inbox: Inbox, channel: aio_pika.abc.AbstractChannel) -> None:
    """Cancel what the inbox has as soon as an operator does; the answers to reports say it only later."""

    async def cancel(message: AbstractIncomingMessage) -> None:
        async with message.process():
            body = json.loads(message.body)
            cancelled = body.get("data", body)
            inbox.cancel(cancelled["execution"], cancelled["redrive"])

    # A queue of its own, because each runner needs every message. What it misses is in the answers.
    stops = await channel.declare_queue(exclusive=True)
    await stops.bind(EXCHANGE, "execution.cancelled.#")
    await stops.consume(cancel)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
