"""Bitbucket Cloud.

Events: https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/
Signatures: https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/#Secure-webhooks
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from typing_extensions import TypedDict

from providers import signatures
from providers.errors import Malformed
from providers.model import (
    Event,
    PullRequestAction,
    RefPages,
    RefUpdate,
    Repository,
    RepositoryChange,
    SetupGuide,
    VerifiedRequest,
)
from providers.normalize import actor, is_from_fork, pull_request, pushed, ref_update, repository
from providers.payload import CommitId, Id, Items, Lenient, Payload, Text, nested, read

HEADERS = frozenset(
    {
        "content-type",
        "user-agent",
        "x-attempt-number",
        "x-event-key",
        "x-event-time",
        "x-hook-uuid",
        "x-request-uuid",
    }
)
SECRET_HEADERS = frozenset({"x-hub-signature"})
ID_HEADERS: tuple[str, ...] = ("x-request-uuid",)
EVENT_HEADERS: tuple[str, ...] = ("x-event-key",)
PUSH_EVENT = "repo:push"
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = "commits"
REF_PAGES: RefPages | None = RefPages(
    branch="branch/{name}", compare="branches/compare/{after}..{before}", pull_request="pull-requests/{name}"
)
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = False
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
# https://support.atlassian.com/bitbucket-cloud/docs/using-access-tokens/
TOKEN_USERS: Mapping[str, str] = {
    "ATATT": "x-bitbucket-api-token-auth",
    "ATCTT": "x-token-auth",
    "": "x-token-auth",
}
PUBLIC_HOST: str | None = "bitbucket.org"
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Repository settings → Webhooks → Add webhook: the webhook URL",
    credential="The secret goes into “Secret”.",
    events="Repository push. For pull requests, also Created, Updated, Merged and Declined.",
    limitation="Bitbucket drops payloads over 256 KB without an error; reconciliation recovers their pushes.",
    owner_place="Workspace settings → Webhooks → Add webhook: the webhook URL",
)

_PREFIXES: Mapping[str, str] = {"branch": "refs/heads/", "tag": "refs/tags/"}
_ACTIONS: Mapping[str, PullRequestAction] = {
    "pullrequest:created": "opened",
    "pullrequest:updated": "updated",
    "pullrequest:fulfilled": "merged",
    "pullrequest:rejected": "closed",
}


class _Repository(Payload):
    uuid: Lenient[Text] = None
    full_name: Lenient[Text] = None
    web_url: Lenient[Text] = nested("links", "html", "href", default=None)


class _Any(Payload):
    new_name: Lenient[Text] = nested("changes", "full_name", "new", default=None)
    repository: Lenient[_Repository] = None


class _Ref(Payload):
    # For the older of two refs, only the id is required.
    type: Lenient[Text] = None
    name: Lenient[Text] = None
    id: Text = nested("target", "hash")


class _Commit(TypedDict):
    hash: CommitId


class _Change(Payload):
    old: _Ref | None = None
    new: _Ref | None = None
    forced: Lenient[bool] = None
    truncated: Lenient[bool] = None
    commits: Lenient[Items[_Commit]] = None


class _Push(Payload):
    changes: Items[_Change] = nested("push", "changes")
    nickname: Lenient[Text] = nested("actor", "nickname", default=None)
    display_name: Lenient[Text] = nested("actor", "display_name", default=None)
    repository: Lenient[_Repository] = None


class _PullRequest(Payload):
    id: Id = nested("pullrequest", "id")
    source: Text = nested("pullrequest", "source", "branch", "name")
    target: Text = nested("pullrequest", "destination", "branch", "name")
    # Usually cut to 12 digits, and then ignored.
    head: Lenient[CommitId] = nested("pullrequest", "source", "commit", "hash", default=None)
    # None if the fork has been deleted.
    source_id: Lenient[Text] = nested("pullrequest", "source", "repository", "uuid", default=None)
    repository: Lenient[_Repository] = None


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - Bitbucket's scheme has no public part
    now: datetime,  # noqa: ARG001 - Bitbucket signs no timestamp
) -> VerifiedRequest:
    """Check X-Hub-Signature, which is SHA-256 here, over the raw body."""
    secret = signatures.verify_hmac_hex(
        header="X-Hub-Signature",
        value=headers.get("x-hub-signature"),
        prefix="sha256=",
        body=body,
        secrets=secrets,
    )
    event, id_ = headers.get("x-event-key", ""), headers.get("x-request-uuid")
    return VerifiedRequest(event=event, id=id_, secret=secret, content=body)


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from Bitbucket Cloud reports."""
    if request.event == "repo:push":
        return _push(read(_Push, request))
    if action := _ACTIONS.get(request.event):
        return _pull_request(read(_PullRequest, request), action)
    wire = read(_Any, request)
    ours = _repository(wire.repository)
    if request.event == "repo:transfer":
        change = RepositoryChange(action="transferred", full_name=ours.full_name if ours else None)
        return Event(kind="repository", repository=ours, change=change)
    if request.event == "repo:updated" and wire.new_name:
        change = RepositoryChange(action="renamed", full_name=wire.new_name)
        return Event(kind="repository", repository=ours, change=change)
    return Event(kind="other", repository=ours, note=f"event {request.event or '(none)'}")


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    kind, _, name = ref.removeprefix("refs/").partition("/")
    named = {"type": "tag" if kind == "tags" else "branch", "name": name}
    old = {**named, "target": {"hash": before}} if before is not None else None
    return {"push": {"changes": [{"old": old, "new": {**named, "target": {"hash": after}}}]}}


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that Bitbucket Cloud sends with this body."""
    return {
        "content-type": "application/json",
        "user-agent": "Bitbucket-Webhooks/2.0",
        "x-event-key": event,
        "x-request-uuid": delivery,
        "x-hub-signature": "sha256=" + signatures.hmac_hex(body, secret),
    }


def _repository(wire: _Repository | None) -> Repository | None:
    """Return the repository; payloads contain neither clone URL nor default branch."""
    if wire is None:
        return None
    return repository(id=wire.uuid, full_name=wire.full_name, web_url=wire.web_url)


def _push(wire: _Push) -> Event:
    return pushed(
        repository=_repository(wire.repository),
        updates=map(_update, wire.changes),
        pusher=actor(name=wire.nickname or wire.display_name),
    )


def _update(change: _Change) -> RefUpdate | None:
    name, kind = _named(change)
    prefix = _PREFIXES.get(kind)
    if prefix is None:
        return None  # a bookmark or named branch, from the time of Mercurial
    after = change.new.id if change.new else None
    return ref_update(
        ref=prefix + name,
        before=change.old.id if change.old else None,
        after=after,
        peeled=after if kind == "tag" else None,  # the payload never has an annotated tag's own id
        forced=change.forced,
        commits=tuple(commit["hash"] for commit in reversed(change.commits or ())),
        truncated=change.truncated,
    )


def _named(change: _Change) -> tuple[str, str]:
    """Return name and type of the ref that has moved. Raises `Malformed`."""
    ref = change.new or change.old
    if ref is None:
        raise Malformed("push.changes: a change has neither old nor new")
    if ref.name is None or ref.type is None:
        raise Malformed("push.changes: a ref has no name or no type")
    return ref.name, ref.type


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
