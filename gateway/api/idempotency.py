"""The header Idempotency-Key: a repeated POST changes nothing, and gets the first answer.

Only successful answers are kept: after an error, the same request is carried out anew. A key is valid for one
token and one request, for 24 hours. Signed URLs take no keys: their operations may be repeated anyway.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from gateway.api.endpoints import Endpoint, bodies
from gateway.api.query import wrong
from gateway.crypto.keyring import Keyring
from gateway.errors import StoreUnavailable
from gateway.store import idempotency
from gateway.store.database import Database

log = structlog.get_logger()

# A String of RFC 9651, as in the draft, or the same without its quotes.
_KEY = re.compile(r'"?([\x21\x23-\x5b\x5d-\x7e]{1,255})"?')
_REPLAYED = {"idempotency-replayed": "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Carries out requests with a key once. Answers are sealed: only one of them has a new secret."""

    database: Database
    keyring: Keyring

    def once(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with keys."""

        async def answered(request: Request) -> Response:
            given = request.headers.get("idempotency-key")
            return await (endpoint(request) if given is None else self._once(endpoint, request, given))

        return answered

    async def _once(self, endpoint: Endpoint, request: Request, given: str) -> Response:
        found = _KEY.fullmatch(given)
        if found is None:
            raise wrong(
                "Idempotency-Key", "Idempotency-Key must have 1 to 255 visible ASCII characters, no quotes"
            )
        content = await bodies.read(request.scope, request.receive)
        key = self._hash(request.headers["authorization"], found[1])
        fingerprint = self._hash(
            request.method, request.url.path, request.url.query, content.decode("latin-1")
        )
        held = await self._claim(key, fingerprint)
        if isinstance(held, bytes):
            return _replayed(held)
        try:
            answer = await endpoint(Request(request.scope, _receive(content)))
        except BaseException:
            await self.database.write(idempotency.release, key, held_until=held)
            raise
        if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            await self.database.write(idempotency.release, key, held_until=held)
            return answer
        try:
            kept = _kept(answer)
            await self.database.write(idempotency.finish, self.keyring, key, kept, held_until=held)
        except StoreUnavailable as error:
            # The request was carried out: an error would be the wrong answer.
            log.warning("an answer could not be kept for its Idempotency-Key", reason=str(error))
        return answer

    async def _claim(self, key: str, fingerprint: str) -> bytes | datetime:
        now = datetime.now(UTC)
        try:
            return await self.database.write(idempotency.claim, self.keyring, key, fingerprint, now=now)
        except IntegrityError:
            raise idempotency.in_use() from None

    def _hash(self, *parts: str) -> str:
        """Return a keyed hash: nobody can find out a token or a body with the database alone."""
        key = self.keyring.idempotency_key()
        return hashlib.blake2b(json.dumps(parts).encode(), key=key, digest_size=32).hexdigest()


def _receive(content: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _kept(answer: Response) -> bytes:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
    return json.dumps([answer.status_code, dict(headers), bytes(answer.body).decode("latin-1")]).encode()


def _replayed(kept: bytes) -> Response:
    status, headers, body = json.loads(kept)
    return Response(body.encode("latin-1"), status, {**headers, **_REPLAYED})
