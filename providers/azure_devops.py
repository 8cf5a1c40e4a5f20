"""Azure DevOps: Services and Server.

Service hooks: https://learn.microsoft.com/azure/devops/service-hooks/services/webhooks
Events: https://learn.microsoft.com/azure/devops/service-hooks/events
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from typing_extensions import TypedDict

from providers import signatures
from providers.model import (
    Event,
    PullRequestAction,
    RefPages,
    Repository,
    RepositoryChange,
    SetupGuide,
    VerifiedRequest,
)
from providers.normalize import actor, pull_request, pushed, ref_update, repository, zeros
from providers.payload import CommitId, Id, Items, Lenient, Moment, Payload, Text, nested, read

HEADERS = frozenset({"content-type", "request-id", "user-agent", "x-vss-activityid", "x-vss-subscriptionid"})
SECRET_HEADERS = frozenset({"authorization"})
ID_HEADERS: tuple[str, ...] = ()
EVENT_HEADERS: tuple[str, ...] = ()
PUSH_EVENT = ""
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = False
COMMIT_PAGE: str | None = "commit"
REF_PAGES: RefPages | None = RefPages(
    branch="?version=GB{name}",
    compare="branchCompare?baseVersion=GC{before}&targetVersion=GC{after}",
    pull_request="pullrequest/{name}",
)
AUTH_OPTIONS = frozenset({"user", "header", "value"})
HAS_SIGNING_SECRETS = False
TOKEN_USERS: Mapping[str, str] = {"": "token"}
# https://learn.microsoft.com/en-us/azure/devops/repos/git/use-ssh-keys-to-authenticate
PUBLIC_HOST: str | None = "dev.azure.com"
RSA_KEYS_ONLY = True
SETUP = SetupGuide(
    place="Project settings → Service hooks → + → Web Hooks, “Code pushed”: the repository, the webhook URL",
    credential="The secret is the password of the Basic authentication; “Resource details to send” is All.",
    events="Code pushed. For pull requests, add one subscription each for created, updated and merge"
    " attempted.",
    limitation="after a 401 or 404, Azure DevOps puts the subscription on probation and drops events: check"
    " the subscription's status.",
    owner_place="Project settings → Service hooks → + → Web Hooks, “Code pushed”: the repository [Any], the"
    " webhook URL",
)

_HEADS = "refs/heads/"
# The "Test" button sends a payload about the sample project Fabrikam, without a subscription.
_NO_SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
_SAMPLE_PROJECT = "6ce954b1-ce1f-45d1-b94d-e6bf2464ba2c"
# https://learn.microsoft.com/rest/api/azure/devops/git/pull-requests/get-pull-request#pullrequeststatus
_ENDS: Mapping[str, PullRequestAction] = {"completed": "merged", "abandoned": "closed"}
# While a pull request is active, git.pullrequest.merged only reports that a merge was attempted.
_ACTIONS: Mapping[str, PullRequestAction] = {
    "git.pullrequest.created": "opened",
    "git.pullrequest.updated": "updated",
}


class _Repository(Payload):
    id: Lenient[Id] = None
    name: Lenient[Text] = None
    project: Lenient[Text] = nested("project", "name", default=None)
    project_id: Lenient[Text] = nested("project", "id", default=None)
    remote_url: Lenient[Text] = nested("remoteUrl", default=None)
    web_url: Lenient[Text] = nested("webUrl", default=None)
    default_branch: Lenient[Text] = nested("defaultBranch", default=None)


class _RefUpdate(Payload):
    ref: Text = nested("name")
    before: Text = nested("oldObjectId")
    after: Text = nested("newObjectId")


class _Commit(TypedDict):
    commitId: CommitId


class _Any(Payload):
    event: Text = nested("eventType")
    id: Lenient[Id] = None
    subscription: Lenient[Id] = nested("subscriptionId", default=None)
    notification: Lenient[Id] = nested("notificationId", default=None)
    # Both are missing if the subscription's resourceDetailsToSend is minimal or none.
    repository: Lenient[_Repository] = nested("resource", "repository", default=None)
    updates: Items[_RefUpdate] | None = nested("resource", "refUpdates", default=None)
    commits: Lenient[Items[_Commit]] = nested("resource", "commits", default=None)
    pusher: Lenient[Text] = nested("resource", "pushedBy", "displayName", default=None)
    account: Lenient[Text] = nested("resource", "pushedBy", "uniqueName", default=None)
    pushed_at: Moment = nested("resource", "date", default=None)


class _PullRequest(Payload):
    number: Id = nested("resource", "pullRequestId")
    status: Text = nested("resource", "status")
    source: Text = nested("resource", "sourceRefName")
    target: Text = nested("resource", "targetRefName")
    head: Lenient[CommitId] = nested("resource", "lastMergeSourceCommit", "commitId", default=None)
    fork: Lenient[Id] = nested("resource", "forkSource", "repository", "id", default=None)


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],
    now: datetime,  # noqa: ARG001 - no timestamp is signed
) -> VerifiedRequest:
    """Check the Basic password, or the custom header that `auth` names in `header`.

    The Basic user name is checked only if `auth` has a `user`. Azure DevOps signs nothing; the event's name
    and id are in the body.
    """
    if name := auth.get("header"):
        secret = signatures.verify_token(header=name, value=headers.get(name.lower()), secrets=secrets)
    else:
        value, user = headers.get("authorization"), auth.get("user")
        secret = signatures.verify_basic(value=value, user=user, secrets=secrets)
    return VerifiedRequest(event="", id=None, secret=secret, content=body)


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from Azure DevOps reports."""
    wire = read(_Any, request)
    return replace(_event(wire, request), name=wire.event, delivery_id=_delivery_id(wire))


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return {
        "eventType": "git.push",
        "resource": {
            "refUpdates": [{"name": ref, "oldObjectId": before or zeros(after), "newObjectId": after}]
        },
    }


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that Azure DevOps sends with Basic authentication."""
    credentials = base64.b64encode(b"pushgate:" + secret).decode()
    return {
        "content-type": "application/json; charset=utf-8",
        "user-agent": "VSServices/pushgate",
        "request-id": delivery,
        "authorization": f"Basic {credentials}",
    }


def _delivery_id(wire: _Any) -> str | None:
    """Return an id from the parts that repetitions share; None without the event's own id."""
    if wire.id is None:
        return None
    return "/".join(part for part in (wire.subscription, wire.notification, wire.id) if part)


