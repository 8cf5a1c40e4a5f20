"""Fakes of the servers that notifications are posted to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

import standardwebhooks
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from testing.provider_apis.fake import FakeApi

_MAX_TEAMS_BYTES = 28 * 1024


@dataclass(slots=True)
class FakeSlack(FakeApi):
    """Slack's incoming webhooks, one of them. It keeps the `messages` that it shows.

    https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
    """

    path: ClassVar[str] = "/services/T0000/B0000/xoxsecretslack"
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    is_archived: bool = False

    @property
    def webhook(self) -> str:
        """Return the URL of the webhook, which is a secret."""
        return self.url + self.path

    async def handle(self, request: Request) -> Response:
        """Answer in plain text, as Slack does."""
        if request.url.path != self.path:
            return PlainTextResponse("no_service", HTTPStatus.NOT_FOUND)
        if self.is_archived:
            return PlainTextResponse("channel_is_archived", HTTPStatus.GONE)
        message = _json(await request.body())
        if not isinstance(message, dict):
            return PlainTextResponse("invalid_payload", HTTPStatus.BAD_REQUEST)
        if not message.get("text") and not message.get("blocks"):
            return PlainTextResponse("no_text", HTTPStatus.BAD_REQUEST)
        self.messages.append(message)
        return PlainTextResponse("ok")


def too_fast(seconds: int) -> Response:
    """Return Slack's answer to more than one message a second: https://docs.slack.dev/apis/web-api/rate-limits."""
    return PlainTextResponse(
        "rate_limited", HTTPStatus.TOO_MANY_REQUESTS, headers={"retry-after": str(seconds)}
    )


@dataclass(slots=True)
class FakeTeams(FakeApi):
    """A workflow of Power Automate with the trigger “When a Teams webhook request is received”.

    It accepts every request, and then shows the first card of a message, if that is not too large.
    https://learn.microsoft.com/en-us/connectors/teams/#microsoft-teams-webhook
    """

    path: ClassVar[str] = "/workflows/0a1b/triggers/manual/paths/invoke"
    query: ClassVar[str] = "api-version=1&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=secretteams"
    cards: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def webhook(self) -> str:
        """Return the URL of the workflow, which contains its signature."""
        return f"{self.url}{self.path}?{self.query}"

    async def handle(self, request: Request) -> Response:
        """Answer as the trigger does: the workflow itself runs later."""
        if request.url.path != self.path:
            return _trigger_error(HTTPStatus.NOT_FOUND, "WorkflowNotFound", "The workflow is not found.")
        if request.url.query != self.query:
            return _trigger_error(
                HTTPStatus.UNAUTHORIZED,
                "DirectApiAuthorizationRequired",
                "The request must be authenticated only by Shared Access scheme.",
            )
        body = await request.body()
        message = _json(body)
        for attachment in message["attachments"] if isinstance(message, dict) else ():
            is_card = attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
            if is_card and len(body) <= _MAX_TEAMS_BYTES:
                self.cards.append(attachment["content"])
        return Response(status_code=HTTPStatus.ACCEPTED)


@dataclass(slots=True)
class FakeReceiver(FakeApi):
    """A receiver with the reference library of Standard Webhooks. It keeps what it has verified, by id."""

    secret: str = ""
    received: dict[str, Any] = field(default_factory=dict)

    @property
    def webhook(self) -> str:
        """Return the URL of the receiver."""
        return f"{self.url}/events"

    async def handle(self, request: Request) -> Response:
        """Verify the signature; take a repetition for what it is."""
        try:
            verified = standardwebhooks.Webhook(self.secret).verify(
                await request.body(), dict(request.headers)
            )
        except standardwebhooks.WebhookVerificationError as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.UNAUTHORIZED)
        self.received.setdefault(request.headers["webhook-id"], verified)
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _trigger_error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)
