"""The common model of all providers' webhooks.

Immutable values, created by the functions of `providers.normalize`. Nothing here does I/O, reads a clock, or
depends on a particular provider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

Action = Literal["create", "update", "delete"]
RefKind = Literal["branch", "tag", "pull_request", "merge_group"]
"""The kind of ref. Heads of pull requests and merge groups are not pushed, but are treated as refs."""
EventKind = Literal["push", "ping", "pull_request", "merge_group", "repository", "rerun", "echo", "other"]
"""The kind of event. An echo reports what Pushgate itself has just written: so many that none is stored."""
PullRequestAction = Literal["opened", "updated", "merged", "closed"]
RepositoryAction = Literal["renamed", "transferred"]

MERGE_QUEUE = "gh-readonly-queue/"
"""The prefix of the branches of GitHub's merge queue; the name of the target branch follows."""


def merge_queue_base(name: str) -> str:
    """Return the target branch of a branch of the merge queue."""
    return name.removeprefix(MERGE_QUEUE).rpartition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRequest:
    """A webhook request with a verified sender. Only a provider's `verify` creates it.

    `id` is the provider's id of the delivery if a header contains it, else None. `secret` is the index, in
    the sequence given to `verify`, of the live secret that matched; None only for the one request that a
    provider sends unsigned and that has no effect (Bitbucket Data Center's `diagnostics:ping`). `content` is
    the JSON document, or, if `form` is true, the urlencoded form with the document in its field `payload`.
    """

    event: str
    id: str | None
    secret: int | None
    content: bytes
    form: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository as a payload describes it: displayed and compared, but never fetched from.

    Created by `repository`. `id` is the provider's, and stays the same after a rename or transfer.
    """

    id: str | None = None
    full_name: str | None = None
    web_url: str | None = None
    urls: tuple[str, ...] = ()
    default_branch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """The person who pushed, according to the payload."""

    name: str
    email: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefUpdate:
    """A branch or tag that has moved, according to a delivery. Created by `ref_update`.

    `before` and `after` are object ids of 40 or 64 lower-case hex digits, None for "did not exist". The one
    exception is a delete whose `before` is None: the ref existed, but the payload does not contain its old
    position. For an annotated tag, `after` is the tag object and `peeled` the commit, if the payload has it;
    Bitbucket Cloud sends only the commit, as both. `commits` are the ids that the payload lists, oldest
    first: often truncated, so never a basis for what changed. `forced` and `truncated` are None if the
    payload does not contain them.
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
    """A pull or merge request. Created by `pull_request`.

    `source` and `target` are short branch names; `head` is the commit of the source branch. `from_fork` says
    whether the source branch is in another repository, whose members may not be allowed to push to this one.
    `head` and `from_fork` are None if the payload does not contain them.
    """

    action: PullRequestAction
    number: str
    source: str
    target: str
    head: str | None
    from_fork: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryChange:
    """A rename or transfer of the repository; `full_name` is the new name, if the payload contains it."""

    action: RepositoryAction
    full_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A request to execute again what a commit led to: all of it, or that of one `context`.

    `execution` is the id that the verdict in this context was sent with, None if it had none.
    """

    commit: str
    context: str | None = None
    execution: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The content of a delivery, in the common model.

    `updates` may be empty, as for a ping. `all_refs` marks a push whose payload does not list the refs: all
    of them must be compared with the remote's. `pushed_at` is when the provider took the push, if the payload
    contains that. `note` says, for people, why there is nothing to do. `name`
    and `delivery_id` override the request's `event` and `id` if the provider sends them in the body.
    """

    kind: EventKind
    name: str | None = None
    delivery_id: str | None = None
    repository: Repository | None = None
    updates: tuple[RefUpdate, ...] = ()
    pusher: Actor | None = None
    pull_request: PullRequest | None = None
    change: RepositoryChange | None = None
    rerun: Rerun | None = None
    all_refs: bool = False
    pushed_at: datetime | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefPages:
    """The paths of a provider's pages about refs, below the repository's page.

    `branch` and `pull_request` contain `{name}`, the name of the branch or the number of the pull request;
    `compare`, the page of what a push has changed, contains the ids `{before}` and `{after}`.
    """

    branch: str
    compare: str
    pull_request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupGuide:
    """How to set up the webhook at the provider: the short form of docs/providers/.

    `place` is the page with the settings, `credential` where the secret goes, `events` the events to select,
    and `limitation` the limit of the provider that users meet first. `owner_place` is the page of a webhook
    for all repositories of an owner, `server_place` for those of a server; None where there is no such
    webhook.
    """

    place: str
    credential: str
    events: str
    limitation: str
    owner_place: str | None = None
    server_place: str | None = None

    def lines(self, scope: Literal["repository", "owner", "server"] = "repository") -> list[str]:
        """Return the steps, for a terminal."""
        places = {"owner": self.owner_place, "server": self.server_place}
        return [
            f"1. {places.get(scope) or self.place}.",
            f"2. {self.credential}",
            f"3. Events: {self.events}",
            "4. Push a commit, then check that it arrives: pushgate deliveries",
            f"Limitation: {self.limitation}",
        ]


