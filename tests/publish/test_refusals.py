"""Messages that the broker refuses: the relay finds them, and no other message waits for them."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from gateway.errors import Ambiguous, BrokerUnavailable, Interrupted, Undeliverable, Unroutable
from gateway.publish.cloudevents import Stored
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from gateway.store.executions import StoredRequest
from testing.broker import Broker
from tests.publish.outbox import MemoryOutbox, request
from tests.publish.runner import Runner

SMALL, LARGE = 100_000, 200_000
RABBITMQS_OWN = 134_217_728


@pytest.fixture
def strict(broker: Broker) -> Iterator[Broker]:
    """Return a broker with a small message size limit; RabbitMQ 4 has 16 MiB."""
    broker.largest_message(SMALL)
    yield broker
    broker.largest_message(RABBITMQS_OWN)


def publisher(broker: Broker, topology: Topology) -> RabbitMQ:
    """Return a publisher that is not connected yet."""
    return RabbitMQ(broker.url, public_url="https://push.example", topology=topology)


def enlarge(outbox: MemoryOutbox, name: str) -> None:
    """Make a planned request larger than the broker's limit."""
    outbox.requests[name] = dataclasses.replace(outbox.requests[name], body=b"x" * LARGE)


def test_a_message_that_is_too_large_ends_with_what_the_broker_says(
    strict: Broker, topology: Topology
) -> None:
    """It is undeliverable; the next of its connection and all others are published; no outage is reported."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        for number in range(20):
            for connection in range(10):
                outbox.plan(f"{connection}/{number}", connection=f"c{connection}")
        bad = ["3/0", "3/5", "7/5"]
        for name in bad:
            enlarge(outbox, name)
        with capture_logs() as logs:
            async with Runner(strict.url) as runner:
                async with outbox.relayed_by(publisher(strict, topology)):
                    await outbox.until(lambda: len(outbox.published()) == 200 - len(bad))
                    await outbox.until(lambda: _states(outbox, bad) == {"undeliverable"})
                messages = await runner.rest(topology.queue)
        reasons = {outbox.requests[name].reason for name in bad}
        said = "PRECONDITION_FAILED - message size 200000 is larger than configured max size 100000"
        assert reasons == {f"the broker refuses the message: {said}"}
        for connection in range(10):
            arrived = [one.message_id for one in messages if f"{one.message_id}".startswith(f"{connection}/")]
            wanted = [f"{connection}/{number}" for number in range(20)]
            assert list(dict.fromkeys(arrived)) == [name for name in wanted if name not in bad]
        warned = {log["event"] for log in logs if log["log_level"] in {"warning", "error"}}
        assert warned == {"message cannot be delivered"}

    asyncio.run(scenario())


def _states(outbox: MemoryOutbox, names: list[str]) -> set[str]:
    return {outbox.requests[name].state for name in names}


def test_the_publisher_distinguishes_a_refusal_from_an_outage(strict: Broker, topology: Topology) -> None:
    """A message alone in flight is at fault; of several, one is, but it is unknown which."""

    async def scenario() -> None:
        large = dataclasses.replace(request("large"), body=b"x" * LARGE)
        mine = publisher(strict, topology)
        await mine.open()
        with pytest.raises(Undeliverable, match="message size 200000 is larger"):
            await mine.publish(large)
        await mine.open()
        outcomes = await asyncio.gather(
            *[mine.publish(one) for one in (large, request("r1"), request("r2"))], return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {Ambiguous}
        await mine.close()

    asyncio.run(scenario())


def test_a_key_that_the_user_may_not_use_concerns_its_messages_only(
    broker: Broker, topology: Topology
) -> None:
    """An operator can grant it: until then the message stays pending, with the reason."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        declaring = publisher(broker, topology)
        await declaring.open()
        await declaring.close()
        broker.topic_permission(topology.exchange, write="^execution.requested.digits.*")
        outbox.plan("refused", connection="c1", project="secret")
        outbox.plan("behind", connection="c1")
        for number in range(5):
            outbox.plan(f"free {number}", connection=f"f{number}")
        async with outbox.relayed_by(publisher(broker, topology)):
            await outbox.until(lambda: len(outbox.published()) == 5)
            await outbox.until(lambda: outbox.requests["refused"].reason is not None)
            assert "ACCESS_REFUSED" in str(outbox.requests["refused"].reason)
            assert _states(outbox, ["refused", "behind"]) == {"pending"}
            await asyncio.to_thread(broker.topic_permission, topology.exchange, write=".*")
            await outbox.until_all_are_published()
        assert outbox.published()[:1] == ["refused"]

    asyncio.run(scenario())


