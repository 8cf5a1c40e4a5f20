"""The relay with an outbox, a publisher and a clock of the test."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence

import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    Ambiguous,
    BrokerUnavailable,
    Interrupted,
    Undeliverable,
    Unroutable,
)
from gateway.metrics import PUBLISHED, UNDELIVERABLE
from gateway.publish.cloudevents import Stored
from gateway.store.executions import StoredRequest
from tests.publish.scripted import NEVER, Asked, Clock, Scripted, relaying, until


def test_a_refused_connection_is_left_alone_for_twice_as_long_each_time(clock: Clock) -> None:
    """Half a second at first, half a minute at most; a success resets the pause."""
    refusal = Unroutable("no queue takes it")
    publisher, outbox = Scripted(), Asked("a/1", "a/2")
    publisher.answers = {"a/1": [refusal] * 9, "a/2": [refusal] * 1}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            for tries, pause in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5], start=1):
                await until(lambda: len(publisher.sent) >= tries, "it is sent")  # noqa: B023
                await outbox.asked_again()
                sent = len(publisher.sent)
                clock.now += 0.74 * pause
                await outbox.asked_again()
                assert len(publisher.sent) == sent, (tries, "too early")
                assert outbox.asked[-1][1] == {"a"}
                clock.now += 0.26 * pause
                await until(lambda: len(publisher.sent) > sent, "it is tried again")  # noqa: B023
            await outbox.until_all_are_published()

    asyncio.run(scenario())
    assert publisher.sent == ["a/1"] * 10 + ["a/2"] * 2
    assert outbox.refused == ["a/1", "a/2"]


def test_a_refusal_with_a_new_reason_is_recorded(clock: Clock) -> None:
    """The same text is not logged again."""
    publisher, outbox = Scripted(), Asked("a/1")
    publisher.answers = {"a/1": [Unroutable("no queue"), Unroutable("no queue"), Unroutable("full")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            for reason in ("no queue", "no queue", "full"):
                await outbox.until(lambda: outbox.requests["a/1"].reason == reason)  # noqa: B023
                await outbox.asked_again()
                clock.now += 10
            await outbox.until_all_are_published()

    asyncio.run(scenario())
    assert outbox.refused == ["a/1", "a/1"]


@pytest.mark.usefixtures("clock")
def test_a_message_that_is_undeliverable_holds_up_nobody() -> None:
    """The next of its connection is sent at once, without a poll; it is counted, with its reason stored."""
    counted = [UNDELIVERABLE.labels("request"), PUBLISHED]
    before = [one._value.get() for one in counted]  # noqa: SLF001 - there is no other way to read it
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1")
    publisher.answers = {"a/1": [Undeliverable("too large")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: outbox.pending_names == [])

    asyncio.run(scenario())
    assert (outbox.requests["a/1"].state, outbox.requests["a/1"].reason) == ("undeliverable", "too large")
    assert (outbox.published(), outbox.refused) == (["a/2", "b/1"], [])
    after = [one._value.get() for one in counted]  # noqa: SLF001 - the same
    assert [now - was for now, was in zip(after, before, strict=True)] == [1, 2]


@pytest.mark.usefixtures("clock")
def test_a_bug_over_one_message_holds_up_its_connection_only() -> None:
    """The reason has the type of the error, and the message is retried like any refused one."""
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1", "b/2")
    publisher.answers = {"a/1": [ValueError("secret")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.published() == ["b/1", "b/2"])
            assert outbox.outages == [None]

    asyncio.run(scenario())
    assert outbox.requests["a/1"].reason == "the message could not be sent (ValueError)"
    assert outbox.pending_names == ["a/1", "a/2"]


@pytest.mark.usefixtures("clock")
def test_of_several_of_which_one_is_refused_each_is_sent_alone() -> None:
    """So the relay finds the one at fault, without an outage and without a poll."""
    refused = Ambiguous("one of them is refused")
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1", "b/2", "c/1")
    publisher.answers = {
        "a/1": [refused, Undeliverable("too large")],
        "b/1": [refused],
        "c/1": [BrokerUnavailable("the channel is closed")],
    }

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: outbox.pending_names == [])

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert publisher.sent[:5] == ["a/1", "b/1", "c/1", "a/1", "b/1"]
    assert (outbox.requests["a/1"].state, outbox.outages) == ("undeliverable", [None])
    warned = [one["event"] for one in logs if one["log_level"] in {"warning", "error"}]
    assert warned == ["message cannot be delivered"]


@pytest.mark.usefixtures("clock")
def test_a_connection_that_is_lost_beside_a_refusal_is_an_outage() -> None:
    """It is shown as one, until the connection is back."""
    publisher, outbox = Scripted(), Asked("a/1", "b/1")
    publisher.answers = {"a/1": [Undeliverable("too large")], "b/1": [Interrupted("reset")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.pending_names == [] and len(outbox.outages) == 2)

    asyncio.run(scenario())
    assert outbox.outages == ["reset", None]


@pytest.mark.usefixtures("clock")
def test_a_message_is_blamed_after_three_losses_alone() -> None:
    """A loss with several messages in flight counts against none of them."""
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1")
    publisher.answers = {"a/1": [Interrupted("reset")] * 4, "b/1": [Interrupted("reset")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.requests["a/1"].reason is not None)
            await outbox.until(lambda: outbox.published() == ["b/1"])

    asyncio.run(scenario())
    assert Counter(publisher.sent) == {"a/1": 4, "b/1": 2}
    assert outbox.pending_names == ["a/1", "a/2"]


def test_a_message_that_was_blamed_is_sent_alone_from_then_on(clock: Clock) -> None:
    """If it ends the connection once more, that is still its own fault, not an outage."""
    publisher, outbox = Scripted(), Asked("a/1")
    publisher.answers = {"a/1": [Interrupted("reset")] * 5}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.requests["a/1"].reason is not None)
            await outbox.asked_again()
            publisher.shared.clear()
            outages = list(outbox.outages)
            clock.now += 1
            outbox.plan("c/1", connection="c")
            outbox.plan("d/1", connection="d")
            await outbox.until(lambda: {"c/1", "d/1"} <= set(outbox.published()))
            assert publisher.shared == {"c/1", "d/1"}
            clock.now += 10
            await outbox.until_all_are_published()
            assert outbox.outages[len(outages) :] in ([], [None])

    asyncio.run(scenario())
    assert publisher.sent[4:] == ["a/1", "c/1", "d/1", "a/1"]


@pytest.mark.usefixtures("clock")
def test_after_those_that_were_sent_alone_the_rest_is_sent_at_once() -> None:
    """Without a poll."""
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1")
    publisher.answers = {name: [Ambiguous("one of them is refused")] for name in ("a/1", "b/1")}

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until_all_are_published()

    asyncio.run(scenario())
    assert publisher.sent == ["a/1", "b/1", "a/1", "b/1", "a/2"]


def test_a_batch_whose_time_is_over_makes_way_for_the_next(clock: Clock) -> None:
    """At once, without a poll: one connection's backlog delays no other."""

    class Slow(Scripted):
        async def publish(self, stored: Stored) -> None:
            await super().publish(stored)
            clock.now += 0.5

    publisher, outbox = Slow(), Asked("a/1", "a/2", "a/3", "a/4")

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await until(lambda: publisher.sent, "it has begun")
            await outbox.until_all_are_published()
            await outbox.until(lambda: outbox.outages != [])

    asyncio.run(scenario())
    assert publisher.sent == ["a/1", "a/2", "a/3", "a/4"]
    assert len(outbox.asked) == 2