class Provider(Protocol):
    """The facts and functions that each provider's module declares. Every function is pure."""

    HEADERS: frozenset[str]
    """The lower-case names of the headers that may be stored with a delivery; none ever contains a secret."""

    SECRET_HEADERS: frozenset[str]
    """The lower-case names of the headers with signatures and tokens: of these, only the length is stored."""

    ID_HEADERS: tuple[str, ...]
    """The lower-case names of the headers with a delivery's id, in order of preference; empty if the id is in
    the body."""

    EVENT_HEADERS: tuple[str, ...]
    """The lower-case names of the headers with the event's name, in order of preference; empty if there are
    none."""

    MEDIA_TYPES: frozenset[str]
    """The content types that the provider documents for its webhooks."""

    BODY_IS_SIGNED: bool
    """Whether verification covers the body. If not, anybody who has seen one request can send any other, so
    refs are compared with the remote's before anything is executed."""

    COMMIT_PAGE: str | None
    """The path of a commit's page below the repository's page, without the id; None where it has no page."""

    REF_PAGES: RefPages | None
    """The paths of other pages below the repository's page; None where it has no pages."""

    AUTH_OPTIONS: frozenset[str]
    """The options that a connection's `auth` may hold; empty where the scheme needs only the secret."""

    HAS_SIGNING_SECRETS: bool
    """Whether a secret that begins with `whsec_` is a base64 key of the Standard Webhooks scheme."""

    TOKEN_USERS: Mapping[str, str]
    """The user name to send with an access token, by the token's prefix; the empty prefix fits any token."""

    PUBLIC_HOST: str | None
    """The host of the provider's own service; None for software that others run."""

    RSA_KEYS_ONLY: bool
    """Whether the provider accepts only RSA keys as deploy keys."""

    SETUP: SetupGuide
    """How to set up the webhook; `pushgate connect` prints it."""

    def verify(
        self,
        *,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        auth: Mapping[str, str],
        now: datetime,
    ) -> VerifiedRequest:
        """Verify that the sender has one of the connection's live secrets, or raise `Unverified`.

        `headers` has lower-case names; a repeated header is joined by ", " (RFC 9110, 5.2), so it is never a
        well-formed signature. `auth` holds the parts of the scheme that are not secret.
        """

    PUSH_EVENT: str
    """The provider's name of a push, for `sign`; empty if it is in the body only."""

    def push(self, *, ref: str, before: str | None, after: str) -> dict[str, Any]:
        """Return the JSON document with which the provider reports a move of `ref`: the inverse of `parse`.

        It has only the fields that `parse` requires, and names no repository.
        """

    def parse(self, request: VerifiedRequest) -> Event:
        """Return the event that a verified request reports, or raise `Malformed`."""

    def sign(self, *, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:
        """Return the headers that the provider would send with this JSON body: the inverse of `verify`."""
