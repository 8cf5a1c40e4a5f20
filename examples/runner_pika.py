"""A runner with pika, which blocks. `python runner_pika.py amqp://… [COUNT]`."""

import os
import sys
from pathlib import Path

import pika
from execution import LIMIT, Done, Unusable, execute, read, tell

QUEUE = os.environ.get("QUEUE", "pushgate.executions")


def main(url: str, count: int | None) -> None:
    """Take requests one by one; end after so many, if a number is given."""
    done = Done(Path("done.db"))
    # An execution may take longer than the broker waits for a sign of life: without heartbeats it waits.
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        for method, properties, body in channel.consume(QUEUE):
            tag = method.delivery_tag
            try:
                request = read(body)
                if request["id"] not in done:
                    tell(f"{request['id']} ended with status {execute(request)}")
                    done.add(request["id"])
            except Unusable as error:
                tell(f"rejected for good: {error}")
                channel.basic_reject(tag, requeue=False)
            except OSError as error:
                tries = (properties.headers or {}).get("x-delivery-count", 0) + 1
                tell(f"try {tries} of {LIMIT} has failed: {error}")
                channel.basic_reject(tag, requeue=tries < LIMIT)
            else:
                channel.basic_ack(tag)
            if count is not None and (count := count - 1) == 0:
                return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004
