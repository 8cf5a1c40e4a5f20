"""GitHub: github.com and Enterprise Server.

Deliveries and headers: https://docs.github.com/en/webhooks/webhook-events-and-payloads
Signatures: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import signatures
from providers.github_like import AnyEvent, HubRepository, described
from providers.model import (
    Event,
    PullRequestAction,
    RefPages,
    RepositoryAction,
    RepositoryChange,
    Rerun,
    SetupGuide,
    VerifiedRequest,
)
from providers.normalize import actor, is_from_fork, merge_group, moved, pull_request, pushed, ref_update
from providers.payload import (
    CommitId,
    Commits,
    Id,
    Lenient,
    Moment,
    Payload,
    Text,
    ids,
    is_form,
    nested,
    read,
)

HEADERS = frozenset(
    {
        "content-type",
        "user-agent",
        "x-github-delivery",
        "x-github-enterprise-host",
        "x-github-enterprise-version",
        "x-github-event",
        "x-github-hook-id",
    }
)
SECRET_HEADERS = frozenset({"x-hub-signature", "x-hub-signature-256"})
ID_HEADERS: tuple[str, ...] = ("x-github-delivery",)
EVENT_HEADERS: tuple[str, ...] = ("x-github-event",)
PUSH_EVENT = "push"
MEDIA_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = "commit"
REF_PAGES: RefPages | None = RefPages(
    branch="tree/{name}", compare="compare/{before}...{after}", pull_request="pull/{name}"
)
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = False
TOKEN_USERS: Mapping[str, str] = {"": "x-access-token"}
PUBLIC_HOST: str | None = "github.com"
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="Settings → Webhooks → Add webhook: the webhook URL, content type application/json",
    credential="The secret goes into “Secret”.",
    events="Pushes. For pull requests, also Pull requests; for a merge queue, Merge groups; for renames,"
    " Repositories.",
    limitation="a push of more than 3 tags or 5,000 branches sends no webhook; reconciliation recovers it.",
    owner_place="The organization's Settings → Webhooks → Add webhook: the webhook URL, content type"
    " application/json",
)

# A push lists at most this many commits, without the total number:
# https://docs.github.com/en/webhooks/webhook-events-and-payloads#push
_MAX_COMMITS = 2048
# GitHub also creates a check suite for each push.
_ECHOES = frozenset({"created", "completed", "requested"})
_CHANGES: Mapping[str, RepositoryAction] = {"renamed": "renamed", "transferred": "transferred"}


class _Push(Payload):
    ref: Text
    before: Text
    after: Text
    forced: Lenient[bool] = None
    commits: Commits = None
    head_commit: Lenient[CommitId] = nested("head_commit", "id", default=None)
    pusher: Lenient[Text] = nested("pusher", "name", default=None)
    email: Lenient[Text] = nested("pusher", "email", default=None)
    pushed_at: Moment = nested("repository", "pushed_at", default=None)
    repository: Lenient[HubRepository] = None


class _PullRequest(Payload):
    action: Text
    number: Id
    merged: Lenient[bool] = nested("pull_request", "merged", default=None)
    source: Text = nested("pull_request", "head", "ref")
    target: Text = nested("pull_request", "base", "ref")
    head: Text = nested("pull_request", "head", "sha")
    # None if the fork has been deleted.
    source_id: Lenient[Id] = nested("pull_request", "head", "repo", "id", default=None)
    old_target: Lenient[Text] = nested("changes", "base", "ref", "from", default=None)
    repository: Lenient[HubRepository] = None


class _MergeGroup(Payload):
    action: Text
    head_ref: Text = nested("merge_group", "head_ref")
    head: Text = nested("merge_group", "head_sha")
    base: Lenient[CommitId] = nested("merge_group", "base_sha", default=None)
    sender: Lenient[Text] = nested("sender", "login", default=None)
    repository: Lenient[HubRepository] = None


class _CheckRun(Payload):
    action: Text
    name: Text = nested("check_run", "name")
    head: CommitId = nested("check_run", "head_sha")
    execution: Lenient[Text] = nested("check_run", "external_id", default=None)
    repository: Lenient[HubRepository] = None


class _CheckSuite(Payload):
    action: Text
    head: CommitId = nested("check_suite", "head_sha")
    repository: Lenient[HubRepository] = None


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - GitHub's scheme has no public part
    now: datetime,  # noqa: ARG001 - GitHub signs no timestamp
) -> VerifiedRequest:
    """Check X-Hub-Signature-256 over the raw body; ignore the older SHA-1 header."""
    secret = signatures.verify_hmac_hex(
        header="X-Hub-Signature-256",
        value=headers.get("x-hub-signature-256"),
        prefix="sha256=",
        body=body,
        secrets=secrets,
    )
    return VerifiedRequest(
        event=headers.get("x-github-event", ""),
        id=headers.get("x-github-delivery"),
        secret=secret,
        content=body,
        form=is_form(headers),
    )


def parse(request: VerifiedRequest) -> Event:
    """Return the event that a delivery from GitHub reports.

    `create` and `delete` name no commit, and GitHub also sends a `push` for each of them: the push counts.
    """
    if reader := _READERS.get(request.event):
        return reader(request)
    wire = read(AnyEvent, request)
    ours = described(wire.repository)
    if request.event == "ping":
        return Event(kind="ping", repository=ours, note="ping")
    if request.event == "repository" and (changed := _CHANGES.get(wire.action or "")):
        change = RepositoryChange(action=changed, full_name=ours.full_name if ours else None)
        return Event(kind="repository", repository=ours, change=change)
    if request.event in {"create", "delete"}:
        note = f"the push that GitHub sends beside every {request.event} event counts"
        return Event(kind="other", repository=ours, note=note)
    return Event(kind="other", repository=ours, note=f"event {request.event or '(none)'}")


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return moved(ref=ref, before=before, after=after)


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that GitHub sends with this JSON body."""
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/pushgate",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": "sha256=" + signatures.hmac_hex(body, secret),
    }


