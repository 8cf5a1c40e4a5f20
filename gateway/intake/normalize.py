"""From a request's bytes to what is recorded of it: pure, but for a new id."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from gateway.intake.connection_cache import CachedConnection
from gateway.store.accept import NewDelivery
from gateway.store.connections import OtherRepository
from gateway.store.deliveries import Verdict
from gateway.store.ids import delivery_id
from providers.errors import Malformed, Undecodable
from providers.model import Event, RefUpdate, Repository, VerifiedRequest
from providers.payload import media_type

# Whoever signs deliveries chooses these texts, and they are shown and logged everywhere.
_MAX_EVENT = 100
_MAX_ID = 200
_MAX_HEADER = 1000
_MAX_REASON = 1000
# So many refs of a delivery are compared with the remote to tell whether it is about it.
_MAX_REFS = 20


def receive_delivery(
    known: CachedConnection, headers: Mapping[str, str], body: bytes, now: datetime
) -> tuple[NewDelivery, int]:
    """Return what is to be recorded of a request, and the HTTP status that it deserves once it is.

    Raises `Unverified`; whatever else is wrong with a request whose sender is proven is recorded.
    """
    delivery = known.provider.verify(
        headers=headers, body=body, secrets=known.secrets, auth=known.auth, now=now
    )
    delivery = replace(delivery, event=delivery.event[:_MAX_EVENT], id=_cut(delivery.id, _MAX_ID))
    kept = {name: value[:_MAX_HEADER] for name, value in headers.items() if name in known.provider.HEADERS}
    status, verdict, event = _read(known, delivery, headers)
    return _record(known, delivery, event, verdict, kept, body, now), status


def _read(
    known: CachedConnection, delivery: VerifiedRequest, headers: Mapping[str, str]
) -> tuple[int, Verdict, Event]:
    # Without a content type it is taken for JSON, which every provider sends.
    if "content-type" in headers and media_type(headers) not in known.provider.MEDIA_TYPES:
        expected = " or ".join(sorted(known.provider.MEDIA_TYPES))
        note = f"content type {media_type(headers)[:100]}, not {expected}"
        return 415, "unreadable", Event(kind="other", note=note)
    try:
        event = known.provider.parse(delivery)
    except Undecodable as error:
        return 400, "unreadable", Event(kind="other", note=str(error))
    except Malformed as error:
        return 202, "unreadable", Event(kind="other", note=str(error))
    if event.kind == "ping":
        return 200, "ignored", event
    return 202, "accepted" if _updates(event) or event.all_refs else "ignored", event


def _record(
    known: CachedConnection,
    delivery: VerifiedRequest,
    event: Event,
    verdict: Verdict,
    kept: Mapping[str, str],
    body: bytes,
    now: datetime,
) -> NewDelivery:
    repository = event.repository
    ours = repository is None or known.is_about(repository)
    # An id is learned only beside a name that fits: whatever names nothing may be about any repository.
    named = repository is not None and bool(repository.urls or repository.full_name)
    learns = ours and named and verdict == "accepted" and known.repository_id is None
    its_id = delivery_id(now)
    return NewDelivery(
        id=its_id,
        connection=known.id,
        source="webhook",
        event=_cut(event.name, _MAX_EVENT) or delivery.event,
        provider_delivery_id=_cut(event.delivery_id, _MAX_ID) or delivery.id,
        received_at=now,
        verdict=verdict if ours else "ignored",
        reason=_cut(_reason(event) if ours else _other_repository(known, repository), _MAX_REASON),
        pusher=event.pusher.name if event.pusher else None,
        repository=_shown(event),
        headers=kept,
        secret=known.secret_ids[delivery.secret] if delivery.secret is not None else None,
        body=body,
        updates=_updates(event) if ours else (),
        detail=_detail(event),
        asks_for_reconciliation=ours and event.all_refs,
        teaches=repository.id if learns and repository else None,
        other_repository=None if ours else _replacement(known, repository, event, delivery=its_id),
    )


def _cut(text: str | None, longest: int) -> str | None:
    return text[:longest] if text is not None else None


def _other_repository(known: CachedConnection, repository: Repository | None) -> str:
    """Name both repositories of a delivery that is about another one than its connection."""
    if repository is None:
        return "other repository"
    told = repository.full_name or next(iter(repository.urls), None) or "one without a name"
    its_id = f" (id {repository.id})" if repository.id is not None else ""
    our_id = f" (id {known.repository_id})" if known.repository_id is not None else ""
    ours = f"{known.repository_key}{our_id}"
    return f"other repository: the delivery is about {told[:200]}{its_id}, the connection is for {ours}"


def _replacement(
    known: CachedConnection, repository: Repository | None, event: Event, *, delivery: str
) -> OtherRepository | None:
    """Return the repository that has taken the place of the connection's, if the delivery names one."""
    if repository is None or repository.id is None:
        return None
    if not (repository.urls or repository.full_name) or not known.is_at(repository):
        return None
    refs = {move.ref: move.after for move in event.updates[:_MAX_REFS]}
    name = _cut(repository.full_name, _MAX_ID)
    return OtherRepository(id=repository.id, name=name, delivery=delivery, refs=refs)


def _updates(event: Event) -> tuple[RefUpdate, ...]:
    """Return what has moved; the head of a pull request moves like a ref of its own."""
    asked = event.pull_request
    if asked is None or asked.head is None or asked.action not in {"opened", "updated"}:
        return event.updates
    head = RefUpdate(
        ref=f"refs/pull/{asked.number}/head",
        kind="pull_request",
        name=asked.number,
        before=None,
        after=asked.head,
        action="create",
    )
    return (head,)


def _reason(event: Event) -> str | None:
    """Say of an event why nothing comes of it, or what is still to come."""
    if event.all_refs:
        return "it doesn't say which refs moved: all are being compared with the remote's"
    if event.change is not None:
        where = f" to {event.change.full_name}" if event.change.full_name else ""
        return f"the repository was {event.change.action}{where}: see that the connection's URL is right"
    asked = event.pull_request
    if asked is not None and not _updates(event):
        told = "its head commit is not told" if asked.action in {"opened", "updated"} else "nothing runs"
        return f"pull request {asked.number} was {asked.action}: {told}"
    return event.note or None


def _detail(event: Event) -> dict[str, Any] | None:
    """Return what an event tells that is no ref update."""
    if event.pull_request is not None:
        return {"pull_request": asdict(event.pull_request)}
    return {"change": asdict(event.change)} if event.change is not None else None


def _shown(event: Event) -> dict[str, Any] | None:
    """Return the payload's words for its repository, in the form in which they are kept."""
    repository = event.repository
    if repository is None:
        return None
    return {
        "id": repository.id,
        "full_name": repository.full_name,
        "web_url": repository.web_url,
        "default_branch": repository.default_branch,
    }
