"""GitLab: gitlab.com and self-managed.

Webhooks: https://docs.gitlab.com/user/project/integrations/webhooks/, their events: …/webhook_events/
System hooks: https://docs.gitlab.com/administration/system_hooks/
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import model, normalize, signatures
from providers.model import Event, RefPages, SetupGuide, VerifiedRequest
from providers.payload import (
    CommitId,
    Commits,
    Count,
    Id,
    Items,
    Lenient,
    Move,
    Payload,
    Text,
    ids,
    nested,
    read,
)

# X-Gitlab-Event-UUID does not identify a delivery: webhooks triggered by the same webhook share it.
HEADERS = frozenset(
    {
        "content-type",
        "idempotency-key",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "x-gitlab-event",
        "x-gitlab-event-uuid",
        "x-gitlab-instance",
        "x-gitlab-webhook-uuid",
    }
)
SECRET_HEADERS = frozenset({"webhook-signature", "x-gitlab-token"})
ID_HEADERS: tuple[str, ...] = ("webhook-id", "idempotency-key")
EVENT_HEADERS: tuple[str, ...] = ("x-gitlab-event",)
PUSH_EVENT = "Push Hook"
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = False  # a signing token signs it; a plain token does not
COMMIT_PAGE: str | None = "-/commit"
REF_PAGES: RefPages | None = RefPages(
    branch="-/tree/{name}", compare="-/compare/{before}...{after}", pull_request="-/merge_requests/{name}"
)
AUTH_OPTIONS = frozenset({"token", "signing_token"})
# https://docs.gitlab.com/user/project/integrations/webhooks/#signing-tokens
HAS_SIGNING_SECRETS = True
TOKEN_USERS: Mapping[str, str] = {"": "oauth2"}
PUBLIC_HOST: str | None = "gitlab.com"
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Settings → Webhooks → Add new webhook: the webhook URL",
    credential="A secret that begins with whsec_ goes into “Signing token”, any other into “Secret token”."
    " GitLab before 19.0 has only the latter: connect with --secret and a secret of your own.",
    events="Push events and Tag push events. For merge requests, also Merge request events.",
    limitation="a push of more than 3 refs sends no webhook; reconciliation recovers it. After four failures,"
    " GitLab disables the webhook.",
    owner_place="The group's Settings → Webhooks → Add new webhook: the webhook URL",
    server_place="Admin area → System hooks → Add new webhook: the webhook URL; in step 3, select Repository"
    " update events in place of the pushes",
)

_CHANGES: Mapping[str, model.RepositoryAction] = {
    "project_rename": "renamed",
    "project_transfer": "transferred",
}
_ACTIONS: Mapping[str, model.PullRequestAction] = {
    "open": "opened",
    "reopen": "opened",
    "update": "updated",
    "merge": "merged",
    "close": "closed",
}


class _Project(Payload):
    id: Lenient[Id] = None
    path_with_namespace: Lenient[Text] = None
    web_url: Lenient[Text] = None
    git_http_url: Lenient[Text] = None
    git_ssh_url: Lenient[Text] = None
    default_branch: Lenient[Text] = None


class _AboutProject(Payload):
    # `project` came with 8.5, and in it `id` later: https://docs.gitlab.com/administration/system_hooks/
    project: Lenient[_Project] = None
    project_id: Lenient[Id] = None
    homepage: Lenient[Text] = nested("repository", "homepage", default=None)
    git_http_url: Lenient[Text] = nested("repository", "git_http_url", default=None)
    git_ssh_url: Lenient[Text] = nested("repository", "git_ssh_url", default=None)


class _Any(_AboutProject):
    object_kind: Lenient[Text] = None
    event_name: Lenient[Text] = None
    path_with_namespace: Lenient[Text] = None


class _Pushed(_AboutProject):
    user_username: Lenient[Text] = None
    user_name: Lenient[Text] = None
    user_email: Lenient[Text] = None


class _Push(_Pushed):
    ref: Text
    before: Text
    after: Text
    checkout_sha: Lenient[CommitId] = None
    commits: Commits = None
    total_commits_count: Count = None


class _RepositoryUpdate(_Pushed):
    changes: Items[Move]


class _MergeRequest(_AboutProject):
    project_id: Lenient[Id] = nested("object_attributes", "target_project_id", default=None)
    iid: Id = nested("object_attributes", "iid")
    action: Lenient[Text] = nested("object_attributes", "action", default=None)
    source: Text = nested("object_attributes", "source_branch")
    target: Text = nested("object_attributes", "target_branch")
    source_id: Lenient[Id] = nested("object_attributes", "source_project_id", default=None)
    head: Text | None = nested("object_attributes", "last_commit", "id", default=None)
    old_head: Lenient[Text] = nested("object_attributes", "oldrev", default=None)
    old_target: Lenient[Text] = nested("changes", "target_branch", "previous", default=None)


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - GitLab's schemes have no public part
    now: datetime,
) -> VerifiedRequest:
    """Check the signature if a live secret is a signing token (`whsec_`), else X-Gitlab-Token."""
    token = headers.get("x-gitlab-token")
    secret = signatures.verify_standard_or_token(
        headers=headers, body=body, header="X-Gitlab-Token", token=token, secrets=secrets, now=now
    )
    id_ = headers.get("webhook-id") or headers.get("idempotency-key")
    return VerifiedRequest(event=headers.get("x-gitlab-event", ""), id=id_, secret=secret, content=body)


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from GitLab reports. Its "Test" button sends a push like any other."""
    if reader := _READERS.get(request.event):
        return reader(request)
    wire = read(_Any, request)
    kinds = [kind for kind in (wire.object_kind, wire.event_name) if kind]
    for kind in kinds:
        if reader := _READERS.get(kind):
            return reader(request)
        if changed := _CHANGES.get(kind):
            ours = normalize.repository(id=wire.project_id, full_name=wire.path_with_namespace)
            change = model.RepositoryChange(action=changed, full_name=wire.path_with_namespace)
            return Event(kind="repository", repository=ours, change=change)
    note = " ".join(["event", request.event or "(none)", *kinds[:1]])
    return Event(kind="other", repository=_repository(wire), note=note)


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return {"object_kind": "push", **normalize.moved(ref=ref, before=before, after=after)}


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:
    """Return the headers that GitLab sends with this body."""
    headers = {
        "content-type": "application/json",
        "user-agent": "GitLab/pushgate",
        "x-gitlab-event": event,
        "idempotency-key": delivery,
    }
    if secret.startswith(signatures.SIGNING_PREFIX):
        return headers | signatures.sign_standard(secret=secret, id=delivery, body=body, now=now)
    return headers | {"webhook-id": delivery, "x-gitlab-token": secret.decode("latin-1")}


