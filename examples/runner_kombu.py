"""A runner with kombu, as those who use Celery have it. `python runner_kombu.py amqp://… [COUNT]`."""

import os
import sys
import time
from pathlib import Path

from execution import Inbox, Unusable, read, tell
from kombu import Connection, Queue

# Pushgate, or an operator, has declared it: it is only looked for.
QUEUE = Queue(os.environ.get("QUEUE", "pushgate.executions"), no_declare=True)


def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    inbox = Inbox(Path("inbox.db"))
    inbox.work_off()
    with Connection(url) as connection:
        queue = QUEUE(connection.default_channel)
        while count is None or count > 0:
            # Asked for, not consumed: nothing waits here while an execution runs.
            message = queue.get()
            if message is None:
                time.sleep(1)
                continue
            try:
                request = read(message.body if isinstance(message.body, bytes) else message.body.encode())
            except Unusable as error:
                tell(f"rejected for good: {error}")
                message.reject(requeue=False)
            else:
                inbox.take(request)
                message.ack()
                inbox.work_off()
            count = None if count is None else count - 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