def test_a_message_that_cannot_be_completed_stops_no_other(broker: Broker, topology: Topology) -> None:
    """One never can, one not yet, and one meets a bug: each has its reason; the others are published."""
    ends: dict[str, Exception] = {
        "never": Undeliverable("its package has expired"),
        "not yet": Unroutable("the storage does not answer"),
        "a bug": KeyError("url"),
    }

    async def complete(stored: StoredRequest) -> StoredRequest:
        if stored.id in ends:
            raise ends[stored.id]
        return dataclasses.replace(stored, body=b"signed " + stored.body)

    async def scenario() -> None:
        outbox = MemoryOutbox()
        for name in ends:
            outbox.plan(name, connection=name)
            outbox.plan(f"behind {name}", connection=name)
        for number in range(5):
            outbox.plan(f"free {number}", connection=f"f{number}")
        async with (
            Runner(broker.url) as runner,
            outbox.relayed_by(publisher(broker, topology), complete=complete),
        ):
            await outbox.until(lambda: len(outbox.published()) == 6)
            await outbox.until(lambda: all(outbox.requests[name].reason for name in ends))
            assert {name: (outbox.requests[name].state, outbox.requests[name].reason) for name in ends} == {
                "never": ("undeliverable", "its package has expired"),
                "not yet": ("pending", "the storage does not answer"),
                "a bug": ("pending", "the message could not be completed (KeyError)"),
            }
            assert "behind never" in outbox.published()
            del ends["not yet"], ends["a bug"]
            await outbox.until(lambda: len(outbox.published()) == 10)
            messages = await runner.rest(topology.queue)
        assert {one.body.decode() for one in messages} == {f"signed {name}" for name in outbox.published()}

    asyncio.run(scenario())


class Fragile:
    """A publisher whose connection ends at certain messages, as behind a proxy with a size limit."""

    def __init__(self, is_fatal: Callable[[Stored], bool]) -> None:
        """Begin without a connection."""
        self._is_fatal = is_fatal
        self._is_open = False
        self._lost = asyncio.Event()
        self.on_their_way = 0

    async def open(self) -> None:
        """See the protocol."""
        if not self._is_open:
            self._is_open, self._lost = True, asyncio.Event()

    async def publish(self, stored: Stored) -> None:
        """Publish, unless the connection is lost before that has ended."""
        lost = self._lost
        if not self._is_open:
            raise BrokerUnavailable("there is no connection to the broker")
        if self._is_fatal(stored):
            self._is_open = False
            lost.set()
        await asyncio.sleep(0)
        if lost.is_set():
            raise Interrupted("the connection was reset by peer")

    async def close(self) -> None:
        """See the protocol."""


def test_a_message_over_which_the_connection_ends_is_found_out() -> None:
    """The broker gives no reason: the message is the one alone in flight at each of several losses."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        for number in range(3):
            for connection in range(5):
                outbox.plan(f"{connection}/{number}", connection=f"c{connection}")
        enlarge(outbox, "2/1")
        fragile = Fragile(lambda stored: len(stored.body) == LARGE)
        async with outbox.relayed_by(fragile):
            await outbox.until(lambda: outbox.requests["2/1"].reason is not None)
            await outbox.until(lambda: len(outbox.published()) == 13)
            outbox.plan("later", connection="c0")
            await outbox.until(lambda: "later" in outbox.published())
        assert _states(outbox, ["2/1", "2/2"]) == {"pending"}
        assert outbox.requests["2/1"].reason == (
            "the connection ends each time this message is sent alone: the connection was reset by peer"
        )

    asyncio.run(scenario())


def test_a_connection_that_ends_by_chance_blames_no_message() -> None:
    """Messages in flight when a broker restarts are published, without a reason."""

    async def scenario() -> None:
        outbox = MemoryOutbox()
        for connection in range(5):
            outbox.plan(f"{connection}/0", connection=f"c{connection}")
        ends = iter([True, False, False, True])
        fragile = Fragile(lambda _stored: next(ends, False))
        async with outbox.relayed_by(fragile):
            await outbox.until_all_are_published()
        assert {one.reason for one in outbox.requests.values()} == {None}

    asyncio.run(scenario())
