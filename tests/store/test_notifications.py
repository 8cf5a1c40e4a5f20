"""Notification channels, their outbox, and what was told last."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, NotFound
from gateway.store import notification_channels, notifications
from gateway.store.database import Database
from gateway.store.notification_channels import Address, Channel
from gateway.store.notifications import BATCH_DELAY, KEEP, MAX_BATCH, Batch
from testing.records import NOW

SLACK = Channel(
    id="n1",
    name="ml-team",
    kind="slack",
    settings={"host": "hooks.slack.com"},
    happenings=["run-failed"],
    connections=["acme/*"],
    projects=[],
    created_at=NOW,
    updated_at=NOW,
)
URL = Address(url="https://hooks.slack.com/services/secret")
SOON = NOW + BATCH_DELAY
LEASE = timedelta(minutes=2)


def add(database: Database, keyring: Keyring, **changes: Any) -> Channel:
    """Store a channel."""
    channel = replace(SLACK, **changes)
    with database.writing() as conn:
        notification_channels.add(conn, keyring, channel, URL)
    return channel


def tell(database: Database, *titles: str, channel: str = "n1", at: Any = NOW) -> None:
    """Add notifications for a channel."""
    with database.writing() as conn:
        notifications.add(conn, {channel: [{"title": title} for title in titles]}, now=at)


def claim(database: Database, keyring: Keyring, *, at: Any = SOON) -> Batch | None:
    """Claim the next message, if one is due."""
    with database.writing() as conn:
        if not notifications.is_due(conn, now=at):
            return None
        return notifications.claim(conn, keyring=keyring, now=at, until=at + LEASE)


def titles(batch: Batch | None) -> Sequence[str]:
    """Return the titles in a message."""
    assert batch is not None
    return [body["title"] for body in batch.bodies]


def test_a_channel_is_kept_changed_and_deleted(database: Database, keyring: Keyring) -> None:
    """By its id or its name. Its URL is sealed, and stays unless another is given."""
    channel = add(database, keyring)
    other = add(database, keyring, id="n2", name="another", kind="webhook")
    with pytest.raises(Conflict, match="the name ml-team is taken"):
        add(database, keyring, id="n3")
    with database.writing() as conn:
        assert [notification_channels.get(conn, text) for text in ("n1", "ml-team")] == [channel, channel]
        assert notification_channels.page(conn, limit=1) == [other]
        assert notification_channels.page(conn, after="another") == [channel]
        renamed = replace(channel, name="people", happenings=["dead-letters"])
        notification_channels.change(conn, keyring, renamed)
        assert notification_channels.get(conn, "people") == renamed
        assert notification_channels.address(conn, keyring, "n1") == URL
        notification_channels.change(conn, keyring, renamed, Address(url="https://example.org/x"))
        assert notification_channels.address(conn, keyring, "n1").url == "https://example.org/x"
        with pytest.raises(Conflict):
            notification_channels.change(conn, keyring, replace(renamed, name="another"))
    tell(database, "never sent")
    with database.writing() as conn:
        notification_channels.remove(conn, "n1")
        assert notification_channels.page(conn) == [other]
        with pytest.raises(NotFound, match="no notification channel"):
            notification_channels.get(conn, "n1")
        assert notification_channels.rewrap(conn, keyring) == 1
    tell(database, "too late")
    assert claim(database, keyring) is None


def test_what_happens_within_half_a_minute_is_one_message(database: Database, keyring: Keyring) -> None:
    """It is due half a minute after the first. A test is due at once, with all that waits."""
    add(database, keyring)
    tell(database, "first")
    tell(database, "second", "third", at=NOW + timedelta(seconds=20))
    assert claim(database, keyring, at=SOON - timedelta(seconds=1)) is None
    batch = claim(database, keyring)
    assert titles(batch) == ["first", "second", "third"]
    assert batch is not None
    # The channel has one message at a time.
    assert claim(database, keyring) is None
    with database.writing() as conn:
        notifications.record_sent(conn, batch, now=SOON)
        channel = notification_channels.get(conn, "n1")
        assert (channel.sent_at, channel.tried_at, channel.problem) == (SOON, SOON, None)
        assert not notifications.is_due(conn, now=SOON + LEASE)
    tell(database, "fourth", at=SOON)
    with database.writing() as conn:
        notifications.add_test(conn, "n1", {"title": "test"}, now=SOON)
    assert titles(claim(database, keyring)) == ["fourth", "test"]


def test_a_message_that_is_tried_again_stays_the_same(database: Database, keyring: Keyring) -> None:
    """Its id, too, by which a receiver drops repetitions. What is added meanwhile is in the next message."""
    add(database, keyring)
    tell(database, "first")
    batch = claim(database, keyring)
    assert batch is not None
    tell(database, "second", at=SOON)
    later = SOON + timedelta(minutes=1)
    with database.writing() as conn:
        notifications.record_failed(conn, batch, "it is down", next_at=later, now=SOON)
        assert notification_channels.get(conn, "n1").problem == "it is down"
    assert claim(database, keyring, at=later - timedelta(seconds=1)) is None
    again = claim(database, keyring, at=later)
    assert again is not None
    assert (again.id, titles(again), again.attempts) == (batch.id, ["first"], 1)
    with database.writing() as conn:
        notifications.record_sent(conn, again, now=later)
        assert notification_channels.get(conn, "n1").problem is None
    following = claim(database, keyring, at=later)
    assert titles(following) == ["second"]
    assert following is not None
    assert following.id != batch.id
    assert following.attempts == 0


def test_a_refused_message_is_given_up_and_shown(database: Database, keyring: Keyring) -> None:
    """As the problem of the channel; the next message is tried nevertheless."""
    add(database, keyring)
    tell(database, "first")
    batch = claim(database, keyring)
    assert batch is not None
    tell(database, "second", at=SOON)
    with database.writing() as conn:
        notifications.record_sent(conn, batch, problem="no_service", now=SOON)
        channel = notification_channels.get(conn, "n1")
        assert (channel.problem, channel.sent_at, channel.tried_at) == ("no_service", None, SOON)
    assert claim(database, keyring, at=SOON) is None
    assert titles(claim(database, keyring, at=SOON + BATCH_DELAY)) == ["second"]


def test_old_notifications_are_given_up_with_their_message(database: Database, keyring: Keyring) -> None:
    """After a day in which the receiver was down, people look at the dashboard anyway."""
    add(database, keyring)
    tell(database, "first")
    batch = claim(database, keyring)
    assert batch is not None
    old = NOW + KEEP + timedelta(seconds=1)
    with database.writing() as conn:
        notifications.record_failed(conn, batch, "down", next_at=old, now=old)
    assert claim(database, keyring, at=old + LEASE) is None
    # Also if they have gone since the message was due.
    with database.writing() as conn:
        notifications.add_test(conn, "n1", {"title": "test"}, now=old)
        notifications.give_back(conn, replace(batch, due_at=old), now=old)
    assert titles(claim(database, keyring, at=old)) == ["test"]


def test_a_message_is_bounded_and_the_rest_follows_at_once(database: Database, keyring: Keyring) -> None:
    """The rest has waited for long enough."""
    add(database, keyring)
    tell(database, *(str(number) for number in range(MAX_BATCH + 1)))
    batch = claim(database, keyring)
    assert batch is not None
    assert len(batch.bodies) == MAX_BATCH
    with database.writing() as conn:
        notifications.record_sent(conn, batch, now=SOON)
    assert titles(claim(database, keyring)) == [str(MAX_BATCH)]


def test_a_channel_sealed_with_another_key_says_so(database: Database, keyring: Keyring) -> None:
    """Its message is claimed with the reason in place of the address."""
    add(database, keyring)
    tell(database, "first")
    batch = claim(database, Keyring("another secret key, also of 32 characters"))
    assert batch is not None
    assert batch.address is None
    assert "PUSHGATE_SECRET_KEY" in (batch.obstacle or "")