def _event(wire: _Any, request: VerifiedRequest) -> Event:
    sample = wire.repository is not None and wire.repository.project_id == _SAMPLE_PROJECT
    if sample or wire.subscription == _NO_SUBSCRIPTION:
        return Event(kind="other", note="a test about the sample project Fabrikam")
    ours = _repository(wire.repository) if wire.repository else None
    if wire.event == "git.push":
        return _push(wire, ours)
    if wire.event.startswith("git.pullrequest."):
        return _pull_request(read(_PullRequest, request), wire.event, ours)
    if wire.event == "git.repo.renamed" and ours:
        change = RepositoryChange(action="renamed", full_name=ours.full_name)
        return Event(kind="repository", repository=ours, change=change)
    return Event(kind="other", repository=ours, note=f"event {wire.event}")


def _repository(wire: _Repository) -> Repository | None:
    branch = wire.default_branch
    return repository(
        id=wire.id,
        full_name=f"{wire.project}/{wire.name}" if wire.project and wire.name else None,
        web_url=wire.web_url or wire.remote_url,
        urls=(wire.remote_url,),
        default_branch=branch.removeprefix(_HEADS) if branch else None,
    )


def _push(wire: _Any, ours: Repository | None) -> Event:
    pusher = actor(name=wire.pusher or wire.account, email=wire.account)
    if not wire.updates:
        return Event(kind="push", repository=ours, all_refs=True, pusher=pusher, pushed_at=wire.pushed_at)
    # The payload lists the commits of all refs together.
    listed = (wire.commits or ()) if len(wire.updates) == 1 else ()
    commits = tuple(commit["commitId"] for commit in reversed(listed))
    updates = (
        ref_update(ref=update.ref, before=update.before, after=update.after, commits=commits)
        for update in wire.updates
    )
    return pushed(repository=ours, updates=updates, pusher=pusher, pushed_at=wire.pushed_at)


def _pull_request(wire: _PullRequest, event: str, ours: Repository | None) -> Event:
    return pull_request(
        repository=ours,
        action=_ENDS.get(wire.status) or _ACTIONS.get(event),
        note=f"pull request {wire.number}: {event}, still {wire.status}",
        number=wire.number,
        source=wire.source.removeprefix(_HEADS),
        target=wire.target.removeprefix(_HEADS),
        head=wire.head,
        from_fork=wire.fork is not None,
    )
