"""The one vocabulary into which every provider's webhook is brought.

Frozen values, checked at birth. Nothing here does I/O, reads a clock, or knows any one provider.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal, Protocol

from providers.errors import Malformed

Action = Literal["create", "update", "delete"]
RefKind = Literal["branch", "tag"]
EventKind = Literal["push", "ping", "pull_request", "repository", "other"]
PullRequestAction = Literal["opened", "updated", "merged", "closed"]
RepositoryAction = Literal["renamed", "transferred"]

_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_KINDS: Mapping[str, RefKind] = {"refs/heads/": "branch", "refs/tags/": "tag"}
# https://git-scm.com/docs/git-check-ref-format: what no name of a ref may hold
_FORBIDDEN_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$")
_LONGEST_REF = 1024
# Azure DevOps writes the organisation there; whatever it is, it is not to be shown.
_USER_IN_HTTP_URL = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One webhook request whose sender is proven. Only a provider's `verify` makes one.

    `id` is the provider's own id of the delivery where a header tells it, else None. `secret` is the index,
    in the sequence given to `verify`, of the live secret that fitted; None only for the one request that a
    provider sends unsigned and that has no effect (Bitbucket Data Center's `diagnostics:ping`). `content`
    is the JSON document, or, where `form` says so, the urlencoded form that holds it in its field `payload`.
    """

    event: str
    id: str | None
    secret: int | None
    content: bytes
    form: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository as a payload describes it: shown, and compared, but never fetched from.

    Made by `repository`. `id` is the provider's own, the same after a rename or transfer.
    """

    id: str | None = None
    full_name: str | None = None
    web_url: str | None = None
    urls: tuple[str, ...] = ()
    default_branch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Whoever the payload says pushed."""

    name: str
    email: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefUpdate:
    """One branch or tag that a delivery says has moved. Made by `ref_update`.

    `before` and `after` are object ids of 40 or 64 lower-case hex digits, None for "did not exist". The one
    exception is a delete whose `before` is None: the ref did exist, but the provider doesn't tell where it
    stood. On an annotated tag `after` is the tag object and `peeled`, where the provider tells it, the
    commit; Bitbucket Cloud tells only the commit, as both. `commits` are the ids that the payload lists,
    oldest first: often cut, so never what changed. `forced` and `truncated` are None where the provider does
    not say.
    """

    ref: str
    kind: RefKind
    name: str
    before: str | None
    after: str | None
    action: Action
    peeled: str | None = None
    forced: bool | None = None
    commits: tuple[str, ...] = ()
    truncated: bool | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """A pull or merge request. Made by `pull_request`.

    `source` and `target` are short branch names, `head` is the commit of the source branch that it is about.
    `from_fork` says whether the source branch is in another repository, whose people may not push to this
    one. `head` and `from_fork` are None where the provider does not say.
    """

    action: PullRequestAction
    number: str
    source: str
    target: str
    head: str | None
    from_fork: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryChange:
    """The repository got another name or another owner; `full_name` is the new one where it is told."""

    action: RepositoryAction
    full_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a delivery says, in the one vocabulary.

    `updates` may be empty: a ping, an event of no interest. `all_refs` says that something was pushed but
    not which refs: they are to be compared with the remote's. `note` tells people why there is nothing to
    do, where there is nothing to do. `name` and `delivery_id` go over the delivery's `event` and `id` where
    the provider tells them in the body instead of a header.
    """

    kind: EventKind
    name: str | None = None
    delivery_id: str | None = None
    repository: Repository | None = None
    updates: tuple[RefUpdate, ...] = ()
    pusher: Actor | None = None
    pull_request: PullRequest | None = None
    change: RepositoryChange | None = None
    all_refs: bool = False
    note: str = ""


class Provider(Protocol):
    """What a provider's module offers. Every function is pure."""

    HEADERS: frozenset[str]
    """The lower-case names of the headers that may be kept with a delivery; none ever carries a secret."""

    MEDIA_TYPES: frozenset[str]
    """The content types that the provider documents for its webhooks."""

    BODY_IS_SIGNED: bool
    """Whether a proven sender proves the body too. Where it doesn't, whoever sees one request can send any
    other, so refs are compared with the remote's before anything is executed."""

    def verify(
        self,
        *,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        auth: Mapping[str, str],
        now: datetime,
    ) -> Delivery:
        """Prove that the sender knows one of the connection's live secrets, or raise `Unverified`.

        `headers` has lower-case names; a header that was sent twice is joined by ", " (RFC 9110, 5.2) and so
        is never a well-formed signature. `auth` holds the parts of the scheme that are no secrets.
        """

    def parse(self, delivery: Delivery) -> Event:
        """Say what a verified delivery means, or raise `Malformed`."""

    def sign(self, *, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:
        """Return the headers that the provider would send with this JSON body: `verify`'s counterpart."""


def object_id(value: str) -> str | None:
    """Return the object id in lower case, None for the zero id; raise `Malformed` for anything else."""
    lowered = value.lower()
    if not _OBJECT_ID.fullmatch(lowered):
        raise Malformed(f"{value[:80]!r} is not an object id: 40 or 64 hex digits are")
    return lowered if lowered.strip("0") else None


def check_ref(ref: str) -> str:
    """Return `ref` if git would take it as the full name of a ref, else raise `Malformed`."""
    if not ref.startswith("refs/") or len(ref) > _LONGEST_REF or _FORBIDDEN_IN_REF.search(ref):
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
    """Make a ref update of what a payload says; zero ids and None both mean "did not exist".

    `deleted` is for payloads that tell a delete without any id: the update then has neither before nor after.
    None where nothing moved: a ref that is neither branch nor tag, or one with neither before nor after.
    Raises `Malformed` where the ref or an id is not what git would take.
    """
    check_ref(ref)
    prefix = ref[: ref.index("/", len("refs/")) + 1] if ref.count("/") > 1 else ref
    kind = _KINDS.get(prefix)
    old = object_id(before) if before is not None else None
    new = object_id(after) if after is not None else None
    if kind is None or (old is None and new is None and not deleted):
        return None
    action: Action = "delete" if new is None else "create" if old is None else "update"
    return RefUpdate(
        ref=ref,
        kind=kind,
        name=ref.removeprefix(prefix),
        before=old,
        after=new,
        action=action,
        peeled=object_id(peeled) if peeled is not None else None,
        forced=forced,
        commits=commits,
        truncated=truncated,
        total=total,
    )


def pull_request(
    *,
    action: PullRequestAction,
    number: str,
    source: str,
    target: str,
    head: str | None,
    from_fork: bool | None,
) -> PullRequest:
    """Make a pull request of what a payload says; raises `Malformed` where a name or the head is none."""
    for name in (source, target):
        check_ref("refs/heads/" + name)
    return PullRequest(
        action=action,
        number=number,
        source=source,
        target=target,
        head=object_id(head) if head is not None else None,
        from_fork=from_fork,
    )


@lru_cache(maxsize=256)
def repository(
    *,
    id: str | None,  # noqa: A002 - the field's name
    full_name: str | None,
    web_url: str | None = None,
    urls: tuple[str | None, ...] = (),
    default_branch: str | None = None,
) -> Repository:
    """Make a repository of what a payload says; a web address that is no http link is left out.

    Deliveries are mostly about the same few repositories, so the last ones are kept.
    """
    # It becomes a link in the dashboard: no javascript: there.
    is_link = (web_url or "").lower().startswith(("https://", "http://"))
    return Repository(
        id=id,
        full_name=full_name,
        web_url=_USER_IN_HTTP_URL.sub(r"\1", web_url) if web_url and is_link else None,
        urls=tuple(_USER_IN_HTTP_URL.sub(r"\1", url) for url in urls if url),
        default_branch=default_branch,
    )


def actor(*, name: str | None, email: str | None = None) -> Actor | None:
    """Make an actor of what a payload says, None where it has no name; what is no address is left out."""
    if not name:
        return None
    # GitLab writes "[REDACTED]" for hidden addresses, Azure DevOps a domain account instead of one.
    return Actor(name=name, email=email if email and "@" in email else None)
