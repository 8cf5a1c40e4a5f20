"""A webhook endpoint in this process, and requests to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.crypto.keyring import Keyring
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.webhook import WebhookEndpoint
from gateway.store import connections
from gateway.store.database import Database
from providers.signatures import hmac_hex
from testing import records

SECRET = b"a secret of this connection"
KEYRING = Keyring("k" * 32)


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time that was set."""
        return self.now


class Answer(NamedTuple):
    """An answer of the endpoint."""

    status: int
    headers: dict[bytes, bytes]
    body: Any


def connect(database: Database, **changes: Any) -> None:
    """Make the connection c1 with its secret."""
    records.connection(database, **changes)
    with database.writing() as conn:
        connections.add_secret(conn, KEYRING, "c1", SECRET, now=records.NOW)


def scope(body: bytes, headers: Mapping[str, str] | None = None, **changes: Any) -> MutableMapping[str, Any]:
    """Return the scope of a signed request to the connection c1, with these headers beside the usual ones."""
    headers = {
        "content-length": str(len(body)),
        "x-github-event": "star",
        "x-hub-signature-256": f"sha256={hmac_hex(body, SECRET)}",
        **(headers or {}),
    }
    return {
        "type": "http",
        "method": "POST",
        "path_params": {"connection": "c1"},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("192.0.2.1", 4711),
        **changes,
    }


async def answered(endpoint: WebhookEndpoint, given: MutableMapping[str, Any], *parts: bytes) -> Answer:
    """Send one request to an endpoint, its body in these parts, and return the answer."""
    waiting = list(parts)
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await endpoint(given, receive, send)
    start, body = sent
    return Answer(start["status"], dict(start["headers"]), json.loads(body["body"]))


@asynccontextmanager
async def opened(
    database: Database, *, keyring: Keyring = KEYRING, **changes: Any
) -> AsyncIterator[WebhookEndpoint]:
    """Yield an endpoint that takes bodies of 10,000 bytes; its writer stops with the block."""
    writer = DeliveryWriter(database, notify=lambda: None)
    writer.start()
    refusals = RefusalLog(database)
    try:
        yield WebhookEndpoint(
            ConnectionCache(database, keyring), writer, refusals, body_limit=10_000, **changes
        )
    finally:
        await writer.stop()
        await refusals.stop()


def asked(database: Database, given: MutableMapping[str, Any], body: bytes = b"{}", **changes: Any) -> Answer:
    """Send one request to a new endpoint."""

    async def ask() -> Answer:
        async with opened(database, **changes) as endpoint:
            return await answered(endpoint, given, body)

    return asyncio.run(ask())
