"""A runner with kombu, the AMQP library of Celery. `python runner_kombu.py amqp://… [COUNT]`."""

import os
import sys
import time
from pathlib import Path

from inbox import Inbox
from kombu import Connection, Queue

# Pushgate or an operator declares the queue; the runner only checks that it exists.
QUEUE = Queue(os.environ.get("QUEUE", "pushgate.executions"), no_declare=True)


def main(url: str, count: int | None) -> None:
    """Process requests one by one; stop after `count` requests, if it is given."""
    inbox = Inbox(Path("inbox.db"))
    inbox.execute_pending()
    with Connection(url) as connection:
        queue = QUEUE(connection.default_channel)
        while count is None or count > 0:
            # `get` instead of `consume`: no message is held here while an execution runs.
            message = queue.get()
            if message is None:
                time.sleep(1)
            else:
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                if inbox.take(body, message.headers):
                    message.ack()
                else:
                    message.reject(requeue=False)
                count = None if count is None else count - 1
            inbox.execute_pending()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
