"""Any other git server: Standard Webhooks over a list of ref updates.

The scheme: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
The body is Pushgate's own: {"updates": [{"ref", "before", "after"}], "pusher": {"name", "email"}}, with zero
ids or null for "did not exist"; the pusher is optional. `providers.post_receive` has a hook that sends it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from providers import signatures
from providers.model import Event, RefPages, SetupGuide, VerifiedRequest
from providers.normalize import actor, moved, pushed, ref_updates
from providers.payload import Items, Lenient, Move, Payload, Text, nested, read

HEADERS = frozenset({"content-type", "user-agent", "webhook-id", "webhook-timestamp"})
SECRET_HEADERS = frozenset({"webhook-signature"})
ID_HEADERS: tuple[str, ...] = ("webhook-id",)
EVENT_HEADERS: tuple[str, ...] = ()
PUSH_EVENT = ""
MEDIA_TYPES = frozenset({"application/json"})
BODY_IS_SIGNED = True
COMMIT_PAGE: str | None = None
REF_PAGES: RefPages | None = None
AUTH_OPTIONS: frozenset[str] = frozenset()
HAS_SIGNING_SECRETS = True
TOKEN_USERS: Mapping[str, str] = {"": "token"}
PUBLIC_HOST: str | None = None
RSA_KEYS_ONLY = False
SETUP = SetupGuide(
    place="On the git server: pushgate hook-script --url URL --secret-file FILE >"
    " REPOSITORY/hooks/post-receive",
    credential="The secret goes into that FILE on the git server, mode 0600; make the hook executable.",
    events="every push reports all its refs.",
    limitation="the hook needs curl and openssl; reconciliation recovers the pushes that it cannot report.",
)


class _Push(Payload):
    updates: Items[Move]
    pusher: Lenient[Text] = nested("pusher", "name", default=None)
    email: Lenient[Text] = nested("pusher", "email", default=None)


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    auth: Mapping[str, str],  # noqa: ARG001 - the scheme has no public part
    now: datetime,
) -> VerifiedRequest:
    """Check webhook-signature. A secret that begins with `whsec_` is base64; any other is the key itself."""
    secret = signatures.verify_standard(headers=headers, body=body, secrets=secrets, now=now)
    return VerifiedRequest(event="push", id=headers.get("webhook-id"), secret=secret, content=body)


def parse(request: VerifiedRequest) -> Event:
    """Return the refs that have moved. A body without updates is a ping. The body names no repository."""
    wire = read(_Push, request)
    if not wire.updates:
        return Event(kind="ping", note="ping")
    return pushed(
        repository=None,
        updates=ref_updates(wire.updates),
        pusher=actor(name=wire.pusher, email=wire.email),
    )


def push(*, ref: str, before: str | None, after: str) -> dict[str, Any]:
    """Return the payload of a push."""
    return {"updates": [moved(ref=ref, before=before, after=after)]}


def sign(*, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG001
    """Return the headers that a sender of the Standard Webhooks scheme adds to this body."""
    headers = {"content-type": "application/json"}
    return headers | signatures.sign_standard(secret=secret, id=delivery, body=body, now=now)
