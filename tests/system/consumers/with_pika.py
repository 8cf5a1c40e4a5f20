"""Pika: the generator of a blocking channel."""

import sys

import pika

from tests.system.consumers.protocol import record, run


def main(url: str, name: str) -> None:
    """Take one request, and run it."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        method, _, body = next(channel.consume(name))
        # No further message is held here.
        channel.cancel()
        request = record(body)
        channel.basic_ack(method.delivery_tag)
        run(request)


main(*sys.argv[1:])
