"""Why did my push (not) run? Find the deliveries that an id, a commit or a URL refers to."""

import re
from collections.abc import Iterator, Sequence

import sqlalchemy

from gateway.errors import NotFound
from gateway.store import (
    connections,
    deliveries,
    executions,
    refusals,
    runs,
    source_repositories,
    sources,
)
from gateway.store.deliveries import RecordedDelivery
from gateway.store.executions import StoredRequest
from gateway.store.refusals import RecordedRefusal
from providers.clone_urls import repository_key

# Deliveries have UUIDs of version 7, execution requests of version 5.
_DELIVERY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_EXECUTION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CONNECTION = re.compile(r"[0-9a-f]{24}")
# In a URL, or in text copied from a terminal: the longest match counts; of equal lengths, the last.
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{7,64}(?![0-9a-f])")
# The query and the fragment of a URL name a place in the page, or how to show it.
_ANCHOR = re.compile(r"[#?].*")
_WHOLE = (40, 64)
_MAX_OF_COMMIT = 20
_MAX_OF_REPOSITORY = 5
# How many deliveries of a source are searched for those about a repository.
_MAX_SEARCHED = 200
_NEXT_STEPS = (
    "Check the webhook's page at the provider, which lists its requests and the answers. To list the requests"
    " that Pushgate refused, also those with a wrong URL, run pushgate deliveries --outcome refused. To"
    " compare the remote's refs now, run pushgate fetch {}"
)


Found = RecordedDelivery | RecordedRefusal


def explained(conn: sqlalchemy.Connection, what: str) -> list[tuple[Found, list[StoredRequest]]]:
    """Return the deliveries that `what` refers to, oldest first, each with its execution requests.

    `what` is the id of a delivery or of one of its requests, a commit's id or its beginning, or the URL of a
    page about one of them. The id of a connection, and the URL of a repository or of a page in it, refer to
    the connection's newest deliveries, and to what was refused since. The provider's id of a delivery refers
    to what was refused with it. Raises `NotFound` where no delivery is found.
    """
    found = _found(conn, what)
    requests: dict[str, list[StoredRequest]] = {delivery.id: [] for delivery in found}
    for request in executions.of_deliveries(conn, list(requests)):
        requests[request.delivery].append(request)
    return [(delivery, requests[delivery.id]) for delivery in found]


def by_id(conn: sqlalchemy.Connection, delivery_id: str) -> Found:
    """Return a delivery, or the refusal with this id. Raise `NotFound`."""
    try:
        return deliveries.get(conn, delivery_id)
    except NotFound:
        return refusals.get(conn, delivery_id)


def _found(conn: sqlalchemy.Connection, what: str) -> Sequence[Found]:
    if claimed := refusals.claiming(conn, what.strip()):
        return claimed
    text = _ANCHOR.sub("", what.strip().lower())
    if delivery := _DELIVERY.search(text):
        return [by_id(conn, delivery[0])]
    if execution := _EXECUTION.search(text):
        return [deliveries.get(conn, _request(conn, execution[0]).delivery)]
    _check_unknown(conn, _UUID.findall(text))
    known = connections.addresses(conn) if ":" in text else {}
    repository = [connection for connection, key in known.items() if key == repository_key(text)]
    if repository := repository or _named(conn, what.strip()):
        return _newest(conn, repository)
    inside = [connection for connection, key in known.items() if repository_key(text).startswith(f"{key}/")]
    if commits := _COMMIT.findall(text):
        commit = max(reversed(commits), key=len)
        of_commit = _page(conn, commit=commit, limit=_MAX_OF_COMMIT) or deliveries.containing(
            conn, commit, limit=_MAX_OF_COMMIT
        )
        # A short number may be something else, such as a run's number or the date in a branch's name.
        if of_commit:
            return of_commit[::-1]
        if not inside or len(commit) in _WHOLE:
            raise NotFound(
                f"no delivery contains commit {commit}. Only the newest commit is known of a push that"
                f" reconciliation found, or whose webhook lists no commits."
                f" {_NEXT_STEPS.format('CONNECTION')}"
            )
    return _newest(conn, inside) if inside else _unconnected(conn, text, what)


def _request(conn: sqlalchemy.Connection, request_id: str) -> StoredRequest:
    """Return an execution request. Raise `NotFound`, with what a runner has reported about the id."""
    try:
        return executions.get(conn, request_id)
    except NotFound:
        _check_unknown(conn, [request_id])
        raise


def _check_unknown(conn: sqlalchemy.Connection, ids: Sequence[str]) -> None:
    """Raise `NotFound` with what a runner has reported about one of these ids, if any has."""
    for report in runs.unknown(conn, ids):
        runner = "" if report.runner is None else f" {report.runner}"
        raise NotFound(
            f"{report.reason}. The runner{runner} reported it as {report.state}, last at"
            f" {report.last_at:%Y-%m-%dT%H:%M:%SZ}"
        )


def _named(conn: sqlalchemy.Connection, text: str) -> list[str]:
    """Return the connection with this id or name, or with this page in the dashboard or the API."""
    page = text.rpartition("/")[2]
    try:
        return [connections.find(conn, page if _CONNECTION.fullmatch(page) else text)]
    except NotFound:
        return []


def _newest(conn: sqlalchemy.Connection, ids: Sequence[str]) -> list[Found]:
    if found := [delivery for connection in ids for delivery in _newest_of(conn, connection)]:
        return sorted(found, key=lambda delivery: delivery.id)
    if names := list(sources.names(conn, ids).values()):
        raise NotFound(
            f"no deliveries about a repository of the source {names[0]} without a connection. All others"
            f" belong to the connections that pushgate source repositories {names[0]} lists"
        )
    raise NotFound(f"no deliveries for connection {', '.join(ids)}. {_NEXT_STEPS.format(' and '.join(ids))}")


def _unconnected(conn: sqlalchemy.Connection, text: str, what: str) -> list[Found]:
    """Return the newest deliveries about a repository of a source without a connection, by its URL."""
    repository = next(iter(source_repositories.at(conn, text)), None) if ":" in text else None
    if repository is None:
        raise NotFound(f"No delivery, execution, commit or repository matches {what!r}")
    page = _page(conn, connection=repository.source, limit=_MAX_SEARCHED)
    about = [found for found in page if (found.repository or {}).get("id") == repository.repository]
    if about:
        return list(reversed(about[:_MAX_OF_REPOSITORY]))
    source, reason = sources.get(conn, repository.source), repository.reason
    raise NotFound(
        f"no deliveries about {repository.full_name}, a repository of the source {source.name} without a"
        f" connection: {reason or 'its rules have not decided yet'}"
    )


def _newest_of(conn: sqlalchemy.Connection, connection: str) -> Iterator[Found]:
    """Yield the newest deliveries of a connection, and what was refused since the last webhook arrived."""
    page = _page(conn, connection=connection, limit=_MAX_OF_REPOSITORY)
    yield from page
    arrived_at = next((delivery.received_at for delivery in page if delivery.source == "webhook"), None)
    for refusal in refusals.page(conn, connection=connection, before=None, limit=_MAX_OF_REPOSITORY):
        if arrived_at is None or refusal.last_at > arrived_at:
            yield refusal


def _page(
    conn: sqlalchemy.Connection, *, limit: int, connection: str | None = None, commit: str | None = None
) -> list[RecordedDelivery]:
    return deliveries.page(conn, connection=connection, verdict=None, before=None, limit=limit, commit=commit)
