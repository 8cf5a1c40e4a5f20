"""The operations at the root, which need no token, for the OpenAPI document: webhooks and specifications."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from gateway.api.statuses import RETRY_AFTER, error
from gateway.api.views import Verdict
from gateway.messages.events import EVENTS
from gateway.messages.names import (
    EXECUTION_CANCELLED,
    EXECUTION_REQUEST_SCHEMA,
    EXECUTION_STATUS_SCHEMA,
    schema_name,
)

SCHEMA_NAMES = (
    EXECUTION_REQUEST_SCHEMA,
    EXECUTION_STATUS_SCHEMA,
    schema_name(EXECUTION_CANCELLED),
    *map(schema_name, EVENTS),
)
"""The names under which the JSON Schemas of the messages are served."""


class WebhookReceipt(BaseModel):
    """The answer to a delivery that was recorded."""

    delivery: str | None = Field(
        description="the id of the delivery; null for an unsigned test, which is not recorded"
    )
    verdict: Verdict = Field(description="what the gateway made of it")
    reason: str | None = Field(description="why; null where the verdict says it all")


class WebhookError(BaseModel):
    """The answer to a delivery that was not accepted. Providers show it to people."""

    error: str = Field(description="the kind of error, in a few words")
    detail: str = Field(description="a sentence for people; do not parse it")


class UnreadableWebhook(WebhookError, WebhookReceipt):
    """The answer to a delivery that was verified and recorded, but cannot be read."""


_HEADERS = {
    "webhook-id": "generic, and GitLab with a signing token: the id of the delivery, equal in every retry",
    "webhook-timestamp": "generic, and GitLab with a signing token: when it was signed, in Unix seconds",
    "webhook-signature": "generic, and GitLab with a signing token: as Standard Webhooks defines it",
    "X-GitHub-Event": "GitHub: the event",
    "X-GitHub-Delivery": "GitHub: the id of the delivery",
    "X-Hub-Signature-256": "GitHub: sha256= and the HMAC of the body in hex",
    "X-Hub-Signature": "Bitbucket and Bitbucket Data Center: sha256= and the HMAC of the body in hex",
    "X-Event-Key": "Bitbucket and Bitbucket Data Center: the event",
    "X-Request-UUID": "Bitbucket: the id of the delivery",
    "X-Request-Id": "Bitbucket Data Center: the id of the delivery",
    "X-Gitlab-Event": "GitLab: the event",
    "X-Gitlab-Token": "GitLab with a plain token: the secret",
    "X-Gitea-Event": "Gitea: the event",
    "X-Gitea-Delivery": "Gitea: the id of the delivery",
    "X-Gitea-Signature": "Gitea: the HMAC of the body in hex",
    "X-Forgejo-Event": "Forgejo: the event",
    "X-Forgejo-Delivery": "Forgejo: the id of the delivery",
    "X-Forgejo-Signature": "Forgejo: the HMAC of the body in hex",
    "X-Gogs-Event": "Gogs: the event",
    "X-Gogs-Delivery": "Gogs: the id of the delivery",
    "X-Gogs-Signature": "Gogs: the HMAC of the body in hex",
}
_PUSH = {
    "updates": [
        {
            "ref": "refs/heads/main",
            "before": "95790bf891e76fee5e1747ab589903a6a1f80f22",
            "after": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        }
    ],
    "pusher": {"name": "ada", "email": "ada@example.com"},
}
_PAYLOAD = {"type": "object", "additionalProperties": True, "description": "the provider's payload"}


def _receipt(description: str, schema: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, **({"headers": headers} if headers else {}), "content": content}


def _refused(description: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return _receipt(description, "WebhookError", headers)


_WEBHOOK = {
    "operationId": "receive_webhook",
    "tags": ["webhooks"],
    "summary": "Receive a delivery of a provider",
    "description": "The URL that a provider's settings contain: `hook_url` of the connection. Each provider"
    " sends its own headers; the deliveries of Azure DevOps are authenticated by Authorization: Basic, or by"
    " a header that the connection names. A delivery is stored before the answer is sent.",
    "security": [],
    "parameters": [
        {
            "name": "connection",
            "in": "path",
            "required": True,
            "description": "the id of the connection",
            "schema": {"type": "string"},
        },
        *(
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        ),
    ],
    "requestBody": {
        "required": True,
        "description": "The payload. The example is that of the provider `generic`.",
        "content": {
            "application/json": {"schema": _PAYLOAD, "example": _PUSH},
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "description": "the form in which GitHub, Gitea, Forgejo and Gogs can send the payload",
                    "properties": {"payload": {"type": "string", "description": "the payload, as JSON"}},
                    "required": ["payload"],
                }
            },
        },
    },
    "responses": {
        "200": _receipt("A ping: it is recorded and has no effect.", "WebhookReceipt"),
        "202": _receipt("Recorded: `verdict` is what the gateway made of it.", "WebhookReceipt"),
        "400": _receipt("Verified and recorded, but the body cannot be decoded.", "UnreadableWebhook"),
        "401": _refused(
            "Not verified: the signature or token is missing or wrong, or the sender's address is not in"
            " `networks` of the connection. Nothing is recorded."
        ),
        "404": _refused("There is no such connection."),
        "413": _refused("The body is larger than the setting BODY_LIMIT."),
        "415": {
            "description": "Verified and recorded, but of another content type; or compressed, which is not"
            " recorded.",
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/UnreadableWebhook"},
                            {"$ref": "#/components/schemas/WebhookError"},
                        ]
                    }
                }
            },
        },
        "503": _refused("It cannot be recorded now, or too much is in progress: send it again.", RETRY_AFTER),
    },
}


def _specification(operation_id: str, summary: str, media_type: str) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": True}
    return {
        "operationId": operation_id,
        "tags": ["specifications"],
        "summary": summary,
        "security": [],
        "responses": {"200": {"description": "The document.", "content": {media_type: {"schema": schema}}}},
    }


def _schema() -> dict[str, Any]:
    operation = _specification("get_schema", "Return the JSON Schema of a message", "application/schema+json")
    operation["parameters"] = [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "description": f"the name of the message, {' or '.join(SCHEMA_NAMES)}, with or without a version",
            "schema": {"type": "string"},
            "example": SCHEMA_NAMES[0],
        }
    ]
    operation["responses"]["404"] = error("There is no message of this name.")
    return operation


ROOT_PATHS: dict[str, Any] = {
    "/hooks/{connection}": {"post": _WEBHOOK},
    "/openapi.json": {"get": _specification("get_openapi", "Return this document", "application/json")},
    "/asyncapi.json": {
        "get": _specification(
            "get_asyncapi",
            "Return the AsyncAPI document of the messages",
            "application/vnd.aai.asyncapi+json;version=3.0.0",
        )
    },
    "/schemas/{name}.json": {"get": _schema()},
}
"""The path items of the operations at the root."""
