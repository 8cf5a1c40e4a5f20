"""The REST API under /api/v1: the webhook requests of deliveries, as they were received."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.explain import by_id
from gateway.api.openapi import BINARY, Operation
from gateway.api.schemas import Provider
from gateway.api.views import View, view_of
from gateway.errors import NotFound
from gateway.intake.webhook import answer_to
from gateway.store import received
from gateway.store.database import Database
from gateway.store.received import ReceivedRequest
from gateway.store.refusals import RecordedRefusal
from providers.payload import media_type

MAX_SHOWN_BYTES = 1024 * 1024
"""The largest body that an answer in JSON contains; `/body` has any."""

_MASK = "•••• ({} characters)"
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
}


class BodyView(View):
    """The body of a request."""

    size: int = Field(description="the size in bytes")
    media_type: str = Field(
        description="its media type according to the header `content-type`; empty without that header",
        examples=["application/json"],
    )
    encoding: Literal["text", "base64"] = Field(
        description="`text` if the body is UTF-8; otherwise `content` is base64"
    )
    content: str | None = Field(
        description="the body; null if it is larger than 1 MiB: get /deliveries/{id}/body"
    )


class AnswerView(View):
    """The answer to a request."""

    status: int = Field(description="the HTTP status", examples=[202])
    body: dict[str, str | None] = Field(
        description="the JSON body",
        examples=[
            {"delivery": "0198c0de-7a1b-7c3d-8e4f-0123456789ab", "verdict": "accepted", "reason": None}
        ],
    )


class RequestView(View):
    """The webhook request of a delivery."""

    delivery: str = Field(description="the id of the delivery")
    provider: Provider = Field(description="the kind of git server that has sent it")
    received_at: datetime = Field(description="when it was received")
    method: Literal["POST"] = Field(description="the method")
    path: str = Field(
        description="the path of the webhook: that of a source for a repository that a source has connected",
        examples=["/hooks/4f1c2b3a4d5e6f7a8b9c0d1e"],
    )
    client: str | None = Field(
        description="the address of the client; null if it is unknown, or if an earlier version received it",
        examples=["192.0.2.1"],
    )
    headers: dict[str, str] = Field(
        description="the headers that the provider documents, by their lower-case names",
        examples=[{"content-type": "application/json", "x-github-event": "push"}],
    )
    masked_headers: dict[str, str] = Field(
        description="the headers with signatures and tokens, which are never stored: dots and the length",
        examples=[{"x-hub-signature-256": "•••• (71 characters)"}],
    )
    body: BodyView = Field(description="the body")
    response: AnswerView | None = Field(
        description="the answer of Pushgate; null if an earlier version gave it"
    )

    @classmethod
    def of(cls, stored: ReceivedRequest) -> "RequestView":
        """Return the view of a request."""
        return view_of(
            cls,
            stored,
            method="POST",
            path=f"/hooks/{stored.hook}",
            headers=dict(stored.headers),
            masked_headers={name: _MASK.format(length) for name, length in sorted(stored.withheld.items())},
            body=_body(stored),
            response=_response(stored),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequests:
    """The endpoints for the requests of deliveries."""

    database: Database

    def operations(self) -> list[Operation]:
        """Return the operations on requests."""
        return [
            Operation(method="GET", path="/deliveries/{id}/request", endpoint=self.get_delivery_request),
            Operation(
                method="GET",
                path="/deliveries/{id}/body",
                endpoint=self.get_delivery_body,
                media_types=(BINARY,),
            ),
        ]

    async def get_delivery_request(self, request: Request) -> RequestView:
        """`GET /deliveries/{id}/request`: return the webhook request of a delivery.

        Refused requests are not stored, and a push that reconciliation found has none.
        """
        delivery_id = request.path_params["id"]
        return await self.database.read(lambda conn: RequestView.of(_request(conn, delivery_id)))

    async def get_delivery_body(self, request: Request) -> Response:
        """`GET /deliveries/{id}/body`: download the body of a delivery, byte for byte as received."""
        delivery_id = request.path_params["id"]
        found = await self.database.read(_request, delivery_id)
        named = {"content-disposition": f'attachment; filename="{delivery_id}"'}
        return Response(found.body, headers=_HEADERS | named, media_type=BINARY)


def _request(conn: sqlalchemy.Connection, delivery_id: str) -> ReceivedRequest:
    if isinstance(by_id(conn, delivery_id), RecordedRefusal):
        raise NotFound("nothing of a refused request is stored: the provider's page of the webhook shows it")
    return received.get(conn, delivery_id)


def _body(stored: ReceivedRequest) -> BodyView:
    content: str | None
    encoding: Literal["text", "base64"] = "text"
    try:
        content = stored.body.decode()
    except UnicodeDecodeError:
        encoding, content = "base64", base64.b64encode(stored.body).decode()
    return BodyView(
        size=len(stored.body),
        media_type=media_type(stored.headers),
        encoding=encoding,
        content=content if len(stored.body) <= MAX_SHOWN_BYTES else None,
    )


def _response(stored: ReceivedRequest) -> AnswerView | None:
    if stored.answer is None:
        return None
    body = answer_to(delivery=stored.delivery, **stored.answer)
    return AnswerView(status=stored.answer["status"], body=body)
