"""GitLab: gitlab.com and self-managed.

Webhooks: https://docs.gitlab.com/user/project/integrations/webhooks/
Events: https://docs.gitlab.com/user/project/integrations/webhook_events/
System hooks: https://docs.gitlab.com/administration/system_hooks/
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from providers import signatures
from providers.model import (
    Delivery,
    Event,
    PullRequestAction,
    RefUpdate,
    Repository,
    RepositoryAction,
    RepositoryChange,
    actor,
    pull_request,
    ref_update,
    repository,
)
from providers.wire import CommitId, Commits, Count, Decoration, Id, Many, Text, Wire, at, ids, read

# X-Gitlab-Event-UUID is no id of the delivery: webhooks that one webhook has caused share it.
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
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = False  # a signing token signs it, but the plain token does not

_CHANGES: Mapping[str, RepositoryAction] = {
    "project_rename": "renamed",
    "project_transfer": "transferred",
}
_ACTIONS: Mapping[str, PullRequestAction] = {
    "open": "opened",
    "reopen": "opened",
    "update": "updated",
    "merge": "merged",
    "close": "closed",
}


class _Project(Wire):
    id: Id
    path_with_namespace: Text
    web_url: Decoration[Text] = None
    git_http_url: Decoration[Text] = None
    git_ssh_url: Decoration[Text] = None
    default_branch: Decoration[Text] = None


class _Any(Wire):
    object_kind: Decoration[Text] = None
    event_name: Decoration[Text] = None
    project: Decoration[_Project] = None
    project_id: Decoration[Id] = None
    path_with_namespace: Decoration[Text] = None


class _Pushed(Wire):
    user_username: Decoration[Text] = None
    user_name: Decoration[Text] = None
    user_email: Decoration[Text] = None
    project: _Project


class _Push(_Pushed):
    ref: Text
    before: Text
    after: Text
    checkout_sha: Decoration[CommitId] = None
    commits: Commits = None
    total_commits_count: Count = None


class _Change(Wire):
    ref: Text
    before: Text
    after: Text


class _RepositoryUpdate(_Pushed):
    changes: Many[_Change]


class _MergeRequest(Wire):
    iid: Id = at("object_attributes", "iid")
    action: Decoration[Text] = at("object_attributes", "action", default=None)
    source: Text = at("object_attributes", "source_branch")
    target: Text = at("object_attributes", "target_branch")
    source_id: Decoration[Id] = at("object_attributes", "source_project_id", default=None)
    head: Text | None = at("object_attributes", "last_commit", "id", default=None)
    old_head: Decoration[Text] = at("object_attributes", "oldrev", default=None)
    old_target: Decoration[Text] = at("changes", "target_branch", "previous", default=None)
    project: _Project


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - GitLab's schemes have no public part
    now: datetime,
) -> Delivery:
    """Check the signature where a live secret is a signing token (`whsec_`), else X-Gitlab-Token.

    The token never makes up for a signature, but where a plain token is live too, a wrong one is refused.
    """
    signatures.check_secrets(secrets)
    signing = [i for i, secret in enumerate(secrets) if secret.startswith(signatures.SIGNING_PREFIX)]
    plain = [secret for secret in secrets if not secret.startswith(signatures.SIGNING_PREFIX)]
    token = headers.get("x-gitlab-token")
    if signing:
        found = signatures.verify_standard(
            headers=headers, body=body, secrets=[secrets[i] for i in signing], now=now
        )
        if plain and token:
            signatures.verify_token(header="X-Gitlab-Token", value=token, secrets=plain)
        id_, secret = headers.get("webhook-id"), signing[found]
    else:
        secret = signatures.verify_token(header="X-Gitlab-Token", value=token, secrets=secrets)
        id_ = headers.get("webhook-id") or headers.get("idempotency-key")
    return Delivery(event=headers.get("x-gitlab-event", ""), id=id_, secret=secret, content=body)


def parse(delivery: Delivery) -> Event:
    """Say what GitLab tells by this delivery. Its "Test" button sends a push that looks real, and is one."""
    if reader := _READERS.get(delivery.event):
        return reader(delivery)
    wire = read(_Any, delivery)
    kind = wire.object_kind or wire.event_name or ""
    if delivery.event == "System Hook":
        if reader := _SYSTEM_READERS.get(kind):
            return reader(delivery)
        if changed := _CHANGES.get(kind):
            ours = repository(id=wire.project_id, full_name=wire.path_with_namespace)
            change = RepositoryChange(action=changed, full_name=wire.path_with_namespace)
            return Event(kind="repository", repository=ours, change=change)
    note = f"event {delivery.event or '(none)'} {kind}".rstrip()
    return Event(kind="other", repository=_repository(wire.project) if wire.project else None, note=note)


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


def _repository(wire: _Project) -> Repository:
    return repository(
        id=wire.id,
        full_name=wire.path_with_namespace,
        web_url=wire.web_url,
        urls=(wire.git_http_url, wire.git_ssh_url),
        default_branch=wire.default_branch,
    )


def _pushed(wire: _Pushed, updates: tuple[RefUpdate, ...], note: str) -> Event:
    return Event(
        kind="push",
        repository=_repository(wire.project),
        updates=updates,
        pusher=actor(name=wire.user_username or wire.user_name, email=wire.user_email),
        note="" if updates else note,
    )


def _push(delivery: Delivery) -> Event:
    wire = read(_Push, delivery)
    listed, total = wire.commits, wire.total_commits_count
    update = ref_update(
        ref=wire.ref,
        before=wire.before,
        after=wire.after,
        # Null on a delete; on an annotated tag the commit, where `after` is the tag object.
        peeled=wire.checkout_sha if wire.ref.startswith("refs/tags/") else None,
        commits=ids(listed),
        truncated=None if listed is None or total is None else total > len(listed),
        total=total,
    )
    return _pushed(wire, (update,) if update else (), f"{wire.ref} is neither a branch nor a tag")


def _repository_update(delivery: Delivery) -> Event:
    """Tell all refs of a push. A system hook sends this too, without the limit that its push events have."""
    wire = read(_RepositoryUpdate, delivery)
    made = (ref_update(ref=one.ref, before=one.before, after=one.after) for one in wire.changes)
    return _pushed(wire, tuple(update for update in made if update), "no branch and no tag has moved")


def _merge_request(delivery: Delivery) -> Event:
    wire = read(_MergeRequest, delivery)
    ours = _repository(wire.project)
    action = _ACTIONS.get(wire.action or "")
    # `oldrev` comes only where commits were pushed: other updates are about titles, labels, people.
    if action is None or (action == "updated" and not wire.old_head and not wire.old_target):
        note = f"merge request {wire.iid}: {wire.action or 'no action'}"
        return Event(kind="other", repository=ours, note=note)
    found = pull_request(
        action=action,
        number=wire.iid,
        source=wire.source,
        target=wire.target,
        head=wire.head,
        from_fork=None if wire.source_id is None else wire.source_id != wire.project.id,
    )
    return Event(kind="pull_request", repository=ours, pull_request=found)


_READERS: Mapping[str, Callable[[Delivery], Event]] = {
    "Push Hook": _push,
    "Tag Push Hook": _push,
    "Merge Request Hook": _merge_request,
}
_SYSTEM_READERS: Mapping[str, Callable[[Delivery], Event]] = {
    "push": _push,
    "tag_push": _push,
    "repository_update": _repository_update,
    "merge_request": _merge_request,
}
