"""Bitbucket Data Center, formerly called Server.

Events: https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html
Signatures: https://confluence.atlassian.com/bitbucketserver/manage-webhooks-938025878.html
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import signatures
from providers.errors import Unverified
from providers.model import (
    Event,
    PullRequestAction,
    RefPages,
    Repository,
    RepositoryAction,
    RepositoryChange,
    SetupGuide,
    VerifiedRequest,
)
from providers.normalize import actor, is_from_fork, pull_request, pushed, ref_updates, repository, zeros
from providers.payload import Id, Items, Lenient, Moment, Move, Payload, Text, nested, read

HEADERS = frozenset({"content-type", "user-agent", "x-event-key", "x-request-id"})
SECRET_HEADERS = frozenset({"x-hub-signature"})
ID_HEADERS: tuple[str, ...] = ("x-request-id",)
EVENT_HEADERS: tuple[str, ...] = ("x-event-key",)
PUSH_EVENT = "repo:refs_changed"
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = "commits"
REF_PAGES: RefPages | None = RefPages(
    branch="browse?at=refs/heads/{name}",
    compare="compare/diff?targetBranch={before}&sourceBranch={after}",
    pull_request="pull-requests/{name}",
)
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = False
TOKEN_USERS: Mapping[str, str] = {"": "token"}
PUBLIC_HOST: str | None = None
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Repository settings → Webhooks → Create webhook: the webhook URL",
    credential="The secret goes into “Secret”; set the authentication to None.",
    events="Repository: Push. For pull requests, also Opened, Source branch updated, Merged, Declined and"
    " Deleted.",
    limitation="“Test connection” is not signed: it checks the URL, not the secret. Push to test both.",
    owner_place="Project settings → Webhooks → Create webhook: the webhook URL",
)

_PING = "diagnostics:ping"
_MODIFIED = "repo:modified"
_MAX_PING = 1024
_ACTIONS: Mapping[str, PullRequestAction] = {
    "pr:opened": "opened",
    "pr:from_ref_updated": "updated",
    "pr:merged": "merged",
    "pr:declined": "closed",
    "pr:deleted": "closed",
}


class _Repository(Payload):
    id: Lenient[Id] = None
    slug: Lenient[Text] = None
    project: Lenient[Text] = nested("project", "key", default=None)
    # `links` is often absent, and `clone` is not always a list: Argo CD CVE-2025-59531.
    web_url: Lenient[Text] = nested("links", "self", 0, "href", default=None)
    first_url: Lenient[Text] = nested("links", "clone", 0, "href", default=None)
    second_url: Lenient[Text] = nested("links", "clone", 1, "href", default=None)


class _Any(Payload):
    repository: Lenient[_Repository] = None


class _Modified(Payload):
    old: Lenient[_Repository] = None
    new: Lenient[_Repository] = None


class _Change(Move):
    ref: Text = nested("ref", "id")
    before: Text | None = nested("fromHash")
    after: Text | None = nested("toHash")


class _Push(Payload):
    changes: Items[_Change]
    pusher: Lenient[Text] = nested("actor", "name", default=None)
    email: Lenient[Text] = nested("actor", "emailAddress", default=None)
    pushed_at: Moment = nested("date", default=None)
    repository: Lenient[_Repository] = None


class _PullRequest(Payload):
    id: Id = nested("pullRequest", "id")
    source: Text = nested("pullRequest", "fromRef", "displayId")
    target: Text = nested("pullRequest", "toRef", "displayId")
    head: Text = nested("pullRequest", "fromRef", "latestCommit")
    source_id: Lenient[Id] = nested("pullRequest", "fromRef", "repository", "id", default=None)
    repository: Lenient[_Repository] = nested("pullRequest", "toRef", "repository", default=None)


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - the scheme has no public part
    now: datetime,  # noqa: ARG001 - no timestamp is signed
) -> VerifiedRequest:
    """Check X-Hub-Signature over the raw body.

    Data Center does not sign the request of its "Test connection" button: accept it, but drop its body.
    """
    signatures.check_secrets(secrets)
    event, signature = headers.get("x-event-key", ""), headers.get("x-hub-signature")
    if event == _PING and signature is None:
        if len(body) > _MAX_PING:
            raise Unverified(f"an unsigned {_PING} of {len(body)} bytes: Bitbucket's own is tiny")
        return VerifiedRequest(event=event, id=None, secret=None, content=b"")
    secret = signatures.verify_hmac_hex(
        header="X-Hub-Signature", value=signature, prefix="sha256=", body=body, secrets=secrets
    )
    return VerifiedRequest(event=event, id=headers.get("x-request-id"), secret=secret, content=body)


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from Bitbucket Data Center reports."""
    if request.event == _PING:
        return Event(kind="ping", note="ping")  # its body may be empty
    if request.event == "repo:refs_changed":
        return _push(read(_Push, request))
    if action := _ACTIONS.get(request.event):
        return _pull_request(read(_PullRequest, request), action)
    if request.event == _MODIFIED:
        return _modified(read(_Modified, request))
    wire = read(_Any, request)
    ours = _repository(wire.repository)
    return Event(kind="other", repository=ours, note=f"event {request.event or '(none)'}")


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return {
        "changes": [
            {"ref": {"id": ref}, "fromHash": before or zeros(after), "toHash": after},
        ]
    }


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
        pushed_at=wire.pushed_at,
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
