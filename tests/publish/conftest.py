"""What the tests of publish share: names of a test's own at the one broker."""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from gateway.publish.topology import Topology
from tests.broker import Broker
from tests.publish.runner import Runner


@pytest.fixture
def topology(broker: Broker) -> Iterator[Topology]:
    """Give names that nobody else uses; whatever has them afterwards is removed."""
    name = f"test-{uuid.uuid4().hex}"
    topology = Topology(exchange=name, queue=f"{name}.executions")
    yield topology
    asyncio.run(_remove(broker, topology))


async def _remove(broker: Broker, topology: Topology) -> None:
    async with Runner(broker.url) as runner:
        for queue in (topology.queue, topology.dead_queue):
            await runner.channel.queue_delete(queue)
        for exchange in (topology.exchange, topology.dead_exchange):
            await runner.channel.exchange_delete(exchange)
