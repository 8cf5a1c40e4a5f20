"""A runner with kombu, as those who use Celery have it. `python runner_kombu.py amqp://… [COUNT]`."""

import os
import sys
from pathlib import Path
from typing import Any

from execution import LIMIT, Done, Unusable, execute, read, tell
from kombu import Connection, Consumer, Queue

# Pushgate, or an operator, has declared it: it is only looked for.
QUEUE = Queue(os.environ.get("QUEUE", "pushgate.executions"), no_declare=True)


def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    done = Done(Path("done.db"))
    left = count

    def take(message: Any) -> None:
        nonlocal left
        try:
            request = read(message.body if isinstance(message.body, bytes) else message.body.encode())
            if request["id"] not in done:
                tell(f"{request['id']} ended with status {execute(request)}")
                done.add(request["id"])
        except Unusable as error:
            tell(f"rejected for good: {error}")
            message.reject(requeue=False)
        except OSError as error:
            tries = message.headers.get("x-delivery-count", 0) + 1
            tell(f"try {tries} of {LIMIT} has failed: {error}")
            message.reject(requeue=tries < LIMIT)
        else:
            message.ack()
        left = None if left is None else left - 1

    with (
        Connection(url) as connection,
        Consumer(connection.default_channel, queues=[QUEUE], on_message=take, prefetch_count=1),
    ):
        while left is None or left > 0:
            connection.drain_events()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
