"""The one vocabulary into which every provider's webhook is brought.

Frozen values, made by the functions of `providers.normalize`. Nothing here does I/O, reads a clock, or knows
any one provider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

Action = Literal["create", "update", "delete"]
RefKind = Literal["branch", "tag", "pull_request", "merge_group"]
"""What moved; a pull request's head and a merge group's were not pushed by anybody, but move like a ref."""
EventKind = Literal["push", "ping", "pull_request", "merge_group", "repository", "other"]
PullRequestAction = Literal["opened", "updated", "merged", "closed"]
RepositoryAction = Literal["renamed", "transferred"]

MERGE_QUEUE = "gh-readonly-queue/"
"""What the branches of GitHub's merge queue begin with; the branch that they are to go into follows."""


def merge_queue_base(name: str) -> str:
    """Return the branch into which a branch of the merge queue is to be merged."""
    return name.removeprefix(MERGE_QUEUE).rpartition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRequest:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupGuide:
    """How to set up the webhook at the provider: the short form of docs/providers/.

    `place` is the page with the settings, `credential` where the secret goes, `events` the events to select,
    and `limitation` the limit of the provider that users meet first.
    """

    place: str
    credential: str
    events: str
    limitation: str

    def lines(self) -> list[str]:
        """Return the steps, for a terminal."""
        return [
            f"1. {self.place}.",
            f"2. {self.credential}",
            f"3. Events: {self.events}",
            "4. Push a commit, then check that it arrives: pushgate deliveries",
            f"Limitation: {self.limitation}",
        ]


class Provider(Protocol):
    """The facts and functions that each provider's module declares. Every function is pure."""

    HEADERS: frozenset[str]
    """The lower-case names of the headers that may be kept with a delivery; none ever carries a secret."""

    ID_HEADERS: tuple[str, ...]
    """The lower-case names of the headers that tell a delivery's id, the first of which counts; none where
    the body tells it."""

    MEDIA_TYPES: frozenset[str]
    """The content types that the provider documents for its webhooks."""

    BODY_IS_SIGNED: bool
    """Whether a proven sender proves the body too. Where it doesn't, whoever sees one request can send any
    other, so refs are compared with the remote's before anything is executed."""

    COMMIT_PAGE: str | None
    """The path of a commit's page below the repository's page, without the id; None where it has no page."""

    AUTH_OPTIONS: frozenset[str]
    """The options that a connection's `auth` may hold; empty where the scheme needs only the secret."""

    HAS_SIGNING_SECRETS: bool
    """Whether a secret that begins with `whsec_` is a base64 key of the Standard Webhooks scheme."""

    TOKEN_USERS: Mapping[str, str]
    """The user name to send with an access token, by the token's prefix; the empty prefix fits any token."""

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
        """Prove that the sender knows one of the connection's live secrets, or raise `Unverified`.

        `headers` has lower-case names; a header that was sent twice is joined by ", " (RFC 9110, 5.2) and so
        is never a well-formed signature. `auth` holds the parts of the scheme that are no secrets.
        """

    def parse(self, delivery: VerifiedRequest) -> Event:
        """Say what a verified delivery means, or raise `Malformed`."""

    def sign(self, *, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:
        """Return the headers that the provider would send with this JSON body: `verify`'s counterpart."""
