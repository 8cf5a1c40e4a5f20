"""The publisher, with a real broker."""

import asyncio
import dataclasses
import gc
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiormq.exceptions import ChannelAccessRefused

from gateway.errors import BrokerUnavailable, Interrupted, PublishError, SettingError, Unroutable
from gateway.publish.cloudevents import routing_key, traceparent
from gateway.publish.rabbitmq import RabbitMQ, Tls
from gateway.publish.topology import Topology
from testing.broker import Broker
from tests.publish.outbox import PLANNED_AT, event, request
from tests.publish.proxy import Proxy
from tests.publish.runner import Runner

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


async def publish_until_refused(publisher: RabbitMQ) -> list[str]:
    """Publish until the queue is full; return the accepted messages."""
    taken: list[str] = []
    try:
        for number in range(100):
            await publisher.publish(request(f"r{number}"))
            taken.append(f"r{number}")
    except Unroutable as error:
        assert "full" in str(error)  # noqa: PT017 - that it is raised shows in what was taken
    return taken


def test_a_published_request_arrives_with_everything_that_the_contract_names(
    broker: Broker, topology: Topology
) -> None:
    """Properties, headers and body are what an independent consumer may rely on."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            [message] = await runner.take(topology.queue, 1)
        assert message.body == b"r1"
        assert message.exchange == topology.exchange
        assert message.routing_key == routing_key(request("r1"))
        assert message.headers == {
            "ce-specversion": "1.0",
            "ce-id": "r1",
            "ce-source": f"{PUBLIC_URL}/api/v1/connections/c1",
            "ce-type": "dev.pushgate.execution.requested.v1",
            "ce-subject": "train at 1234567",
            "ce-time": "2026-11-23T09:00:00+00:00",
            "ce-dataschema": f"{PUBLIC_URL}/schemas/execution-request.json",
            "ce-partitionkey": "c1",
            "traceparent": traceparent(request("r1")),
        }
        assert message.content_type == "application/json"
        assert (message.message_id, message.correlation_id) == ("r1", "delivery of r1")
        assert (message.type, message.app_id) == ("dev.pushgate.execution.requested.v1", "pushgate")
        assert (message.delivery_mode, message.timestamp) == (2, PLANNED_AT)

    asyncio.run(scenario())


def test_a_message_that_no_queue_takes_is_an_error(broker: Broker, topology: Topology) -> None:
    """Mandatory and confirmed: the broker says that it dropped the message, and the error names the key."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            queue = await runner.channel.get_queue(topology.queue)
            await queue.unbind(topology.exchange, "execution.requested.#")
            with pytest.raises(Unroutable, match=r"execution\.requested\.digits\.train"):
                await publisher.publish(request())

    asyncio.run(scenario())


def test_an_event_goes_to_whoever_has_bound_a_queue_for_it(broker: Broker, topology: Topology) -> None:
    """And nowhere else: the queue of the execution requests does not receive it."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(event("before anybody listens"))
            queue = await runner.channel.declare_queue(exclusive=True)
            await queue.bind(topology.exchange, "push.fetched.#")
            await publisher.publish(event("e1"))
            await publisher.publish(event("f1", name="delivery.failed"))
            [message] = await runner.rest(queue.name)
            assert (message.message_id, message.routing_key) == ("e1", "push.fetched.digits")
            assert message.delivery_mode == 2
            assert await runner.count(topology.queue) == 0

    asyncio.run(scenario())


def test_a_full_queue_refuses(broker: Broker, topology: Topology) -> None:
    """`reject-publish`: messages over the limit are refused, and accepted ones are kept."""

    async def scenario() -> None:
        small = dataclasses.replace(topology, max_length=3)
        async with connected(broker.url, small) as publisher, Runner(broker.url) as runner:
            taken = await publish_until_refused(publisher)
            # The limit is soft: the queue may take a few more.
            assert 3 <= len(taken) < 100
            messages = await runner.take(topology.queue, len(taken))
            assert [message.message_id for message in messages] == taken

    asyncio.run(scenario())


def test_what_a_consumer_rejects_is_kept_as_a_dead_letter(broker: Broker, topology: Topology) -> None:
    """A rejected message is in the dead-letter queue, with the reason, its headers unchanged."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            await runner.take(topology.queue, 1, reject=True)
            [dead] = await runner.take(topology.dead_queue, 1)
        assert dead.message_id == "r1"
        assert dead.headers["ce-id"] == "r1"
        assert dead.headers["x-first-death-reason"] == "rejected"
        assert dead.headers["x-first-death-queue"] == topology.queue

    asyncio.run(scenario())


