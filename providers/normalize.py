"""Create the values of `providers.model` from payloads: checked, or raise `Malformed`."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

from providers.clone_urls import without_user
from providers.errors import Malformed
from providers.model import (
    MERGE_QUEUE,
    Action,
    Actor,
    Event,
    PullRequest,
    PullRequestAction,
    RefKind,
    RefUpdate,
    Repository,
    merge_queue_base,
)
from providers.payload import Move

_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_KINDS: Mapping[str, RefKind] = {"heads": "branch", "tags": "tag"}
# Forbidden in the name of a ref: https://git-scm.com/docs/git-check-ref-format
_FORBIDDEN_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$")
_MAX_REF_LENGTH = 1024


def object_id(value: str) -> str | None:
    """Return the object id in lower case, or None for the zero id. Raises `Malformed`."""
    lowered = value.lower()
    if not _OBJECT_ID.fullmatch(lowered):
        raise Malformed(f"{value[:80]!r} is not an object id: 40 or 64 hex digits are")
    return lowered if lowered.strip("0") else None


def check_ref(ref: str) -> str:
    """Return `ref` if git accepts it as the full name of a ref, else raise `Malformed`."""
    if not ref.startswith("refs/") or len(ref) > _MAX_REF_LENGTH or _FORBIDDEN_IN_REF.search(ref):
        raise Malformed(f"{ref[:80]!r} is not the full name of a ref")
    return ref


def ref_update(
    *,
    ref: str,
    before: str | None,
    after: str | None,
    deleted: bool = False,
    peeled: str | None = None,
    forced: bool | None = None,
    commits: tuple[str, ...] = (),
    truncated: bool | None = None,
    total: int | None = None,
) -> RefUpdate | None:
    """Create a ref update from a payload; zero ids and None both mean "did not exist".

    `deleted` is for payloads that report a delete without any id: it then has neither before nor after.
    Returns None if nothing moved: a ref that is neither branch nor tag, or has neither before nor after.
    Raises `Malformed` if git would not accept the ref or an id.
    """
    namespace, _, name = check_ref(ref).removeprefix("refs/").partition("/")
    kind = _KINDS.get(namespace) if name else None
    old = object_id(before) if before is not None else None
    new = object_id(after) if after is not None else None
    if kind is None or (old is None and new is None and not deleted):
        return None
    action: Action = "delete" if new is None else "create" if old is None else "update"
    return RefUpdate(
        ref=ref,
        kind=kind,
        name=name,
        before=old,
        after=new,
        action=action,
        peeled=object_id(peeled) if peeled is not None else None,
        forced=forced,
        commits=commits,
        truncated=truncated,
        total=total,
    )


def moved(*, ref: str, before: str | None, after: str) -> dict[str, str]:
    """Return a move of a ref in the most common form of payloads; a zero id means "did not exist"."""
    return {"ref": ref, "before": before or zeros(after), "after": after}


def zeros(object_id: str) -> str:
    """Return the zero id of the same length."""
    return "0" * len(object_id)


def ref_updates(moves: Iterable[Move]) -> list[RefUpdate | None]:
    """Create the ref updates of a payload that has only ref, before and after; see `ref_update`."""
    return [ref_update(ref=move.ref, before=move.before, after=move.after) for move in moves]


def pushed(
    *,
    repository: Repository | None,
    updates: Iterable[RefUpdate | None],
    pusher: Actor | None,
    pushed_at: datetime | None = None,
    note: str = "no branch and no tag has moved",
) -> Event:
    """Create the event of a push; `note` says why there is nothing to do if nothing has moved."""
    moved = tuple(filter(None, updates))
    return Event(
        kind="push",
        repository=repository,
        updates=moved,
        pusher=pusher,
        pushed_at=pushed_at,
        note="" if moved else note,
    )


def pull_request(
    *,
    repository: Repository | None,
    action: PullRequestAction | None,
    note: str = "",
    number: str,
    source: str,
    target: str,
    head: str | None,
    from_fork: bool | None,
) -> Event:
    """Create the event of a pull request; without an action it has no effect, and `note` says why.

    Raises `Malformed` if git would not accept a name, or the head is not an object id.
    """
    if action is None:
        return Event(kind="other", repository=repository, note=note)
    for name in (source, target):
        check_ref("refs/heads/" + name)
    found = PullRequest(
        action=action,
        number=number,
        source=source,
        target=target,
        head=object_id(head) if head is not None else None,
        from_fork=from_fork,
    )
    return Event(kind="pull_request", repository=repository, pull_request=found)


def merge_group(
    *, repository: Repository | None, head_ref: str, head: str, base: str | None, pusher: Actor | None
) -> Event:
    """Create the event of a merge group: the merge queue's branch `head_ref`, whose commit is `head`.

    `base` is the commit that it is based on. The branch is also pushed, which is another update: this one has
    a ref of its own. Raises `Malformed` if `head_ref` is not a branch of the queue, or an id is invalid.
    """
    name = check_ref(head_ref).removeprefix("refs/heads/")
    if not merge_queue_base(name) or not name.startswith(MERGE_QUEUE):
        raise Malformed(f"{head_ref[:80]!r} is not a branch of the merge queue")
    before, after = object_id(base) if base is not None else None, object_id(head)
    update = RefUpdate(
        ref="refs/merge-queue/" + name.removeprefix(MERGE_QUEUE),
        kind="merge_group",
        name=name,
        before=before,
        after=after,
        action="create" if before is None else "update",
    )
    return Event(kind="merge_group", repository=repository, updates=(update,) if after else (), pusher=pusher)


@lru_cache(maxsize=256)
def repository(
    *,
    id: str | None,  # noqa: A002 - the field's name
    full_name: str | None,
    web_url: str | None = None,
    urls: tuple[str | None, ...] = (),
    default_branch: str | None = None,
) -> Repository | None:
    """Create a repository from a payload, or return None if there is no data; omit an invalid web address.

    Deliveries mostly concern the same few repositories, so recent ones are cached.
    """
    if not any((id, full_name, web_url, default_branch, *urls)):
        return None
    # It becomes a link in the dashboard, so no javascript: URLs.
    is_link = (web_url or "").lower().startswith(("https://", "http://"))
    return Repository(
        id=id,
        full_name=full_name,
        web_url=without_user(web_url) if web_url and is_link else None,
        urls=tuple(without_user(url) for url in urls if url),
        default_branch=default_branch,
    )


def is_from_fork(*, source_id: str | None, ours: Repository | None) -> bool | None:
    """Return whether a pull request's source is in another repository; None if either is unknown."""
    if source_id is None or ours is None or ours.id is None:
        return None
    return source_id != ours.id


def actor(*, name: str | None, email: str | None = None) -> Actor | None:
    """Create an actor from a payload, or return None without a name; omit an invalid address."""
    if not name:
        return None
    # GitLab sends "[REDACTED]" for hidden addresses; Azure DevOps sends a domain account instead.
    return Actor(name=name, email=email if email and "@" in email else None)
