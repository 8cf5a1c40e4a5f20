"""Bitbucket Data Center, once called Server.

Events: https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html
Signatures: https://confluence.atlassian.com/bitbucketserver/manage-webhooks-938025878.html
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from providers import signatures
from providers.errors import Unverified
from providers.model import Delivery, Event, PullRequestAction, Repository, RepositoryAction, RepositoryChange
from providers.normalize import actor, is_from_fork, pull_request, pushed, ref_updates, repository
from providers.payload import Decoration, Id, Many, Move, Text, Wire, at, read

HEADERS = frozenset({"content-type", "user-agent", "x-event-key", "x-request-id"})
ID_HEADERS: tuple[str, ...] = ("x-request-id",)
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = True

_PING = "diagnostics:ping"
_MODIFIED = "repo:modified"
_LONGEST_PING = 1024
_ACTIONS: Mapping[str, PullRequestAction] = {
    "pr:opened": "opened",
    "pr:from_ref_updated": "updated",
    "pr:merged": "merged",
    "pr:declined": "closed",
    "pr:deleted": "closed",
}


class _Repository(Wire):
    id: Decoration[Id] = None
    slug: Decoration[Text] = None
    project: Decoration[Text] = at("project", "key", default=None)
    # `links` is often absent, and `clone` was seen to be no list: Argo CD CVE-2025-59531.
    web_url: Decoration[Text] = at("links", "self", 0, "href", default=None)
    first_url: Decoration[Text] = at("links", "clone", 0, "href", default=None)
    second_url: Decoration[Text] = at("links", "clone", 1, "href", default=None)


class _Any(Wire):
    repository: Decoration[_Repository] = None


class _Modified(Wire):
    old: Decoration[_Repository] = None
    new: Decoration[_Repository] = None


class _Change(Move):
    ref: Text = at("ref", "id")
    before: Text | None = at("fromHash")
    after: Text | None = at("toHash")


class _Push(Wire):
    changes: Many[_Change]
    pusher: Decoration[Text] = at("actor", "name", default=None)
    email: Decoration[Text] = at("actor", "emailAddress", default=None)
    repository: Decoration[_Repository] = None


class _PullRequest(Wire):
    id: Id = at("pullRequest", "id")
    source: Text = at("pullRequest", "fromRef", "displayId")
    target: Text = at("pullRequest", "toRef", "displayId")
    head: Text = at("pullRequest", "fromRef", "latestCommit")
    source_id: Decoration[Id] = at("pullRequest", "fromRef", "repository", "id", default=None)
    repository: Decoration[_Repository] = at("pullRequest", "toRef", "repository", default=None)


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - the scheme has no public part
    now: datetime,  # noqa: ARG001 - no timestamp is signed
) -> Delivery:
    """Check X-Hub-Signature over the raw body.

    Data Center does not sign what its "Test connection" button sends: that is let in, without its body.
    """
    signatures.check_secrets(secrets)
    event, signature = headers.get("x-event-key", ""), headers.get("x-hub-signature")
    if event == _PING and signature is None:
        if len(body) > _LONGEST_PING:
            raise Unverified(f"an unsigned {_PING} of {len(body)} bytes: Bitbucket's own is tiny")
        return Delivery(event=event, id=None, secret=None, content=b"")
    secret = signatures.verify_hmac_hex(
        header="X-Hub-Signature", value=signature, prefix="sha256=", body=body, secrets=secrets
    )
    return Delivery(event=event, id=headers.get("x-request-id"), secret=secret, content=body)


def parse(delivery: Delivery) -> Event:
    """Say what Bitbucket Data Center tells by this delivery."""
    if delivery.event == _PING:
        return Event(kind="ping", note="ping")  # its body may be empty
    if delivery.event == "repo:refs_changed":
        return _push(read(_Push, delivery))
    if action := _ACTIONS.get(delivery.event):
        return _pull_request(read(_PullRequest, delivery), action)
    if delivery.event == _MODIFIED:
        return _modified(read(_Modified, delivery))
    wire = read(_Any, delivery)
    ours = _repository(wire.repository)
    return Event(kind="other", repository=ours, note=f"event {delivery.event or '(none)'}")


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that Bitbucket Data Center sends with this body."""
    headers = {
        "content-type": "application/json; charset=utf-8",
        "user-agent": "Atlassian HttpClient/pushgate",
        "x-event-key": event,
        "x-request-id": delivery,
    }
    if event == _PING:
        return headers
    return headers | {"x-hub-signature": "sha256=" + signatures.hmac_hex(body, secret)}


def _repository(wire: _Repository | None) -> Repository | None:
    if wire is None:
        return None
    return repository(
        id=wire.id,
        full_name=_full_name(wire),
        web_url=wire.web_url,
        urls=(wire.first_url, wire.second_url),
    )


def _full_name(wire: _Repository) -> str | None:
    return f"{wire.project}/{wire.slug}" if wire.project and wire.slug else None


def _push(wire: _Push) -> Event:
    return pushed(
        repository=_repository(wire.repository),
        updates=ref_updates(wire.changes),
        pusher=actor(name=wire.pusher, email=wire.email),
    )


def _pull_request(wire: _PullRequest, action: PullRequestAction) -> Event:
    ours = _repository(wire.repository)
    return pull_request(
        repository=ours,
        action=action,
        number=wire.id,
        source=wire.source,
        target=wire.target,
        head=wire.head,
        from_fork=wire.source_id is None or is_from_fork(source_id=wire.source_id, ours=ours),
    )


def _modified(wire: _Modified) -> Event:
    ours = _repository(wire.new)
    if wire.old is None or wire.new is None:
        return Event(kind="other", repository=ours, note=f"event {_MODIFIED}")
    full_name = _full_name(wire.new)
    if _full_name(wire.old) == full_name:
        return Event(kind="other", repository=ours, note="neither the name nor the project has changed")
    action: RepositoryAction = "renamed" if wire.old.project == wire.new.project else "transferred"
    change = RepositoryChange(action=action, full_name=full_name)
    return Event(kind="repository", repository=ours, change=change)
