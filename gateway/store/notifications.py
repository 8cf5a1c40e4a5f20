"""The outbox of notifications: what is still to be sent to each channel, in batches.

The first notification for a channel makes it due a little later, and what is added until then is in the same
message. A message that is tried again stays the same; what is added meanwhile is in the next one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, insert, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import SettingError
from gateway.store import notification_channels
from gateway.store.due_tasks import DueTasks
from gateway.store.notification_channels import Address, Channel
from gateway.store.notification_tables import notification_channels as channels
from gateway.store.notification_tables import notifications
from gateway.text.escape import storable

BATCH_DELAY = timedelta(seconds=30)
"""How long a channel collects notifications for one message."""

MAX_BATCH = 500
"""How many notifications one message covers."""

KEEP = timedelta(days=1)
"""After how long a notification that cannot be sent is given up."""

_TASKS = DueTasks(channels, timedelta(hours=2), key=("id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The next message to a channel, claimed until `due_at`. `id` stays the same when it is tried again.

    Without `address`, `obstacle` is why the secret part of the channel cannot be read. `attempts` counts the
    failures in a row.
    """

    id: str
    channel: Channel
    bodies: Sequence[Mapping[str, Any]]
    due_at: datetime
    attempts: int
    address: Address | None
    obstacle: str | None = None


def add(
    conn: sqlalchemy.Connection, bodies: Mapping[str, Sequence[Mapping[str, Any]]], *, now: datetime
) -> None:
    """Add notifications, by the ids of the channels. Channels that were deleted meanwhile get none."""
    of_channels = {channel: texts for channel, texts in bodies.items() if texts}
    for row in conn.execute(select(channels.c.id).where(channels.c.id.in_(of_channels))).all():
        values = [
            {"channel": row.id, "body": storable(dict(body)), "created_at": now}
            for body in of_channels[row.id]
        ]
        conn.execute(insert(notifications), values)
        later = func.coalesce(channels.c.due_at, now + BATCH_DELAY)
        conn.execute(update(channels).where(channels.c.id == row.id).values(due_at=later))


def add_test(conn: sqlalchemy.Connection, channel_id: str, body: Mapping[str, Any], *, now: datetime) -> None:
    """Add a notification that is sent at once, with all others that wait."""
    conn.execute(insert(notifications).values(channel=channel_id, body=dict(body), created_at=now))
    conn.execute(update(channels).where(channels.c.id == channel_id).values(due_at=now))


def is_due(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether a message is due. It waits for no writer."""
    return _TASKS.is_due(conn, now=now)


def claim(conn: sqlalchemy.Connection, *, keyring: Keyring, now: datetime, until: datetime) -> Batch | None:
    """Claim a message that is due; None if none is."""
    row = _TASKS.claim(conn, now=now, until=until)
    if row is None:
        return None
    number = _batch(conn, row.id, row.batch)
    query = select(notifications.c.body).where(*_in_batch(row.id, number)).order_by(notifications.c.seq)
    bodies = list(conn.execute(query).scalars())
    if not bodies:
        _TASKS.end(conn, row.id, claimed_until=until, due_at=None)
        return None
    address, obstacle = None, None
    try:
        address = notification_channels.address(conn, keyring, row.id)
    except SettingError as error:
        obstacle = str(error)
    return Batch(
        id=f"{row.id}-{number}",
        channel=notification_channels.get(conn, row.id),
        bodies=bodies,
        due_at=until,
        attempts=row.attempts,
        address=address,
        obstacle=obstacle,
    )


def record_sent(
    conn: sqlalchemy.Connection, batch: Batch, *, problem: str | None = None, now: datetime
) -> None:
    """Record that a message has arrived, or, with a `problem`, that it never will."""
    _remove(conn, batch)
    outcome: dict[str, Any] = {"problem": storable(problem), "tried_at": now, "attempts": 0}
    if problem is None:
        outcome["sent_at"] = now
    _end(conn, batch, now=now, **outcome)


def record_failed(
    conn: sqlalchemy.Connection, batch: Batch, problem: str, *, next_at: datetime, now: datetime
) -> None:
    """Record why a message could not be sent, and when it is tried again. Give up what is too old."""
    old = notifications.c.channel == batch.channel.id, notifications.c.created_at < now - KEEP
    conn.execute(delete(notifications).where(*old))
    outcome = {"problem": storable(problem), "tried_at": now, "attempts": batch.attempts + 1}
    _end(conn, batch, now=now, next_at=next_at, **outcome)


def give_back(conn: sqlalchemy.Connection, batch: Batch, *, now: datetime) -> None:
    """Make a claimed message due again."""
    _TASKS.end(conn, batch.channel.id, claimed_until=batch.due_at, due_at=now)


def _batch(conn: sqlalchemy.Connection, channel: str, last: int) -> int:
    """Return the number of the message that is sent next, which covers what is waiting if there was none."""
    begun = select(notifications.c.seq).where(*_in_batch(channel, last)).limit(1)
    if conn.execute(begun).first() is not None:
        return last
    waiting = (
        select(notifications.c.seq)
        .where(notifications.c.channel == channel)
        .order_by(notifications.c.seq)
        .limit(MAX_BATCH)
    )
    conn.execute(update(notifications).where(notifications.c.seq.in_(waiting)).values(batch=last + 1))
    conn.execute(update(channels).where(channels.c.id == channel).values(batch=last + 1))
    return last + 1


def _in_batch(channel: str, number: int) -> tuple[sqlalchemy.ColumnElement[bool], ...]:
    return notifications.c.channel == channel, notifications.c.batch == number


def _remove(conn: sqlalchemy.Connection, batch: Batch) -> None:
    number = int(batch.id.rpartition("-")[2])
    conn.execute(delete(notifications).where(*_in_batch(batch.channel.id, number)))


def _end(
    conn: sqlalchemy.Connection,
    batch: Batch,
    *,
    now: datetime,
    next_at: datetime | None = None,
    **outcome: Any,
) -> None:
    """Record the outcome of a message, and when the next one is due."""
    mine = channels.c.id == batch.channel.id
    # Whoever adds a notification at this moment has this lock, or waits for it.
    conn.execute(select(channels.c.id).where(mine).with_for_update()).all()
    conn.execute(update(channels).where(mine).values(**outcome))
    first = select(func.min(notifications.c.created_at)).where(notifications.c.channel == batch.channel.id)
    waiting_since = conn.execute(first).scalar()
    due_at = None
    if waiting_since is not None:
        due_at = next_at or max(now, waiting_since + BATCH_DELAY)
    _TASKS.end(conn, batch.channel.id, claimed_until=batch.due_at, due_at=due_at)
