"""GitHub: github.com and Enterprise Server.

Deliveries and headers: https://docs.github.com/en/webhooks/webhook-events-and-payloads
Signatures: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from providers import signatures
from providers.model import Actor, Delivery, Event, Repository, ref_update
from providers.wire import Id, Wire, is_form, read

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
MEDIA_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded"})

# A push lists at most this many commits and does not say how many there are:
# https://docs.github.com/en/webhooks/webhook-events-and-payloads#push
_MOST_COMMITS = 2048


class _Repository(Wire):
    id: Id
    full_name: str
    html_url: str | None = None
    clone_url: str | None = None
    ssh_url: str | None = None
    default_branch: str | None = None


class _Commit(Wire):
    id: str


class _Pusher(Wire):
    name: str
    email: str | None = None


class _Any(Wire):
    repository: _Repository | None = None


class _Push(Wire):
    ref: str
    before: str
    after: str
    forced: bool = False
    commits: tuple[_Commit, ...] = ()
    head_commit: _Commit | None = None
    pusher: _Pusher | None = None
    repository: _Repository


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - GitHub's scheme has no public part
    now: datetime,  # noqa: ARG001 - GitHub signs no timestamp
) -> Delivery:
    """Check X-Hub-Signature-256 over the raw body; the older SHA-1 header counts for nothing."""
    secret = signatures.verify_hmac_hex(
        header="X-Hub-Signature-256",
        value=headers.get("x-hub-signature-256"),
        prefix="sha256=",
        body=body,
        secrets=secrets,
    )
    return Delivery(
        event=headers.get("x-github-event", ""),
        id=headers.get("x-github-delivery"),
        secret=secret,
        content=body,
        form=is_form(headers),
    )


def parse(delivery: Delivery) -> Event:
    """Say what GitHub tells by this delivery.

    `create` and `delete` name no commit, and GitHub sends a `push` beside each of them: the push counts.
    """
    if delivery.event == "push":
        return _push(read(_Push, delivery))
    repository = _repository(read(_Any, delivery).repository)
    if delivery.event == "ping":
        return Event(kind="ping", repository=repository, note="ping")
    if delivery.event in {"create", "delete"}:
        note = f"the push that GitHub sends beside every {delivery.event} event counts"
        return Event(kind="other", repository=repository, note=note)
    return Event(kind="other", repository=repository, note=f"event {delivery.event or '(none)'}")


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that GitHub sends with this JSON body."""
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/pushgate",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": "sha256=" + signatures.hmac_hex(body, secret),
    }


def _repository(wire: _Repository | None) -> Repository | None:
    if wire is None:
        return None
    return Repository(
        id=wire.id,
        full_name=wire.full_name,
        web_url=wire.html_url,
        urls=tuple(url for url in (wire.clone_url, wire.ssh_url) if url),
        default_branch=wire.default_branch,
    )


def _push(wire: _Push) -> Event:
    update = ref_update(
        ref=wire.ref,
        before=wire.before,
        after=wire.after,
        peeled=wire.head_commit.id if wire.head_commit and wire.ref.startswith("refs/tags/") else None,
        forced=wire.forced,
        commits=tuple(commit.id for commit in wire.commits),
        truncated=len(wire.commits) >= _MOST_COMMITS,
    )
    return Event(
        kind="push",
        repository=_repository(wire.repository),
        updates=(update,) if update else (),
        pusher=Actor(name=wire.pusher.name, email=wire.pusher.email) if wire.pusher else None,
        note="" if update else f"{wire.ref} is neither a branch nor a tag",
    )
