"""The number of dead letters, for notifications."""

import asyncio
from dataclasses import replace

import pytest

from gateway.errors import BrokerUnavailable, PublishError
from gateway.publish.brokers import Brokers, Tls
from gateway.publish.dead_letters import count_dead_letters
from gateway.publish.topology import Topology
from testing.broker import Broker
from testing.ports import free_ports
from tests.publish.outbox import request
from tests.publish.publishing import connected
from tests.publish.runner import Runner


def test_dead_letters_are_counted_and_stay_where_they_are(broker: Broker, topology: Topology) -> None:
    """Without a queue there is an error that names it, not a zero."""
    brokers = Brokers(broker.url, Tls())

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            assert await count_dead_letters(brokers, topology) == 0
            for name in ("r1", "r2"):
                await publisher.publish(request(name))
            await runner.take(topology.queue, 2, reject=True)
            # The broker moves them a moment later.
            async with asyncio.timeout(10):
                while await count_dead_letters(brokers, topology) < 2:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.05)
            assert len(await runner.take(topology.dead_queue, 2)) == 2
        with pytest.raises(PublishError, match=r"dead letters in nowhere\.dead cannot be counted"):
            await count_dead_letters(brokers, replace(topology, queue="nowhere"))
        away = Brokers(f"amqp://127.0.0.1:{free_ports(1)[0]}", Tls())
        with pytest.raises(BrokerUnavailable):
            await count_dead_letters(away, topology)

    asyncio.run(scenario())