def test_what_fails_too_often_is_a_dead_letter(broker: Broker, topology: Topology) -> None:
    """After `delivery_limit` returns by a consumer, the message goes to the dead-letter queue."""

    async def scenario() -> None:
        limited = dataclasses.replace(topology, delivery_limit=2)
        async with connected(broker.url, limited) as publisher, Runner(broker.url) as runner:
            await publisher.publish(request("r1"))
            queue = await runner.channel.get_queue(topology.queue)
            async with queue.iterator() as incoming:
                for _ in range(3):
                    await (await anext(incoming)).reject(requeue=True)
            [dead] = await runner.take(topology.dead_queue, 1)
        assert dead.message_id == "r1"

    asyncio.run(scenario())


def test_declaring_twice_changes_nothing(broker: Broker, topology: Topology) -> None:
    """A second gateway, or a second start, finds the same declarations."""

    async def scenario() -> None:
        async with connected(broker.url, topology) as first, connected(broker.url, topology) as second:
            await first.publish(request("r1"))
            await second.publish(request("r2"))
            async with Runner(broker.url) as runner:
                assert await runner.count(topology.queue) == 2

    asyncio.run(scenario())


def test_a_checked_topology_is_published_to(broker: Broker, topology: Topology) -> None:
    """An operator has declared it; the publisher only checks it, and publishes."""

    async def scenario() -> None:
        async with connected(broker.url, topology):
            checked = dataclasses.replace(topology, passive=True)
            async with connected(broker.url, checked) as publisher:
                await publisher.publish(request())

    asyncio.run(scenario())


def test_a_checked_topology_that_is_missing_is_named(broker: Broker, topology: Topology) -> None:
    """One sentence says what is missing, and nothing is declared."""
    missing = refusal(broker.url, dataclasses.replace(topology, passive=True))
    assert "does not exist" in str(missing)
    assert f"'{topology.exchange}'" in str(missing)


def test_a_queue_with_other_properties_is_named(broker: Broker, topology: Topology) -> None:
    """One sentence says how the existing queue differs."""

    async def declare() -> None:
        async with connected(broker.url, topology):
            return

    asyncio.run(declare())
    different = refusal(broker.url, dataclasses.replace(topology, delivery_limit=99))
    assert "differs" in str(different)
    assert f"'{topology.queue}'" in str(different)
    assert "x-delivery-limit" in str(different)


def test_a_queue_of_an_earlier_version_is_taken_as_it_is(broker: Broker, topology: Topology) -> None:
    """Its arguments can't be changed: a missing or different consumer time-out is accepted."""

    async def scenario() -> None:
        async with Runner(broker.url) as runner:
            await runner.channel.declare_queue(
                topology.queue, durable=True, arguments=dict(topology.arguments)
            )
            async with connected(broker.url, topology) as publisher:
                await publisher.publish(request())
            await runner.channel.queue_delete(topology.queue)
            async with connected(broker.url, dataclasses.replace(topology, consumer_timeout=60_000)):
                pass
            async with connected(broker.url, topology) as publisher:
                await publisher.publish(request())
                assert await runner.count(topology.queue) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("ordered", [0, 2])
def test_a_new_queue_lets_consumers_hold_messages_for_a_week(
    broker: Broker, topology: Topology, ordered: int
) -> None:
    """RabbitMQ's default of 30 minutes is shorter than many executions; the dead-letter queue keeps it."""

    async def scenario() -> None:
        async with connected(broker.url, dataclasses.replace(topology, ordered=ordered)):
            return

    asyncio.run(scenario())
    found = broker.queue_arguments()
    names = dataclasses.replace(topology, ordered=ordered).partitions(topology.queue) or [topology.queue]
    assert all('{"x-consumer-timeout",604800000}' in found[name] for name in names)
    assert "x-consumer-timeout" not in found[topology.dead_queue]


def test_a_missing_permission_is_named(broker: Broker, topology: Topology) -> None:
    """For a user who may not declare, the error says what the broker refused, without the password."""
    refused = refusal(broker.onlooker_url, topology)
    assert "does not let Pushgate declare" in str(refused)
    assert "onlooker" in str(refused)
    assert broker.password not in _whole(refused)


class Guarded:
    """A connection as of RabbitMQ 4.3, which checks a permission before it looks for a queue.

    The tests' versions do not, so this simulates it.
    """

    def __init__(self, *, but_for: str = "") -> None:
        """Refuse all names but this."""
        self._granted = but_for

    @asynccontextmanager
    async def channel(self) -> AsyncIterator["Guarded"]:
        """Return itself, as the channel."""
        yield self

    async def declare_queue(self, name: str, **_options: Any) -> None:
        """Refuse."""
        await self._look(name)

    async def declare_exchange(self, name: str, **_options: Any) -> None:
        """Refuse."""
        await self._look(name)

    async def _look(self, name: str) -> None:
        if name != self._granted:
            raise ChannelAccessRefused(
                f"ACCESS_REFUSED - access to '{name}' in vhost '/' refused for user 'u'"
            )


