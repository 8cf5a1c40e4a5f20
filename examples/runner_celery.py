"""A Celery worker that takes requests beside its tasks. `python runner_celery.py amqp://… [COUNT]`.

Never list Pushgate's queue among the queues of a Celery worker (`-Q`, `task_queues`): requests are not Celery
tasks. The worker rejects them, so that they become dead letters, and in structured mode acknowledges them, so
that they are lost. This consumer step receives them instead, and starts a task that executes them.
"""

import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery, Task, bootsteps
from celery.signals import worker_ready
from execution import read
from inbox import Inbox
from kombu import Consumer, Queue
from step import Unusable, log

NAME = os.environ.get("QUEUE", "pushgate.executions")
# Pushgate or an operator declares the queue; the runner only checks that it exists.
QUEUE = Queue(NAME, no_declare=True)

app = Celery("runner")
app.conf.update(
    task_default_queue=f"{NAME}.celery",  # Celery's own queue, for the task below
    worker_redirect_stdouts=False,
    worker_concurrency=1,  # the inbox is executed by one process at a time
    broker_connection_retry_on_startup=True,
)


@app.task(bind=True)
def execute_pending(self: Task, *, last: bool) -> None:
    """Execute what is in the inbox, in a process of Celery's pool; and stop the worker after the last."""
    Inbox(Path("inbox.db")).execute_pending()
    if last:
        self.app.control.shutdown(destination=[self.request.hostname])


class Requests(bootsteps.ConsumerStep):
    """Takes requests; stops the worker after `left`, if it is given."""

    left: int | None = None

    def get_consumers(self, channel: Any) -> list[Consumer]:
        """Return the consumer of Pushgate's queue."""
        return [Consumer(channel, queues=[QUEUE], on_message=self.take, prefetch_count=1)]

    def take(self, message: Any) -> None:
        """Store one request, acknowledge it, and start the task that executes it."""
        try:
            body = message.body if isinstance(message.body, bytes) else message.body.encode()
            request = read(body, message.headers)
        except Unusable as error:
            log(f"rejected for good: {error}")
            message.reject(requeue=False)
        else:
            Inbox(Path("inbox.db")).add(request)
            message.ack()
        if Requests.left is not None:
            Requests.left -= 1
        execute_pending.delay(last=Requests.left == 0)


app.steps["consumer"].add(Requests)


@worker_ready.connect
def begin(**_: Any) -> None:
    """Execute what an earlier worker has not finished."""
    execute_pending.delay(last=Requests.left == 0)


if __name__ == "__main__":
    app.conf.broker_url = sys.argv[1]
    Requests.left = int(sys.argv[2]) if len(sys.argv) > 2 else None  # noqa: PLR2004
    app.worker_main(["--quiet", "worker", "--loglevel=warning", f"--hostname=runner-{os.getpid()}@%h"])
