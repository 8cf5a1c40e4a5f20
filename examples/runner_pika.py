"""A runner with pika, a blocking client. `python runner_pika.py amqp://… [COUNT]`."""

import os
import sys
from pathlib import Path

import pika
from execution import read
from inbox import Inbox
from step import Unusable, log

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    inbox.execute_pending()
    # An execution may last longer than the broker's heartbeat time-out, so heartbeats are switched off.
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        while count is None or count > 0:
            # `get` instead of `consume`: no message is held here while an execution runs.
            method, properties, body = channel.basic_get(QUEUE)
            if method is None:
                connection.sleep(1)
                continue
            try:
                request = read(body, properties.headers)
            except Unusable as error:
                log(f"rejected for good: {error}")
                channel.basic_reject(method.delivery_tag, requeue=False)
            else:
                inbox.add(request)
                channel.basic_ack(method.delivery_tag)
                inbox.execute_pending()
            count = None if count is None else count - 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
