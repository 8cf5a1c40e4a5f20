"""Turn a verified request into the delivery to be stored: pure, except that it creates an id."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from gateway.intake.connection_cache import CachedConnection, Route
from gateway.store.accept import NewDelivery
from gateway.store.deliveries import Verdict
from gateway.store.ids import delivery_id
from gateway.store.other_repositories import OtherRepository
from gateway.store.source_repositories import Seen
from gateway.text.escape import printable
from providers.clone_urls import repository_key
from providers.errors import Malformed, Undecodable
from providers.model import Event, RefUpdate, Repository, VerifiedRequest
from providers.payload import media_type

# The sender chooses these texts, and they are shown and logged in many places.
_MAX_EVENT = 100
_MAX_ID = 200
_MAX_HEADER = 1000
_MAX_REASON = 1000
_MAX_NAME = 500
# In bytes. PostgreSQL's indexes have no room for 2,700: a connection's name has the path and the project.
_MAX_REPOSITORY_ID = 255
_MAX_URL = 1000
# How many refs of a delivery are compared with the remote to decide whether it is the same repository.
_MAX_REFS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A verified request and what was read of it.

    `status` is the HTTP status to answer with once it is recorded, `verdict` that of a delivery about the
    right repository. `secret` is the id of the secret that verified it; None only for Bitbucket Data Center's
    unsigned ping. `exchange` is as in `NewDelivery`.
    """

    status: int
    verdict: Verdict
    event: Event
    event_name: str
    provider_delivery_id: str | None
    headers: Mapping[str, str]
    secret: int | None
    body: bytes
    at: datetime
    exchange: Mapping[str, Any] | None


def read_request(
    connection: CachedConnection,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime,
    client: str | None = None,
) -> Received:
    """Verify and read a request to a connection or a source, from the address `client`.

    Raises `Unverified`. Anything else that is wrong with a verified request is recorded with the delivery.
    """
    request = connection.provider.verify(
        headers=headers, body=body, secrets=connection.secrets, auth=connection.auth, now=now
    )
    request = replace(request, event=request.event[:_MAX_EVENT], id=_cut(request.id, _MAX_ID))
    wanted = connection.provider.HEADERS
    status, verdict, event = _read(connection, request, headers)
    return Received(
        status=status,
        verdict=verdict,
        event=event,
        event_name=_cut(event.name, _MAX_EVENT) or request.event,
        provider_delivery_id=_cut(event.delivery_id, _MAX_ID) or request.id,
        headers={name: value[:_MAX_HEADER] for name, value in headers.items() if name in wanted},
        secret=connection.secret_ids[request.secret] if request.secret is not None else None,
        body=body,
        at=now,
        exchange={
            "hook": connection.id,
            "client": client,
            "withheld": _withheld(connection, headers),
            "status": status,
        },
    )


def _withheld(connection: CachedConnection, headers: Mapping[str, str]) -> dict[str, int]:
    """Return the lengths of the headers with signatures and tokens, by their names."""
    own = connection.auth.get("header", "").lower()
    names = connection.provider.SECRET_HEADERS
    return {name: len(headers[name]) for name in (*names, own) if name in headers}


def _read(
    connection: CachedConnection, request: VerifiedRequest, headers: Mapping[str, str]
) -> tuple[int, Verdict, Event]:
    # A body without a content type is read as JSON, which every provider sends.
    if "content-type" in headers and media_type(headers) not in connection.provider.MEDIA_TYPES:
        expected = " or ".join(sorted(connection.provider.MEDIA_TYPES))
        note = f"content type {media_type(headers)[:100]}, not {expected}"
        return 415, "unreadable", Event(kind="other", note=note)
    try:
        event = connection.provider.parse(request)
    except Undecodable as error:
        return 400, "unreadable", Event(kind="other", note=str(error))
    except Malformed as error:
        return 202, "unreadable", Event(kind="other", note=str(error))
    if event.kind == "ping":
        return 200, "ignored", event
    return 202, verdict_of(event), event


