"""Why did my push (not) run? From whatever somebody has at hand to the deliveries that it is about."""

import re
from collections.abc import Sequence

import sqlalchemy

from gateway.errors import NotFound
from gateway.store import connections, deliveries, executions
from gateway.store.deliveries import RecordedDelivery
from gateway.store.executions import StoredRequest
from providers.clone_urls import repository_key

# Deliveries have UUIDs of version 7, execution requests of version 5.
_DELIVERY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_EXECUTION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONNECTION = re.compile(r"[0-9a-f]{24}")
# In a page's address, or in what somebody has copied from a terminal: the longest, of equals the last.
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{7,64}(?![0-9a-f])")
# What stands behind a page's address names a place in it, or how to show it.
_ANCHOR = re.compile(r"[#?].*")
_WHOLE = (40, 64)
# Of a commit, and of a repository.
_OF_A_COMMIT, _NEWEST = 20, 5
_LOOK = (
    "The webhook's page at the provider lists what it sent, and the answers; a 401 also stands in the"
    " gateway's log. To look at the remote now: pushgate fetch {}"
)


def explained(conn: sqlalchemy.Connection, what: str) -> list[tuple[RecordedDelivery, list[StoredRequest]]]:
    """Return the deliveries that something is about, the oldest first, each with its execution requests.

    That is a delivery's id or that of one of its requests, a commit's id or its beginning, a page about one
    of them, or a connection's id, the address of a repository or of a page in it, which means its newest
    deliveries. Raises `NotFound` where there are none.
    """
    found = _found(conn, what)
    requests: dict[str, list[StoredRequest]] = {delivery.id: [] for delivery in found}
    for request in executions.of_deliveries(conn, list(requests)):
        requests[request.delivery].append(request)
    return [(delivery, requests[delivery.id]) for delivery in found]


def _found(conn: sqlalchemy.Connection, what: str) -> list[RecordedDelivery]:
    asked = _ANCHOR.sub("", what.strip().lower())
    if delivery := _DELIVERY.search(asked):
        return [deliveries.get(conn, delivery[0])]
    if execution := _EXECUTION.search(asked):
        return [deliveries.get(conn, executions.get(conn, execution[0]).delivery)]
    known = connections.addresses(conn) if ":" in asked else {}
    repository = [one for one, key in known.items() if key == repository_key(asked)]
    if repository := repository or _named(conn, what.strip()):
        return _newest(conn, repository)
    inside = [one for one, key in known.items() if repository_key(asked).startswith(f"{key}/")]
    if commits := _COMMIT.findall(asked):
        commit = max(reversed(commits), key=len)
        of_commit = _page(conn, commit=commit, limit=_OF_A_COMMIT) or deliveries.containing(
            conn, commit, limit=_OF_A_COMMIT
        )
        # Shorter numbers may be others: of a run, or the date in a branch's name.
        if of_commit:
            return of_commit[::-1]
        if not inside or len(commit) in _WHOLE:
            raise NotFound(
                f"no delivery has told of {commit}; of a push whose webhook lists none of its commits,"
                f" or that was found by a look at the remote, only the newest commit is known."
                f" {_LOOK.format('CONNECTION')}"
            )
    if inside:
        return _newest(conn, inside)
    raise NotFound(
        f"{what} is no id of a delivery or execution, no id or name of a connection, names no commit,"
        " and is in no connected repository"
    )


def _named(conn: sqlalchemy.Connection, text: str) -> list[str]:
    """Return the connection with this id or name, or whose page in the dashboard or the API this is."""
    page = text.rpartition("/")[2]
    try:
        return [connections.find(conn, page if _CONNECTION.fullmatch(page) else text)]
    except NotFound:
        return []


def _newest(conn: sqlalchemy.Connection, ids: Sequence[str]) -> list[RecordedDelivery]:
    pages = (_page(conn, connection=one, limit=_NEWEST) for one in ids)
    if found := [one for page in pages for one in page]:
        return sorted(found, key=lambda one: one.id)
    raise NotFound(f"no delivery has come for connection {', '.join(ids)}. {_LOOK.format(' and '.join(ids))}")


def _page(
    conn: sqlalchemy.Connection, *, limit: int, connection: str | None = None, commit: str | None = None
) -> list[RecordedDelivery]:
    return deliveries.page(conn, connection=connection, verdict=None, before=None, limit=limit, commit=commit)
