"""Publish to a broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.errors import PublishError
from gateway.publish.brokers import Tls
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology

PUBLIC_URL = "https://push.example"
PROMPTLY = 5.0


@asynccontextmanager
async def connected(
    url: str, topology: Topology, *, confirm_within: float = 30.0, tls: Tls | None = None
) -> AsyncIterator[RabbitMQ]:
    """Yield a connected publisher."""
    publisher = RabbitMQ(
        url, public_url=PUBLIC_URL, topology=topology, confirm_within=confirm_within, tls=tls
    )
    try:
        await publisher.open()
        yield publisher
    finally:
        await publisher.close()


def refusal(url: str, topology: Topology, *, tls: Tls | None = None) -> PublishError:
    """Return the error of an attempt to connect."""

    async def scenario() -> PublishError:
        with pytest.raises(PublishError) as caught:
            async with connected(url, topology, tls=tls):
                raise AssertionError("connected")
        return caught.value

    return asyncio.run(scenario())


def whole(error: BaseException | None) -> str:
    """Return everything that a traceback would show of an error."""
    if error is None:
        return ""
    return f"{error!s} {error!r} {whole(error.__cause__)}"