def _push(request: VerifiedRequest) -> Event:
    wire = read(_Push, request)
    update = ref_update(
        ref=wire.ref,
        before=wire.before,
        after=wire.after,
        peeled=wire.head_commit if wire.ref.startswith("refs/tags/") else None,
        forced=wire.forced,
        commits=ids(wire.commits),
        truncated=None if wire.commits is None else len(wire.commits) >= _MAX_COMMITS,
    )
    return pushed(
        repository=described(wire.repository),
        updates=(update,),
        pusher=actor(name=wire.pusher, email=wire.email),
        pushed_at=wire.pushed_at,
        note=f"{wire.ref} is neither a branch nor a tag",
    )


def _pull_request(request: VerifiedRequest) -> Event:
    wire = read(_PullRequest, request)
    ours = described(wire.repository)
    return pull_request(
        repository=ours,
        action=_action(wire),
        note=f"pull request {wire.number}: {wire.action}",
        number=wire.number,
        source=wire.source,
        target=wire.target,
        head=wire.head,
        from_fork=wire.source_id is None or is_from_fork(source_id=wire.source_id, ours=ours),
    )


def _merge_group(request: VerifiedRequest) -> Event:
    """https://docs.github.com/en/webhooks/webhook-events-and-payloads#merge_group."""
    wire = read(_MergeGroup, request)
    ours = described(wire.repository)
    if wire.action != "checks_requested":
        return Event(kind="other", repository=ours, note=f"merge group {wire.head_ref}: {wire.action}")
    return merge_group(
        repository=ours,
        head_ref=wire.head_ref,
        head=wire.head,
        base=wire.base,
        pusher=actor(name=wire.sender),
    )


def _check_run(request: VerifiedRequest) -> Event:
    """Somebody has clicked Re-run at a check. GitHub sends that only to the App that created the check run.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#check_run
    """
    wire = read(_CheckRun, request)
    rerun = Rerun(commit=wire.head.lower(), context=wire.name, execution=wire.execution or None)
    return _rerun(wire, rerun, note=f"check {wire.name}: {wire.action}")


def _check_suite(request: VerifiedRequest) -> Event:
    """Somebody has clicked “Re-run all checks”, which GitHub sends to each App that has checks there.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#check_suite
    """
    wire = read(_CheckSuite, request)
    rerun = Rerun(commit=wire.head.lower())
    return _rerun(wire, rerun, note=f"checks of {wire.head}: {wire.action}")


def _rerun(wire: _CheckRun | _CheckSuite, rerun: Rerun, *, note: str) -> Event:
    ours = described(wire.repository)
    if wire.action == "rerequested":
        return Event(kind="rerun", repository=ours, rerun=rerun)
    return Event(kind="echo" if wire.action in _ECHOES else "other", repository=ours, note=note)


def _action(wire: _PullRequest) -> PullRequestAction | None:
    """https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request."""
    if wire.action in {"opened", "reopened"}:
        return "opened"
    if wire.action == "synchronize" or wire.old_target:
        return "updated"
    if wire.action == "closed":
        return "merged" if wire.merged else "closed"
    return None


_READERS: Mapping[str, Callable[[VerifiedRequest], Event]] = {
    "push": _push,
    "pull_request": _pull_request,
    "merge_group": _merge_group,
    "check_run": _check_run,
    "check_suite": _check_suite,
}
