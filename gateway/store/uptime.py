"""When the webhook endpoint last ran and could store deliveries, so that a time without it is noticed.

Every process with a webhook endpoint records that it runs. A gap is an outage of all of them, or of the
store. Deliveries that failed meanwhile are requested of the providers again.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import select

from gateway.store import redeliveries
from gateway.store.bulk_sql import upsert_rows
from gateway.store.redelivery_tables import last_seen

_ENDPOINT = "webhook endpoint"


def record(
    conn: sqlalchemy.Connection, *, now: datetime, tolerated: timedelta, failed: Collection[str] = ()
) -> datetime | None:
    """Record that the endpoint runs; return since when it did not, after a gap of more than `tolerated`.

    `failed` are the connections of deliveries that could not be stored. What may have been missed is looked
    for at the providers.
    """
    query = select(last_seen.c.at).where(last_seen.c.what == _ENDPOINT).with_for_update()
    before: datetime | None = conn.execute(query).scalar()
    upsert_rows(conn, last_seen, ("what",), [(_ENDPOINT, now)])
    if before is not None and now - before > tolerated:
        redeliveries.make_all_due(conn, at=now)
        return before
    if failed:
        redeliveries.make_due(conn, failed, at=now)
    return None
