"""Outages of the broker, recorded by the process that relays, so that every process can display them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy
from sqlalchemy import delete, insert, select, update

from gateway.store.database import Database, Lock
from gateway.store.publishing_lanes import SINGLE, PublishingLane
from gateway.store.rows import from_row
from gateway.store.tables import outages

What = Literal["request", "event"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Why requests, or events, are not published, and since when."""

    what: What
    reason: str
    since: datetime


def record(conn: sqlalchemy.Connection, what: What, reason: str | None, *, now: datetime) -> None:
    """Record why nothing is published, keeping the beginning of the outage; None ends it."""
    mine = outages.c.what == what
    if reason is None:
        conn.execute(delete(outages).where(mine))
    elif conn.execute(update(outages).where(mine).values(reason=reason)).rowcount == 0:
        conn.execute(insert(outages).values(what=what, reason=reason, since=now))


def current(conn: sqlalchemy.Connection) -> list[Outage]:
    """Return the current outages, the outage of requests last."""
    rows = conn.execute(select(outages).order_by(outages.c.what))
    return [from_row(Outage, row) for row in rows]


async def record_if_leading(
    database: Database, lock: Lock, what: What, reason: str | None, *, lane: PublishingLane = SINGLE
) -> bool:
    """Record why nothing is published, None for no outage. Return False if another process leads."""

    def write(conn: sqlalchemy.Connection) -> bool:
        if not database.may_lead(conn, lock, lane):
            return False
        record(conn, what, reason, now=datetime.now(UTC))
        return True

    return await database.write(write)
