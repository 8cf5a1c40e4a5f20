"""The relay with an outbox, a publisher and a clock of the test."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    Ambiguous,
    BrokerUnavailable,
    Interrupted,
    PublishError,
    StoreUnavailable,
    Undeliverable,
    Unroutable,
)
from gateway.metrics import BROKER_CONNECTED, EVENTS_PUBLISHED, PUBLISHED, STAGE, UNDELIVERABLE
from gateway.publish.cloudevents import Stored
from gateway.publish.relay import Relay
from gateway.store.executions import StoredRequest
from gateway.store.notify import Notifier
from testing.service import wait_for
from tests.publish.outbox import MemoryOutbox

NEVER = 3600.0


class Clock:
    """The relay's clock, which only the test moves."""

    def __init__(self) -> None:
        """Begin at an arbitrary time."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the relay's clock."""
    clock = Clock()
    monkeypatch.setattr("gateway.publish.relay.time", clock)
    return clock


@dataclass
class Scripted:
    """A publisher that raises the given errors, and confirms everything else."""

    answers: dict[str, list[Exception]] = field(default_factory=dict)
    opening: list[Exception] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    closed: int = 0
    gate: asyncio.Event | None = None
    shared: set[str] = field(default_factory=set)
    on_their_way: Counter[str] = field(default_factory=Counter)

    async def open(self) -> None:
        """Raise the given errors, then open."""
        if self.opening:
            raise self.opening.pop(0)

    async def publish(self, stored: Stored) -> None:
        """Raise this message's errors, then confirm it."""
        self.sent.append(stored.id)
        self.on_their_way[stored.id] += 1
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if self.on_their_way.total() > 1:
            self.shared |= self.on_their_way.keys()
        del self.on_their_way[stored.id]
        errors = self.answers.get(stored.id)
        if errors:
            raise errors.pop(0)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed += 1


class Asked(MemoryOutbox):
    """An outbox that notes the reads and the recordings; reading it can fail."""

    def __init__(self, *names: str) -> None:
        """Plan these requests; the part before the slash is the connection."""
        super().__init__()
        self.asked: list[tuple[int, set[str]]] = []
        self.reading: list[Exception] = []
        self.refused: list[str] = []
        for name in names:
            self.plan(name, connection=name.partition("/")[0])

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest] | None:
        """See the protocol."""
        self.asked.append((limit, set(without)))
        if self.reading:
            raise self.reading.pop(0)
        return await super().pending(limit=limit, without=without)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See the protocol."""
        self.refused += refused
        await super().record(published=published, refused=refused, undeliverable=undeliverable)

    async def asked_again(self, times: int = 3) -> None:
        """Return after so many more reads by the relay: by then it has done its work."""
        wanted = len(self.asked) + times
        await until(lambda: len(self.asked) >= wanted, "the relay reads the outbox")

    @property
    def pending_names(self) -> list[str]:
        """The names of the pending requests."""
        return [one.id for one in self.requests.values() if one.state == "pending"]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition is true."""
    await asyncio.to_thread(wait_for, condition, what)