@pytest.mark.parametrize("granted", ["", "pushgate"])
def test_a_check_that_is_refused_is_reported_as_that(granted: str) -> None:
    """With an operator's topology: the broker is not down, and nothing is missing."""
    establishing = Topology(passive=True).establish(Guarded(but_for=granted))  # type: ignore[arg-type]
    with pytest.raises(PublishError, match="does not let Pushgate check") as caught:
        asyncio.run(establishing)
    assert not isinstance(caught.value, BrokerUnavailable)
    name = "pushgate.executions" if granted else "pushgate"
    assert f"ACCESS_REFUSED - access to '{name}'" in str(caught.value)


def test_a_wrong_password_is_said_without_it(broker: Broker, topology: Topology) -> None:
    """The error says what to check, and neither it nor its causes contain the password."""
    refused = refusal(broker.url.replace(broker.password, "not-the-secret"), topology)
    assert str(refused) == f"the broker at 127.0.0.1:{broker.port} refuses the user or the password"
    assert "not-the-secret" not in _whole(refused)


def test_an_unknown_virtual_host_is_named(broker: Broker, topology: Topology) -> None:
    """The error quotes the broker."""
    refused = refusal(f"{broker.url}nowhere", topology)
    assert "nowhere" in str(refused)
    assert broker.password not in _whole(refused)


def test_a_broker_that_is_not_there_is_unavailable(broker: Broker, topology: Topology) -> None:
    """Nothing listens there: the error names the address."""
    refused = refusal(broker.url.replace(f":{broker.port}", ":1"), topology)
    assert isinstance(refused, BrokerUnavailable)
    assert "127.0.0.1:1 " in str(refused)
    assert broker.password not in _whole(refused)


def test_a_failed_connect_leaves_nothing_to_the_garbage_collector(topology: Topology) -> None:
    """It may run in any thread, where aio-pika's finalizer cannot close what was left open."""

    async def scenario() -> list[str]:
        publisher = RabbitMQ("amqp://127.0.0.1:1/", public_url=PUBLIC_URL, topology=topology)
        with pytest.raises(BrokerUnavailable):
            await publisher.open()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await asyncio.to_thread(gc.collect)
        return [str(one.message) for one in caught]

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(scenario()) == []
    finally:
        gc.enable()


@pytest.mark.parametrize("url", ["amqp://user:secret@host:port/", "amqp://user:secret@[broken/", "secret"])
def test_a_url_that_cannot_be_read_stops_the_start_without_being_shown(url: str) -> None:
    """It may hold the password."""
    with pytest.raises(SettingError) as caught:
        RabbitMQ(url, public_url=PUBLIC_URL)
    assert "secret" not in _whole(caught.value)


def test_a_lost_connection_fails_all_who_wait_at_once(broker: Broker, topology: Topology) -> None:
    """The broker had them all, but unconfirmed: each publish fails promptly, and the next one works."""

    async def scenario() -> None:
        async with (
            Proxy(broker.url) as proxy,
            Runner(broker.url) as runner,
            connected(proxy.url, topology) as publisher,
        ):
            proxy.hold_answers()
            publishing = [publisher.publish(request(f"r{number}")) for number in range(64)]
            waiting = asyncio.gather(*publishing, return_exceptions=True)
            await runner.until_holds(topology.queue, 64)
            async with asyncio.timeout(PROMPTLY):
                await proxy.cut()
                outcomes = await waiting
            assert {type(outcome) for outcome in outcomes} == {Interrupted}
            proxy.heal()
            await publisher.open()
            await publisher.publish(request("r64"))
            assert await runner.count(topology.queue) == 65

    asyncio.run(scenario())


def test_a_connection_lost_while_messages_still_wait_to_be_sent_fails_them_too(
    broker: Broker, topology: Topology
) -> None:
    """The network is blocked: publishes still in our buffers fail promptly too."""

    async def scenario() -> None:
        large = dataclasses.replace(request(), body=b"x" * 1_000_000)
        async with Proxy(broker.url) as proxy, connected(proxy.url, topology) as publisher:
            proxy.freeze()
            publishing = [publisher.publish(dataclasses.replace(large, id=f"r{n}")) for n in range(64)]
            waiting = asyncio.gather(*publishing, return_exceptions=True)
            # Each task runs until it waits.
            await asyncio.sleep(0)
            async with asyncio.timeout(PROMPTLY):
                await proxy.cut()
                outcomes = await waiting
            assert {type(outcome) for outcome in outcomes} == {Interrupted}

    asyncio.run(scenario())


