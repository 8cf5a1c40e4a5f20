"""The attributes of spans, by version 1.44.0 of OpenTelemetry's semantic conventions.

https://opentelemetry.io/docs/specs/semconv/registry/attributes/vcs/ and the pages of `cicd`, `http` and
`messaging`, of which the first two are in development. The library has no stable module with their names.
What the conventions do not name begins with `pushgate.`.

No secret may be here: neither the path of a webhook's URL, which cannot be guessed, nor a query, a body, a
header, or the user in a URL.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from providers.clone_urls import host_and_path, server_url

Attributes = dict[str, str | int | bool]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
WEBHOOK_ROUTE = "/hooks/{connection}"

_MAX_LENGTH = 500
_RESULTS = {"succeeded": "success", "failed": "failure", "cancelled": "cancellation", "rejected": "skip"}


def of_request(*, method: str, status: int) -> Attributes:
    """Return the attributes of a webhook's request and of its answer."""
    return {
        "http.request.method": method,
        "http.route": WEBHOOK_ROUTE,
        "http.response.status_code": status,
    }


def of_delivery(delivery: str, *, provider: str, event: str, source: str, verdict: str) -> Attributes:
    """Return the attributes of a delivery."""
    return {
        "vcs.provider.name": provider,
        "pushgate.delivery.id": delivery,
        "pushgate.delivery.event": event,
        "pushgate.delivery.source": source,
        "pushgate.delivery.verdict": verdict,
    }


def of_full_name(full_name: str | None) -> Attributes:
    """Return the attributes of a repository that a payload names."""
    if not full_name:
        return {}
    owner, _, name = full_name[:_MAX_LENGTH].strip("/").rpartition("/")
    return {"vcs.repository.name": name, **({"vcs.owner.name": owner} if owner else {})}


def of_repository(*, provider: str, url: str) -> Attributes:
    """Return the attributes of a repository with this clone URL."""
    _, path = host_and_path(url)
    return {
        "vcs.provider.name": provider,
        "vcs.repository.url.full": f"{server_url(url)}/{path}"[:_MAX_LENGTH],
        **of_full_name(path),
    }


def of_ref(*, kind: str, name: str, after: str | None, pull_request: Mapping[str, Any] | None) -> Attributes:
    """Return the attributes of a ref that has moved, or of the head of a pull request."""
    found: Attributes = {"vcs.ref.head.name": name[:_MAX_LENGTH], "vcs.ref.head.type": kind}
    if pull_request is not None:
        found = {
            "vcs.change.id": str(pull_request["number"]),
            "vcs.ref.head.name": pull_request["source"][:_MAX_LENGTH],
            "vcs.ref.head.type": "branch",
            "vcs.ref.base.name": pull_request["target"][:_MAX_LENGTH],
            "vcs.ref.base.type": "branch",
        }
    if after is not None:
        found["vcs.ref.head.revision"] = after
    return found


def of_message(*, exchange: str, key: str, id_: str, delivery: str, size: int) -> Attributes:
    """Return the attributes of a message that is sent to RabbitMQ."""
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": f"{exchange}:{key}",
        "messaging.rabbitmq.destination.routing_key": key,
        "messaging.message.id": id_,
        "messaging.message.conversation_id": delivery,
        "messaging.message.body.size": size,
    }


def of_execution(id_: str, *, target: str, project: str, trigger: str) -> Attributes:
    """Return the attributes of an execution: to runners, a step or pipeline is what a CI system runs."""
    return {
        "cicd.pipeline.name": target,
        "cicd.pipeline.run.id": id_,
        "pushgate.project": project,
        "pushgate.trigger": trigger,
    }


def of_run(state: str, *, url: str | None) -> Attributes:
    """Return the attributes of a run that has ended, with its page, whose query may have a signature."""
    page = {} if url is None else {"cicd.pipeline.run.url.full": _page(url)}
    return {"cicd.pipeline.action.name": "RUN", "cicd.pipeline.result": _RESULTS[state], **page}


def _page(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[
        :_MAX_LENGTH
    ]