@asynccontextmanager
async def relaying(
    outbox: MemoryOutbox,
    publisher: Scripted,
    *,
    what: Literal["request", "event"] = "request",
    poll: float = 0.005,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay."""
    running = asyncio.create_task(
        Relay(outbox, publisher, Notifier().subscribe(), what=what, poll=poll).run()
    )
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait({running})


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


def test_who_does_not_lead_waits() -> None:
    """For the poll, or for a notification."""
    publisher, outbox = Scripted(), Asked("a/1")
    outbox.is_leader = False

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: outbox.outages != [])
            for _ in range(10):
                await asyncio.to_thread(len, outbox.asked)

    asyncio.run(scenario())
    assert (len(outbox.asked), publisher.sent) == (1, [])


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


def test_an_outage_of_the_broker_is_recorded_once_and_until_its_end() -> None:
    """In the executions, in the metrics and in the log."""
    gauge = BROKER_CONNECTED.labels("request")
    publisher, outbox = Scripted(opening=[BrokerUnavailable("no route")] * 2), Asked("a/1")
    connected: list[float] = []

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.outages == ["no route"])
            connected.append(gauge._value.get())  # noqa: SLF001 - there is no other way to read it
            await outbox.until_all_are_published()
            await outbox.until(lambda: outbox.outages == ["no route", None])
            connected.append(gauge._value.get())  # noqa: SLF001 - the same

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert connected == [0, 1]
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
        "the broker is unavailable; messages wait in the store"
    ]
    assert [one["event"] for one in logs].count("the relay continues") == 1


def test_a_store_that_is_away_is_no_outage_of_the_broker() -> None:
    """The relay logs it once, and continues afterwards."""
    gauge = BROKER_CONNECTED.labels("request")
    publisher, outbox = Scripted(), Asked("a/1")
    outbox.reading = [StoreUnavailable("locked")] * 2

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await until(lambda: len(outbox.asked) == 2, "it has failed twice")
            assert gauge._value.get() == 1  # noqa: SLF001 - there is no other way to read it
            await outbox.until_all_are_published()

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert outbox.outages == [None]
    warned = [one["event"] for one in logs if one["log_level"] == "warning"]
    assert warned == ["the relay is waiting for the store"]


def test_an_outage_is_recorded_later_where_the_store_is_away_too() -> None:
    """Then no outdated state stays visible."""
    recorded: list[str | None] = []

    class Unavailable(Asked):
        async def record_outage(self, outage: str | None) -> bool:
            recorded.append(outage)
            if len(recorded) == 1:
                raise StoreUnavailable("locked")
            return await super().record_outage(outage)

    publisher, outbox = Scripted(opening=[BrokerUnavailable("no route")] * 2), Unavailable("a/1")

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.outages == ["no route", None])

    asyncio.run(scenario())
    assert recorded == ["no route", "no route", None]


def test_a_bug_while_reading_ends_no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, and the relay retries after a pause."""
    monkeypatch.setattr("gateway.publish.relay._POLL_SECONDS", 0.01)
    publisher, outbox = Scripted(), Asked("a/1")
    outbox.reading = [ValueError("a bug")]

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until_all_are_published()

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["the relay failed; it continues"]


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


def test_a_relay_that_is_ended_waits_for_what_it_has_sent() -> None:
    """It sends nothing more, and closes the connection when all is recorded."""
    outbox = Asked("a/1", "a/2", "b/1")

    async def scenario() -> Scripted:
        publisher = Scripted(gate=asyncio.Event())
        assert publisher.gate is not None
        async with relaying(outbox, publisher) as running:
            await until(lambda: publisher.sent == ["a/1", "b/1"], "both are on their way")
            running.cancel()
            await asyncio.to_thread(len, outbox.asked)
            assert publisher.closed == 0
            publisher.gate.set()
            await asyncio.wait({running})
            assert running.cancelled()
        return publisher

    publisher = asyncio.run(scenario())
    assert (publisher.sent, publisher.closed) == (["a/1", "b/1"], 1)
    assert outbox.published() == ["a/1", "b/1"]


def test_a_relay_that_is_ended_waits_for_no_confirm_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message stays pending, and is sent again after a restart."""
    monkeypatch.setattr("gateway.publish.relay._FLUSH_SECONDS", 0.01)
    outbox = Asked("a/1")

    async def scenario() -> Scripted:
        publisher = Scripted(gate=asyncio.Event())
        async with relaying(outbox, publisher):
            await until(lambda: publisher.sent, "it is on its way")
        return publisher

    publisher = asyncio.run(scenario())
    assert (publisher.closed, outbox.pending_names) == (1, ["a/1"])


def test_a_relay_that_is_ended_says_what_will_come_twice() -> None:
    """If the store cannot record what the broker has confirmed."""
    publisher, outbox = Scripted(), Asked("a/1", "b/1")
    outbox.writable = False

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.failures > 0)

    with capture_logs() as logs:
        asyncio.run(scenario())
    [line] = [one for one in logs if one["event"] == "confirmed requests will be published again"]
    assert (line["count"], publisher.closed) == (2, 1)


def test_what_is_confirmed_and_not_yet_written_down_is_not_sent_again() -> None:
    """After a short outage of the store, it is recorded before anything else is sent."""
    publisher, outbox = Scripted(), Asked("a/1")
    outbox.writable = False

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until(lambda: outbox.failures > 0)
            outbox.writable = True
            await outbox.until_all_are_published()

    asyncio.run(scenario())
    assert publisher.sent == ["a/1"]


@pytest.mark.parametrize("what", ["request", "event"])
def test_what_is_published_is_counted_by_its_kind(what: Literal["request", "event"]) -> None:
    """And how long a request has waited, in seconds."""
    counters = {"request": PUBLISHED, "event": EVENTS_PUBLISHED}
    waited = STAGE.labels("planned to published")

    def counts() -> list[float]:
        return [counters[one]._value.get() for one in ("request", "event")]  # noqa: SLF001 - no other way

    publisher, outbox = Scripted(), Asked("a/1", "b/1")
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    for name, one in outbox.requests.items():
        outbox.requests[name] = replace(one, planned_at=an_hour_ago)
    before, seconds = counts(), waited._sum.get()  # noqa: SLF001 - the same

    async def scenario() -> None:
        async with relaying(outbox, publisher, what=what):
            await outbox.until_all_are_published()
            await outbox.until(lambda: outbox.outages != [])

    with capture_logs() as logs:
        asyncio.run(scenario())
    [line] = [one for one in logs if one["event"] == "messages published"]
    assert (line["what"], line["count"], line["ids"]) == (what, 2, ["a/1", "b/1"])
    assert [now - was for now, was in zip(counts(), before, strict=True)] == (
        [2, 0] if what == "request" else [0, 2]
    )
    assert round((waited._sum.get() - seconds) / 60) == 120  # noqa: SLF001 - the same


@pytest.mark.parametrize(
    "error", [PublishError("not for us"), Interrupted("reset"), BrokerUnavailable("no answer")]
)
def test_an_outage_in_the_middle_keeps_what_was_confirmed(error: Exception) -> None:
    """Only unconfirmed messages are sent again, in order."""
    publisher, outbox = Scripted(), Asked("a/1", "b/1", "b/2")
    publisher.answers = {"b/1": [error]}

    async def scenario() -> None:
        async with relaying(outbox, publisher):
            await outbox.until_all_are_published()
            await outbox.until(lambda: outbox.outages == [str(error), None])

    asyncio.run(scenario())
    assert publisher.sent == ["a/1", "b/1", "b/1", "b/2"]
