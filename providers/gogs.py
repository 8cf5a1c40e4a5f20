"""Gogs.

Payloads: https://gogs.io/advancing/webhooks and https://github.com/gogs/gogs/blob/main/internal/database/actions.go
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import signatures
from providers.github_like import AnyEvent, HubRepository, described, pull_request_action, verify_document
from providers.model import Event, RefPages, RefUpdate, SetupGuide, VerifiedRequest
from providers.normalize import actor, is_from_fork, moved, pull_request, pushed, ref_update
from providers.payload import CommitId, Commits, Id, Lenient, Payload, Text, ids, nested, read

HEADERS = frozenset({"content-type", "user-agent", "x-gogs-delivery", "x-gogs-event"})
SECRET_HEADERS = frozenset({"x-gogs-signature"})
ID_HEADERS: tuple[str, ...] = ("x-gogs-delivery",)
EVENT_HEADERS: tuple[str, ...] = ("x-gogs-event",)
PUSH_EVENT = "push"
MEDIA_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = "commit"
REF_PAGES: RefPages | None = RefPages(
    branch="src/{name}", compare="compare/{before}...{after}", pull_request="pulls/{name}"
)
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = False
TOKEN_USERS: Mapping[str, str] = {"": "token"}
PUBLIC_HOST: str | None = None
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Settings → Webhooks → Add a new webhook → Gogs: the webhook URL, content type application/json",
    credential="The secret goes into “Secret”.",
    events="Let me choose: Create, Delete and Push. For pull requests, also Pull request.",
    limitation="Gogs reports tags by Create and Delete only, so select all three events.",
)

_PREFIXES: Mapping[str, str] = {"branch": "refs/heads/", "tag": "refs/tags/"}


class _Moved(Payload):
    ref: Text
    sender: Lenient[Text] = nested("sender", "login", default=None)
    email: Lenient[Text] = nested("sender", "email", default=None)
    # It can be null (Argo CD CVE-2025-59537), and then counts as the connection's repository.
    repository: Lenient[HubRepository] = None


class _Push(_Moved):
    before: Text
    after: Text
    commits: Commits = None


class _CreateOrDelete(_Moved):
    ref_type: Text
    sha: Lenient[CommitId] = None


class _PullRequest(Payload):
    action: Text
    number: Id
    merged: Lenient[bool] = nested("pull_request", "merged", default=None)
    source: Text = nested("pull_request", "head_branch")
    target: Text = nested("pull_request", "base_branch")
    source_id: Lenient[Id] = nested("pull_request", "head_repo", "id", default=None)
    repository: Lenient[HubRepository] = None


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - the scheme has no public part
    now: datetime,  # noqa: ARG001 - no timestamp is signed
) -> VerifiedRequest:
    """Check X-Gogs-Signature over the JSON document, even if the document is in a form."""
    event, id_ = headers.get("x-gogs-event", ""), headers.get("x-gogs-delivery")
    return verify_document(
        header="X-Gogs-Signature", headers=headers, body=body, event=event, id=id_, secrets=secrets
    )


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from Gogs reports."""
    if request.event == "push":
        return _push(read(_Push, request))
    if request.event in {"create", "delete"}:
        return _create_or_delete(read(_CreateOrDelete, request), request.event)
    if request.event == "pull_request":
        return _pull_request(read(_PullRequest, request))
    ours = described(read(AnyEvent, request).repository)
    return Event(kind="other", repository=ours, note=f"event {request.event or '(none)'}")


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return moved(ref=ref, before=before, after=after)


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that Gogs sends with this JSON body."""
    return {
        "content-type": "application/json",
        "user-agent": "GogsServer",
        "x-gogs-delivery": delivery,
        "x-gogs-event": event,
        "x-gogs-signature": signatures.hmac_hex(body, secret),
    }


def _moved(wire: _Moved, update: RefUpdate | None) -> Event:
    return pushed(
        repository=described(wire.repository),
        updates=(update,),
        pusher=actor(name=wire.sender, email=wire.email),
        note=f"no branch and no tag has moved ({wire.ref})",
    )


def _push(wire: _Push) -> Event:
    """Read a `push`, which covers branches only; the test of an empty repository has only zero ids."""
    commits = ids(wire.commits, newest_first=True)
    return _moved(wire, ref_update(ref=wire.ref, before=wire.before, after=wire.after, commits=commits))


def _create_or_delete(wire: _CreateOrDelete, event: str) -> Event:
    """Read a `create` or `delete`.

    Tags are sent as these events only, with an id if they are new or have moved; so are deleted branches.
    A new branch is also sent as a push, and only the push contains the commit.
    """
    prefix = _PREFIXES.get(wire.ref_type)
    if prefix is None or (event == "create" and wire.sha is None):
        note = f"the push that Gogs sends beside the {event} event of a {wire.ref_type} counts"
        return Event(kind="other", repository=described(wire.repository), note=note)
    deleted = event == "delete"
    after = None if deleted else wire.sha
    return _moved(wire, ref_update(ref=prefix + wire.ref, before=None, after=after, deleted=deleted))


def _pull_request(wire: _PullRequest) -> Event:
    """Read a pull request; Gogs does not send its head commit."""
    ours = described(wire.repository)
    return pull_request(
        repository=ours,
        action=pull_request_action(wire.action, merged=wire.merged),
        note=f"pull request {wire.number}: {wire.action}",
        number=wire.number,
        source=wire.source,
        target=wire.target,
        head=None,
        from_fork=is_from_fork(source_id=wire.source_id, ours=ours),
    )
