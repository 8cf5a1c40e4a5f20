"""The relay while the broker or the store is away, and at its end."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    BrokerUnavailable,
    Interrupted,
    PublishError,
    StoreUnavailable,
)
from gateway.metrics import BROKER_CONNECTED, EVENTS_PUBLISHED, PUBLISHED, STAGE
from tests.publish.scripted import NEVER, Asked, Scripted, relaying, until


def test_who_does_not_lead_waits() -> None:
    """For the poll: notifications are for the leader."""
    publisher, outbox = Scripted(), Asked("a/1")
    outbox.is_leader = False

    async def scenario() -> None:
        async with relaying(outbox, publisher, poll=NEVER):
            await outbox.until(lambda: outbox.outages != [])
            for _ in range(10):
                await asyncio.to_thread(len, outbox.asked)

    asyncio.run(scenario())
    assert (len(outbox.asked), publisher.sent) == (1, [])


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
    waited = STAGE.labels("publish")

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