def test_whatever_was_lost_least_often_is_sent_first(clock: Clock) -> None:
    """A message that ends every connection does not prevent that others are cleared."""
    publisher, outbox = Scripted(), Asked("a/1", "b/1")
    publisher.answers = {"a/1": [Interrupted("reset")] * 2, "b/1": [Interrupted("reset")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until_all_are_published()
            clock.now += 1

    asyncio.run(scenario())
    assert publisher.sent == ["a/1", "b/1", "a/1", "b/1", "a/1"]


def test_a_backlog_is_published_without_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch is followed by the next one at once."""
    monkeypatch.setattr("gateway.publish.relay._BATCH_SIZE", 2)
    publisher, outbox = Scripted(), Asked("a/1", "a/2", "b/1", "b/2", "b/3")

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until_all_are_published()
            await outbox.until(lambda: outbox.outages != [])

    asyncio.run(scenario())
    assert outbox.asked == [(2, set())] * 3


@pytest.mark.parametrize(("read_bytes", "is_more"), [(2, True), (3, True), (4, False)])
def test_a_batch_that_ends_because_it_is_large_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, read_bytes: int, *, is_more: bool
) -> None:
    """The store returns a limited number of bytes at once."""
    monkeypatch.setattr("gateway.publish.relay.READ_BYTES", read_bytes)

    class OneByOne(Asked):
        async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest] | None:
            found = await super().pending(limit=limit, without=without)
            return found and found[:1]

    publisher, outbox = Scripted(), OneByOne("a/1", "b/1")

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: len(outbox.published()) == 1 + is_more and outbox.outages != [])

    asyncio.run(scenario())
    assert len(outbox.asked) == (3 if is_more else 1)


@pytest.mark.parametrize("most", [1, 2])
def test_with_too_many_refused_connections_nothing_is_taken(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Until the first of them may be retried."""
    monkeypatch.setattr("gateway.publish.relay._MAX_HELD", most)
    publisher, outbox = Scripted(), Asked("a/1", "b/1")
    publisher.answers = {name: [Unroutable("no queue")] for name in ("a/1", "b/1")}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.refused == ["a/1", "b/1"])
            # Iterations of the loop, which reads nothing meanwhile.
            outbox.plan("c/1", connection="c")
            for _ in range(5):
                await asyncio.to_thread(len, outbox.asked)
            assert len(outbox.asked) == 1
            clock.now += 1
            await outbox.until_all_are_published()

    asyncio.run(scenario())


def test_a_refused_request_that_is_gone_keeps_nobody_awake(clock: Clock) -> None:
    """As when its connection was deleted: the relay again waits for its poll or a notification."""
    publisher, outbox = Scripted(), Asked("a/1")
    publisher.answers = {"a/1": [Unroutable("no queue")]}

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: outbox.refused == ["a/1"])
            clock.now += 1
            outbox.requests.clear()
            # The pause ends in real time; afterwards there is nothing left to read.
            await until(lambda: len(outbox.asked) == 2, "it reads once more")
            for _ in range(20):
                await asyncio.to_thread(len, outbox.asked)
            assert len(outbox.asked) <= 3

    asyncio.run(scenario())