def verdict_of(event: Event) -> Verdict:
    """Return the verdict of a delivery with this event about the right repository."""
    return "accepted" if _updates(event) or event.all_refs else "ignored"


def delivery_to(connection: CachedConnection, received: Received, *, id_: str | None = None) -> NewDelivery:
    """Return the delivery of a connection that is to be recorded, under a new id by default."""
    event, repository = received.event, received.event.repository
    ours = repository is None or connection.is_about(repository)
    # An id is learned only with a matching name: a payload without a name may be about any repository.
    named = repository is not None and bool(repository.urls or repository.full_name)
    learns = ours and named and received.verdict == "accepted" and connection.repository_id is None
    common = _common(connection, received, id_)
    if ours:
        return NewDelivery(
            **common,
            verdict=received.verdict,
            reason=_cut(_reason(event), _MAX_REASON),
            updates=_updates(event),
            asks_for_reconciliation=event.all_refs,
            teaches=repository.id if learns and repository else None,
            rerun=event.rerun,
        )
    return NewDelivery(
        **common,
        verdict="ignored",
        reason=_cut(_other_repository(connection, repository), _MAX_REASON),
        updates=(),
        other_repository=_replacement(connection, repository, event, delivery=common["id"]),
    )


def delivery_of_source(source: CachedConnection, received: Received, route: Route) -> NewDelivery:
    """Return the delivery to a source that is to be recorded: to the repository's connection, if it has one.

    Otherwise it is the source's own. It waits if the rules have not decided about the repository, or may
    decide differently now.
    """
    event, known = received.event, route.known
    seen = _seen(source, event, route)
    if route.connection is not None:
        delivery = delivery_to(route.connection, received)
        if seen is None:
            return delivery
        if event.change is None:
            return replace(delivery, seen=seen)
        where = seen.full_name
        moved = f"the repository was {event.change.action} to {where}: the source updates the connection"
        return replace(delivery, seen=seen, reason=_cut(moved, _MAX_REASON))
    is_wanted = received.verdict == "accepted"
    name = (event.repository and event.repository.full_name) or "the repository"
    if not is_wanted:
        reason = _reason(event)
    elif seen is not None:
        reason = f"waiting until the rules of the source have decided about {name}"
    elif known is not None and known.reason is not None:
        reason = known.reason
    else:
        reason = f"{name} has no connection: the delivery does not name its id and its clone URL"
    return NewDelivery(
        **_common(source, received, None),
        verdict="ignored" if is_wanted else received.verdict,
        reason=_cut(reason, _MAX_REASON),
        updates=(),
        seen=seen,
        waits=event if is_wanted and seen is not None else None,
    )


def routed_id(event: Event) -> str | None:
    """Return the id by which a source's delivery finds its repository; None if it names none."""
    found = event.repository.id if event.repository is not None else None
    return found if found is not None and len(found.encode()) <= _MAX_REPOSITORY_ID else None


def _seen(source: CachedConnection, event: Event, route: Route) -> Seen | None:
    """Return the repository of a source's delivery if the rules have to decide about it now, else None."""
    repository, known = event.repository, route.known
    repository_id = routed_id(event)
    if repository is None or repository_id is None:
        return None
    url = _url(repository, route)
    if url is None or (known is not None and known.state == "removed"):
        return None
    is_decided = known is not None and known.state not in {"due", "gone"}
    if known is not None and is_decided and (url == known.url or route.names(repository)):
        may_add = event.all_refs or any(known.default_branch in {None, move.name} for move in event.updates)
        if not (known.lacks_manifest and may_add):
            return None
    return Seen(
        source=source.id,
        repository=repository_id,
        full_name=(repository.full_name or printable(repository_key(url).partition("/")[2]))[:_MAX_NAME],
        url=url,
        default_branch=repository.default_branch or (known.default_branch if known is not None else None),
        is_listed=known is not None and known.is_listed and url == known.url,
    )