def test_a_confirm_that_does_not_come_is_not_waited_for_forever(broker: Broker, topology: Topology) -> None:
    """After `confirm_within` the publish fails, and the connection is given up."""

    async def scenario() -> None:
        async with (
            Proxy(broker.url) as proxy,
            connected(proxy.url, topology, confirm_within=0.2) as publisher,
        ):
            proxy.hold_answers()
            with pytest.raises(BrokerUnavailable, match=r"within 0\.2 s"):
                await publisher.publish(request("r1"))
            with pytest.raises(BrokerUnavailable, match="no connection"):
                await publisher.publish(request("r2"))
            await proxy.cut()

    asyncio.run(scenario())


def test_whoever_cancels_a_publish_is_obeyed(broker: Broker, topology: Topology) -> None:
    """A cancellation from outside is not a lost connection: it propagates."""

    async def scenario() -> None:
        async with Proxy(broker.url) as proxy, connected(proxy.url, topology) as publisher:
            proxy.hold_answers()
            publishing = asyncio.create_task(publisher.publish(request()))
            async with Runner(broker.url) as runner:
                await runner.until_holds(topology.queue, 1)
            publishing.cancel()
            await asyncio.wait({publishing})
            assert publishing.cancelled()
            await proxy.cut()

    asyncio.run(scenario())


def test_the_next_address_is_tried_where_one_is_away(broker: Broker, topology: Topology) -> None:
    """One node of a cluster is down; if all are, the error has the reason of the last."""

    async def scenario() -> None:
        away = broker.url.replace(f":{broker.port}", ":1")
        async with connected(f"{away}, {broker.url}", topology) as publisher:
            await publisher.publish(request())

    asyncio.run(scenario())
    away = [broker.url.replace(f":{broker.port}", f":{port}") for port in (1, 2)]
    assert "127.0.0.1:2 " in str(refusal(",".join(away), topology))


def test_the_next_address_is_tried_where_one_refuses(broker: Broker, topology: Topology) -> None:
    """A node whose virtual host is down, or that lacks the user yet; if all refuse, one error is raised."""

    async def scenario(first: str) -> None:
        async with connected(f"{first},{broker.url}", topology) as publisher:
            await publisher.publish(request())

    broker.virtual_host_that_is_down("down")
    wrong = broker.url.replace(broker.password, "not-the-secret")
    for first in (f"{broker.url}down", f"{broker.url}nowhere", wrong, broker.onlooker_url):
        asyncio.run(scenario(first))
    away = broker.url.replace(f":{broker.port}", ":1")
    assert "virtual host 'down'" in str(refusal(f"{broker.url}down,{away}", topology))


def test_tls_with_an_authority_and_a_certificate_of_ones_own(broker: Broker, topology: Topology) -> None:
    """Without the authority, or without a client certificate, connecting fails."""

    async def scenario() -> None:
        own = broker.certified
        tls = Tls(ca=own.authority, certificate=own.certificate, key=own.key)
        async with connected(broker.tls_url, topology, tls=tls) as publisher:
            await publisher.publish(request())

    asyncio.run(scenario())
    for tls in (None, Tls(ca=broker.certified.authority)):
        refused = refusal(broker.tls_url, topology, tls=tls)
        assert isinstance(refused, BrokerUnavailable)
        assert broker.password not in _whole(refused)


def test_tls_files_that_are_none_stop_the_start(tmp_path: Path) -> None:
    """One sentence names the fault, before anything is published."""
    with pytest.raises(SettingError, match="TLS files cannot be used"):
        RabbitMQ("amqps://host/", public_url=PUBLIC_URL, tls=Tls(ca=tmp_path / "nothing"))


def test_a_lane_has_a_queue_of_its_own(broker: Broker, topology: Topology) -> None:
    """A request of an undeclared lane is refused, with a reason; the others use the usual queue."""
    lanes = dataclasses.replace(topology, lanes=("high",))

    async def scenario() -> None:
        async with connected(broker.url, lanes) as publisher, Runner(broker.url) as runner:
            await publisher.publish(dataclasses.replace(request("r1"), lane="high"))
            await publisher.publish(request("r2"))
            [message] = await runner.take(f"{topology.queue}.high", 1)
            assert message.message_id == "r1"
            assert message.routing_key == "lane.high.execution.requested.digits.train"
            assert await runner.count(topology.queue) == 1
            with pytest.raises(Unroutable, match=r"lane\.low"):
                await publisher.publish(dataclasses.replace(request("r3"), lane="low"))
            await runner.channel.queue_delete(f"{topology.queue}.high")

    asyncio.run(scenario())


def _whole(error: BaseException | None) -> str:
    """Return everything that a traceback would show of an error."""
    if error is None:
        return ""
    return f"{error!s} {error!r} {_whole(error.__cause__)}"
