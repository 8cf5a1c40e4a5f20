"""A runner with pika, a blocking client. `python runner_pika.py amqp://… [COUNT]`."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pika
from inbox import Inbox

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    inbox.execute_pending()
    with ThreadPoolExecutor(1) as pool, pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        while count is None or count > 0:
            # `get` instead of `consume`: no message is held here while an execution runs.
            method, properties, body = channel.basic_get(QUEUE)
            if method is None:
                connection.sleep(1)
            else:
                if inbox.take(body, properties.headers):
                    channel.basic_ack(method.delivery_tag)
                else:
                    channel.basic_reject(method.delivery_tag, requeue=False)
                count = None if count is None else count - 1
            executing = pool.submit(inbox.execute_pending)
            while not executing.done():
                # Sends the heartbeats, without which the broker would close the connection.
                connection.sleep(0.1)
            executing.result()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