def _repository(wire: _AboutProject) -> model.Repository | None:
    """Return the project, from its own part of the payload, or from the fields of older servers."""
    project = wire.project or _Project()
    return normalize.repository(
        id=project.id or wire.project_id,
        full_name=project.path_with_namespace,
        web_url=project.web_url or wire.homepage,
        urls=(project.git_http_url or wire.git_http_url, project.git_ssh_url or wire.git_ssh_url),
        default_branch=project.default_branch,
    )


def _pushed(wire: _Pushed, updates: Sequence[model.RefUpdate | None]) -> Event:
    pusher = normalize.actor(name=wire.user_username or wire.user_name, email=wire.user_email)
    return normalize.pushed(repository=_repository(wire), updates=updates, pusher=pusher)


def _push(request: VerifiedRequest) -> Event:
    wire = read(_Push, request)
    listed, total = wire.commits, wire.total_commits_count
    update = normalize.ref_update(
        ref=wire.ref,
        before=wire.before,
        after=wire.after,
        # Null for a delete; for an annotated tag the commit, while `after` is the tag object.
        peeled=wire.checkout_sha if wire.ref.startswith("refs/tags/") else None,
        commits=ids(listed),
        truncated=None if listed is None or total is None else total > len(listed),
        total=total,
    )
    return _pushed(wire, (update,))


def _repository_update(request: VerifiedRequest) -> Event:
    """Return all refs of a push. System hooks send this event too, without the limit of push events."""
    wire = read(_RepositoryUpdate, request)
    return _pushed(wire, normalize.ref_updates(wire.changes))


def _merge_request(request: VerifiedRequest) -> Event:
    wire = read(_MergeRequest, request)
    action = _ACTIONS.get(wire.action or "")
    # `oldrev` is present only if commits were pushed: other updates concern titles, labels or people.
    if action == "updated" and not wire.old_head and not wire.old_target:
        action = None
    ours = _repository(wire)
    return normalize.pull_request(
        repository=ours,
        action=action,
        note=f"merge request {wire.iid}: {wire.action or 'no action'}",
        number=wire.iid,
        source=wire.source,
        target=wire.target,
        head=wire.head,
        from_fork=normalize.is_from_fork(source_id=wire.source_id, ours=ours),
    )


# By the header; or by the body, if the header says only "System Hook" or a name from older servers.
_READERS: Mapping[str, Callable[[VerifiedRequest], Event]] = {
    **dict.fromkeys(("Push Hook", "Tag Push Hook", "push", "tag_push"), _push),
    **dict.fromkeys(("Merge Request Hook", "merge_request"), _merge_request),
    "repository_update": _repository_update,
}
