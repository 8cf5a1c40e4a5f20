"""The filters of deliveries: read from a query, and applied to deliveries and refused requests."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

import sqlalchemy

from gateway.api.query import choice, connection_filter, moment, wrong
from gateway.store import deliveries, refusals
from gateway.store.deliveries import RecordedDelivery, Verdict
from gateway.store.delivery_search import DeliveryFilters
from gateway.store.ids import delivery_ids_since
from gateway.store.outcomes import REFUSED, Outcome
from gateway.store.refusals import RecordedRefusal

FILTERS = ("connection", "outcome", "verdict", "branch", "author", "since", "until", "commit", "q")
"""The query parameters that filter deliveries."""

_COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,64}")


def delivery_filters(conn: sqlalchemy.Connection, query: Mapping[str, str]) -> DeliveryFilters:
    """Return the filters of a query. Raises `Invalid`, and `NotFound` for an unknown connection."""
    return DeliveryFilters(
        connection=connection_filter(conn, query.get("connection")),
        outcome=choice(get_args(Outcome), query.get("outcome"), "outcome"),
        verdict=choice((*get_args(Verdict), refusals.VERDICT), query.get("verdict"), "verdict"),
        branch=words(query, "branch"),
        author=words(query, "author"),
        since=moment(query.get("since"), "since"),
        until=moment(query.get("until"), "until"),
        commit=_commit(query.get("commit")),
        search=words(query, "q"),
    )


def words(query: Mapping[str, str], name: str) -> str | None:
    """Return the text of a filter, without spaces around it. Raises `Invalid` for an empty one."""
    text = query.get(name)
    if text is not None and not text.strip():
        raise wrong(name, f"{name} must not be empty")
    return None if text is None else text.strip()


def found(
    conn: sqlalchemy.Connection, filters: DeliveryFilters, *, before: str | None, limit: int
) -> tuple[Sequence[RecordedDelivery | RecordedRefusal], str | None]:
    """Return deliveries, or refusals if these are requested, and the cursor of the next page."""
    if REFUSED not in {filters.verdict, filters.outcome}:
        return deliveries.search(conn, filters, before=before, limit=limit)
    # Of a refusal, no ref, person or commit is known.
    only = (filters.branch, filters.author, filters.commit, filters.search)
    if only != (None,) * len(only) or not {filters.verdict, filters.outcome} <= {REFUSED, None}:
        return (), None
    until = None if filters.until is None else delivery_ids_since(filters.until)
    page = refusals.page(
        conn,
        connection=filters.connection,
        before=min((end for end in (before, until) if end is not None), default=None),
        limit=limit + 1,
        since=filters.since,
    )
    return page[:limit], page[limit - 1].id if len(page) > limit else None


def _commit(text: str | None) -> str | None:
    if text is not None and not _COMMIT_PREFIX.fullmatch(text.lower()):
        raise wrong("commit", "commit must be 7 to 64 hex digits: an object id or its beginning")
    return text.lower() if text is not None else None
