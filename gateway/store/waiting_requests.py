"""Why execution requests wait: for the broker, behind others of their connection, or for a runner."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import sqlalchemy

from gateway.store import executions, outages, unaccepted
from gateway.store.executions import StoredRequest
from gateway.store.unaccepted import NOTICED_AFTER

_ON_ITS_WAY = "it is on its way to the broker, which has not confirmed it yet"


def explained(
    conn: sqlalchemy.Connection, requests: Sequence[StoredRequest], *, has_broker: bool, now: datetime
) -> list[StoredRequest]:
    """Return requests, each one that waits with the reason.

    The reason of a pending one is the broker's refusal of it or of an earlier one of its connection, or an
    outage. Without a broker there is none: requests stay in the store. A published one waits if no runner
    accepts it.
    """
    return _without_runner(conn, _pending(conn, requests, has_broker=has_broker), now=now)


def _without_runner(
    conn: sqlalchemy.Connection, requests: Sequence[StoredRequest], *, now: datetime
) -> list[StoredRequest]:
    published = [one.seq for one in requests if one.shown_state == "published"]
    since = unaccepted.since(conn, published) if published else {}
    return [
        replace(one, reason=f"no runner has accepted it since {since[one.seq]:%Y-%m-%d %H:%M} UTC")
        if one.seq in since and since[one.seq] <= now - NOTICED_AFTER
        else one
        for one in requests
    ]


def _pending(
    conn: sqlalchemy.Connection, requests: Sequence[StoredRequest], *, has_broker: bool
) -> list[StoredRequest]:
    waiting = [one for one in requests if one.state == "pending" and one.reason is None]
    if not waiting or not has_broker:
        return list(requests)
    outage = next((one for one in outages.current(conn) if one.what == "request"), None)
    refused = executions.refusals(conn, {one.connection for one in waiting})

    def reason(one: StoredRequest) -> str:
        if outage is not None:
            return outage.reason
        first = refused.get(one.connection)
        if first is not None and first.seq < one.seq:
            return f"it waits behind {first.id}: {first.reason}"
        return _ON_ITS_WAY

    return [
        replace(one, reason=reason(one)) if one.state == "pending" and one.reason is None else one
        for one in requests
    ]
