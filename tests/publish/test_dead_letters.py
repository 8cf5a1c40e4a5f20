"""The dead letters at the broker: counted, read and removed."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import BrokerUnavailable, PublishError
from gateway.publish.brokers import Brokers, Tls
from gateway.publish.dead_letters import count_dead_letters, read_dead_letters, remove_dead_letters
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
        with pytest.raises(PublishError, match=r"dead letters in nowhere\.dead cannot be read"):
            await count_dead_letters(brokers, replace(topology, queue="nowhere"))
        away = Brokers(f"amqp://127.0.0.1:{free_ports(1)[0]}", Tls())
        with pytest.raises(BrokerUnavailable):
            await count_dead_letters(away, topology)

    asyncio.run(scenario())


def test_dead_letters_are_read_as_often_as_somebody_looks(broker: Broker, topology: Topology) -> None:
    """RabbitMQ 4 drops a message that was returned 20 times: before that, a copy takes its place."""
    brokers = Brokers(broker.url, Tls())
    began_at = datetime.now(UTC).replace(microsecond=0)

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            for name in ("r1", "r2"):
                await publisher.publish(request(name))
            [sent, _] = await runner.take(topology.queue, 2, reject=True)
            await runner.until_holds(topology.dead_queue, 2)
            for _ in range(25):
                letters, count = await read_dead_letters(brokers, topology)
                assert (sorted(letter.id for letter in letters), count) == (["r1", "r2"], 2)
            [letter, _] = letters
            assert (letter.kind, letter.cause, letter.queue) == (sent.type, "rejected", topology.queue)
            assert letter.since is not None
            assert began_at <= letter.since <= datetime.now(UTC)
            kept = {message.message_id: message for message in await runner.take(topology.dead_queue, 2)}
            copy = kept["r1"]
            returns = copy.headers["x-delivery-count"]
            assert isinstance(returns, int)
            assert returns < 20
            of_sender = {name: copy.headers[name] for name in sent.headers}
            assert (copy.body, copy.correlation_id, of_sender) == (
                sent.body,
                sent.correlation_id,
                sent.headers,
            )

    asyncio.run(scenario())


def test_only_the_dead_letters_that_are_named_are_removed(broker: Broker, topology: Topology) -> None:
    """One that died again since somebody decided about it stays."""
    brokers = Brokers(broker.url, Tls())
    later = datetime.now(UTC) + timedelta(hours=1)

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            for name in ("r1", "r2", "r3"):
                await publisher.publish(request(name))
            await runner.take(topology.queue, 3, reject=True)
            await runner.until_holds(topology.dead_queue, 3)
            ids = {"r1", "r3", "another"}
            earlier = later - timedelta(days=1)
            assert await remove_dead_letters(brokers, topology, ids, before=earlier) == set()
            assert await remove_dead_letters(brokers, topology, ids, before=later) == {"r1", "r3"}
            letters, _ = await read_dead_letters(brokers, topology)
            assert [letter.id for letter in letters] == ["r2"]

    asyncio.run(scenario())
