"""Kombu: a consumer, and the events of its connection."""

import sys
from typing import Any

from kombu import Connection, Queue

from tests.system.consumers.protocol import record, run


def main(url: str, name: str) -> None:
    """Take one request, and run it."""
    taken: list[Any] = []
    with Connection(url) as connection:
        queue = Queue(name, no_declare=True)
        with connection.Consumer([queue], on_message=taken.append, prefetch_count=1):
            while not taken:
                connection.drain_events()
        # The consumer has been cancelled: no further message is held here.
        [message] = taken
        request = record(message.body if isinstance(message.body, bytes) else message.body.encode())
        message.ack()
        run(request)


main(*sys.argv[1:])
