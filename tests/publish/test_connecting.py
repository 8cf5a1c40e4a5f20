"""Connections to RabbitMQ: addresses, TLS, and what happens when one is lost."""

import asyncio
import dataclasses
import gc
import warnings
from pathlib import Path

import pytest

from gateway.errors import BrokerUnavailable, Interrupted, SettingError
from gateway.publish.brokers import Tls
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.topology import Topology
from testing.broker import Broker
from tests.publish.outbox import request
from tests.publish.proxy import Proxy
from tests.publish.publishing import PROMPTLY, PUBLIC_URL, connected, refusal, whole
from tests.publish.runner import Runner


def test_a_broker_that_is_not_there_is_unavailable(broker: Broker, topology: Topology) -> None:
    """Nothing listens there: the error names the address."""
    refused = refusal(broker.url.replace(f":{broker.port}", ":1"), topology)
    assert isinstance(refused, BrokerUnavailable)
    assert "127.0.0.1:1 " in str(refused)
    assert broker.password not in whole(refused)


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
    assert "secret" not in whole(caught.value)


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
        assert broker.password not in whole(refused)


def test_tls_files_that_are_none_stop_the_start(tmp_path: Path) -> None:
    """One sentence names the fault, before anything is published."""
    with pytest.raises(SettingError, match="TLS files cannot be used"):
        RabbitMQ("amqps://host/", public_url=PUBLIC_URL, tls=Tls(ca=tmp_path / "nothing"))