def _url(repository: Repository, route: Route) -> str | None:
    """Return the clone URL of a source's repository; None if neither its delivery nor the source has one."""
    known = route.known
    if known is not None and known.is_listed and route.names(repository):
        return known.url
    # Bitbucket Cloud sends only the address of the repository's page.
    given = repository.urls or ((f"{repository.web_url}.git",) if repository.web_url else ())
    urls = [url for url in given if len(url.encode()) <= _MAX_URL]
    if urls:
        return next((url for url in urls if url.startswith("https://")), urls[0])
    return known.url if known is not None else None


def _common(connection: CachedConnection, received: Received, id_: str | None) -> dict[str, Any]:
    """Return the fields of a delivery that do not depend on whether it is about the right repository."""
    event = received.event
    return {
        "id": id_ or delivery_id(received.at),
        "connection": connection.id,
        "source": "webhook",
        "event": received.event_name,
        "provider_delivery_id": received.provider_delivery_id,
        "received_at": received.at,
        "pusher": event.pusher.name if event.pusher else None,
        "repository": _repository(event),
        "headers": received.headers,
        "secret": received.secret,
        "body": received.body,
        "exchange": received.exchange,
        "detail": _detail(event),
    }


def _cut(text: str | None, longest: int) -> str | None:
    return text[:longest] if text is not None else None


def _other_repository(connection: CachedConnection, repository: Repository | None) -> str:
    """Return a reason that names the delivery's repository and the connection's."""
    if repository is None:
        return "other repository"
    theirs = repository.full_name or next(iter(repository.urls), None) or "a repository without a name"
    its_id = f" (id {repository.id})" if repository.id is not None else ""
    our_id = f" (id {connection.repository_id})" if connection.repository_id is not None else ""
    ours = f"{connection.repository_key}{our_id}"
    return f"other repository: the delivery is about {theirs[:200]}{its_id}, the connection is for {ours}"


def _replacement(
    connection: CachedConnection, repository: Repository | None, event: Event, *, delivery: str
) -> OtherRepository | None:
    """Return the repository that has replaced the connection's, if the delivery names one at its address."""
    if repository is None or repository.id is None:
        return None
    if not (repository.urls or repository.full_name) or not connection.is_at(repository):
        return None
    refs = {move.ref: move.after for move in event.updates[:_MAX_REFS]}
    name = _cut(repository.full_name, _MAX_ID)
    return OtherRepository(id=repository.id, name=name, delivery=delivery, refs=refs)


def _updates(event: Event) -> tuple[RefUpdate, ...]:
    """Return the ref updates; the head of a pull request counts as a ref of its own."""
    pull_request = event.pull_request
    if pull_request is None or pull_request.head is None or pull_request.action not in {"opened", "updated"}:
        return event.updates
    head = RefUpdate(
        ref=f"refs/pull/{pull_request.number}/head",
        kind="pull_request",
        name=pull_request.number,
        before=None,
        after=pull_request.head,
        action="create",
    )
    return (head,)


def _reason(event: Event) -> str | None:
    """Return why an event has no effect, or what happens next."""
    if event.all_refs:
        return "the payload does not list the refs that moved: all refs are being compared with the remote's"
    if event.change is not None:
        where = f" to {event.change.full_name}" if event.change.full_name else ""
        return f"the repository was {event.change.action}{where}: check the connection's URL"
    pull_request = event.pull_request
    if pull_request is not None and not _updates(event):
        is_open = pull_request.action in {"opened", "updated"}
        what = "the payload has no head commit" if is_open else "nothing runs"
        return f"pull request {pull_request.number} was {pull_request.action}: {what}"
    return event.note or None


def _detail(event: Event) -> dict[str, Any] | None:
    """Return the part of an event that is not a ref update."""
    if event.pull_request is not None:
        return {"pull_request": asdict(event.pull_request)}
    return {"change": asdict(event.change)} if event.change is not None else None


def _repository(event: Event) -> dict[str, Any] | None:
    """Return the payload's description of its repository, in the form in which it is stored."""
    repository = event.repository
    if repository is None:
        return None
    return {
        "id": repository.id,
        "full_name": repository.full_name,
        "web_url": repository.web_url,
        "default_branch": repository.default_branch,
    }
