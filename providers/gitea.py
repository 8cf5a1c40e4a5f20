"""Gitea, and Forgejo, which sends its headers under both names.

Webhooks: https://docs.gitea.com/usage/webhooks and https://forgejo.org/docs/latest/user/webhooks/
Payloads: https://github.com/go-gitea/gitea/blob/main/modules/structs/hook.go
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import signatures
from providers.github_like import AnyEvent, HubRepository, described, pull_request_action, verify_document
from providers.model import Event, RefPages, SetupGuide, VerifiedRequest
from providers.normalize import actor, is_from_fork, moved, pull_request, pushed, ref_update
from providers.payload import CommitId, Commits, Count, Id, Lenient, Payload, Text, ids, nested, read

HEADERS = frozenset(
    {
        "content-type",
        "user-agent",
        "x-forgejo-delivery",
        "x-forgejo-event",
        "x-forgejo-event-type",
        "x-gitea-delivery",
        "x-gitea-event",
        "x-gitea-event-type",
    }
)
SECRET_HEADERS = frozenset(
    {"x-forgejo-signature", "x-gitea-signature", "x-hub-signature", "x-hub-signature-256"}
)
ID_HEADERS: tuple[str, ...] = ("x-gitea-delivery", "x-forgejo-delivery")
EVENT_HEADERS: tuple[str, ...] = ("x-gitea-event", "x-forgejo-event")
PUSH_EVENT = "push"
MEDIA_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = "commit"
REF_PAGES: RefPages | None = RefPages(
    branch="src/branch/{name}", compare="compare/{before}...{after}", pull_request="pulls/{name}"
)
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = False
TOKEN_USERS: Mapping[str, str] = {"": "token"}
PUBLIC_HOST: str | None = None
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Settings → Webhooks → Add webhook → Gitea or Forgejo: the webhook URL, content type"
    " application/json",
    credential="The secret goes into “Secret”.",
    events="Push and Delete. For pull requests, also Pull request and Pull request synchronized.",
    limitation="a failed delivery is not retried; reconciliation recovers its push.",
    owner_place="The organisation's Settings → Webhooks → Add webhook → Gitea or Forgejo: the webhook URL,"
    " content type application/json",
    server_place="Site administration → Integrations → Webhooks → System webhooks → Add webhook → Gitea or"
    " Forgejo: the webhook URL, content type application/json",
)


class _Push(Payload):
    ref: Text
    before: Text
    after: Text
    commits: Commits = None
    total_commits: Count = None
    head_commit: Lenient[CommitId] = nested("head_commit", "id", default=None)
    pusher: Lenient[Text] = nested("pusher", "login", default=None)
    email: Lenient[Text] = nested("pusher", "email", default=None)
    repository: Lenient[HubRepository] = None


class _Companion(Payload):
    ref: Text
    ref_type: Text
    sha: Lenient[CommitId] = None
    sender: Lenient[Text] = nested("sender", "login", default=None)
    email: Lenient[Text] = nested("sender", "email", default=None)
    repository: Lenient[HubRepository] = None


class _PullRequest(Payload):
    action: Text
    number: Id
    merged: Lenient[bool] = nested("pull_request", "merged", default=None)
    source: Text = nested("pull_request", "head", "ref")
    target: Text = nested("pull_request", "base", "ref")
    head: Text | None = nested("pull_request", "head", "sha", default=None)
    source_id: Lenient[Id] = nested("pull_request", "head", "repo_id", default=None)
    old_target: Lenient[Text] = nested("changes", "ref", "from", default=None)
    repository: Lenient[HubRepository] = None


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - the scheme has no public part
    now: datetime,  # noqa: ARG001 - no timestamp is signed
) -> VerifiedRequest:
    """Check X-Gitea-Signature over the JSON document, even if the document is in a form."""
    event, id_ = _header(headers, "event") or "", _header(headers, "delivery")
    header = "X-Gitea-Signature" if "x-gitea-signature" in headers else "X-Forgejo-Signature"
    return verify_document(header=header, headers=headers, body=body, event=event, id=id_, secrets=secrets)


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from Gitea reports; its test button sends a real push."""
    if request.event == "push":
        return _push(read(_Push, request))
    if request.event in {"create", "delete"}:
        return _companion(read(_Companion, request), request.event)
    if request.event == "pull_request":
        return _pull_request(read(_PullRequest, request))
    ours = described(read(AnyEvent, request).repository)
    return Event(kind="other", repository=ours, note=f"event {request.event or '(none)'}")


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return moved(ref=ref, before=before, after=after)


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that Gitea sends with this JSON body."""
    return {
        "content-type": "application/json",
        "user-agent": "Go-http-client/1.1",
        "x-gitea-delivery": delivery,
        "x-gitea-event": event,
        "x-gitea-event-type": event,
        "x-gitea-signature": signatures.hmac_hex(body, secret),
    }


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return headers.get(f"x-gitea-{name}") or headers.get(f"x-forgejo-{name}")


def _push(wire: _Push) -> Event:
    listed, total = wire.commits, wire.total_commits
    update = ref_update(
        ref=wire.ref,
        before=wire.before,
        after=wire.after,
        peeled=wire.head_commit if wire.ref.startswith("refs/tags/") else None,
        commits=ids(listed, newest_first=True),
        truncated=None if listed is None or total is None else total > len(listed),
        total=total,
    )
    return pushed(
        repository=described(wire.repository),
        updates=(update,),
        pusher=actor(name=wire.pusher, email=wire.email),
        note=f"no branch and no tag has moved ({wire.ref})",
    )


def _companion(wire: _Companion, event: str) -> Event:
    """Read a `create` or `delete`.

    A new branch is sent as `create` and `push` with equal contents, a deleted branch as `delete`
    alone. Tags are also sent as `push`, which contains more: https://github.com/go-gitea/gitea/blob/main/services/repository/push.go
    """
    ours = described(wire.repository)
    if wire.ref_type != "branch" or (event == "create" and wire.sha is None):
        note = f"the push that is sent beside the {event} event of a {wire.ref_type} counts"
        return Event(kind="other", repository=ours, note=note)
    deleted = event == "delete"
    update = ref_update(
        ref="refs/heads/" + wire.ref,
        before=None,
        after=None if deleted else wire.sha,
        deleted=deleted,
    )
    return pushed(
        repository=ours,
        updates=(update,),
        pusher=actor(name=wire.sender, email=wire.email),
        note="no branch has moved",
    )


def _pull_request(wire: _PullRequest) -> Event:
    ours = described(wire.repository)
    action = pull_request_action(wire.action, merged=wire.merged)
    return pull_request(
        repository=ours,
        action=action or ("updated" if wire.old_target else None),
        note=f"pull request {wire.number}: {wire.action}",
        number=wire.number,
        source=wire.source,
        target=wire.target,
        head=wire.head or None,
        from_fork=is_from_fork(source_id=wire.source_id, ours=ours),
    )
