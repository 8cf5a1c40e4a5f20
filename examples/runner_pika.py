"""A runner with pika, which blocks. `python runner_pika.py amqp://… [COUNT]`."""

import os
import sys
from pathlib import Path

import pika
from execution import Inbox, Unusable, read, tell

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    inbox = Inbox(Path("inbox.db"))
    inbox.work_off()
    # An execution may take longer than the broker waits for a sign of life: without heartbeats it waits.
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        while count is None or count > 0:
            # Asked for, not consumed: nothing waits here while an execution runs.
            method, _, body = channel.basic_get(QUEUE)
            if method is None:
                connection.sleep(1)
                continue
            try:
                request = read(body)
            except Unusable as error:
                tell(f"rejected for good: {error}")
                channel.basic_reject(method.delivery_tag, requeue=False)
            else:
                inbox.take(request)
                channel.basic_ack(method.delivery_tag)
                inbox.work_off()
            count = None if count is None else count - 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
