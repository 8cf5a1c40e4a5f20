"""A Celery worker that takes requests beside its tasks. `python runner_celery.py amqp://… [COUNT]`.

Never list Pushgate's queue among the queues of a Celery worker (`-Q`, `task_queues`): requests are not Celery
tasks. The worker rejects them, so that they become dead letters, and in structured mode acknowledges them, so
that they are lost. This consumer step receives them instead, and starts a task that executes them.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps
from celery.worker import state
from inbox import Inbox
from kombu import Consumer, Queue

NAME = os.environ.get("QUEUE", "pushgate.executions")
# Pushgate or an operator declares the queue; the runner only checks that it exists.
QUEUE = Queue(NAME, no_declare=True)

app = Celery("runner")
app.conf.update(
    # Celery's own queue, for the task below: one for each machine, because the inbox is a file.
    task_default_queue=f"{NAME}.celery.{socket.gethostname()}",
    worker_redirect_stdouts=False,
    worker_concurrency=1,  # the inbox is executed by one process at a time
    broker_connection_retry_on_startup=True,
)


@app.task
def execute_pending() -> None:
    """Execute what is in the inbox, in a process of Celery's pool."""
    Inbox(Path("inbox.db")).execute_pending()


class Requests(bootsteps.ConsumerStep):
    """Takes requests one by one; stops the worker after `left`, if it is given."""

    left: int | None = None

    def get_consumers(self, channel: Any) -> list[Consumer]:
        """Return the consumer of Pushgate's queue."""
        return [Consumer(channel, queues=[QUEUE], on_message=self.take, prefetch_count=1)]

    def start(self, c: Any) -> None:
        """Open the inbox; `resume` begins with what an earlier worker has not finished."""
        self.inbox = Inbox(Path("inbox.db"))
        [self.consumer] = self.consumers = self.get_consumers(c.connection.channel())
        self.timer = c.timer.call_repeatedly(1, self.resume)

    def stop(self, c: Any) -> None:
        """Stop taking requests."""
        self.timer.cancel()
        super().stop(c)

    def take(self, message: Any) -> None:
        """Store one request, and acknowledge it."""
        # Cancelled before the acknowledgement: no message is held here while an execution runs.
        self.consumer.cancel()
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        if self.inbox.take(body, message.headers):
            message.ack()
        else:
            message.reject(requeue=False)
        if Requests.left is not None:
            Requests.left -= 1
        self.resume()

    def resume(self) -> None:
        """Start the task for a stored request, or else take the next one."""
        if self.inbox.has_pending():
            # After a lost connection, the worker has forgotten the task that it still runs.
            if not state.reserved_requests and not self.inbox.is_executing():
                execute_pending.delay()
        elif Requests.left == 0:
            state.should_stop = os.EX_OK
        else:
            self.inbox.send_reports()
            self.consumer.consume()


app.steps["consumer"].add(Requests)


if __name__ == "__main__":
    app.conf.broker_url = sys.argv[1]
    Requests.left = int(sys.argv[2]) if len(sys.argv) > 2 else None  # noqa: PLR2004
    app.worker_main(["--quiet", "worker", "--loglevel=warning", f"--hostname=runner-{os.getpid()}@%h"])
