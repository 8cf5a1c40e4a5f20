"""The REST API of Bitbucket Data Center.

https://developer.atlassian.com/server/bitbucket/rest/
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import host_and_path, server_url

EVENTS = frozenset(
    {
        "repo:refs_changed",
        "repo:modified",
        "pr:opened",
        "pr:from_ref_updated",
        "pr:merged",
        "pr:declined",
        "pr:deleted",
    }
)
RIGHTS: Mapping[Scope, str] = {"repository": "Repository admin"}
SCOPES = frozenset(RIGHTS)
# The limit that an administrator is offered, 5 requests a second.
# https://confluence.atlassian.com/bitbucketserver/improving-instance-stability-with-rate-limiting-976171954.html
REQUESTS_PER_HOUR = 18_000
HEADERS: Mapping[str, str] = {}


class _Configuration(BaseModel):
    secret: str | None = None


class _Hook(BaseModel):
    id: int
    url: str = ""
    active: bool = True
    events: list[str] = []
    configuration: _Configuration | None = None
    scope: str = Field("repository", alias="scopeType")


class _Page(BaseModel):
    values: list[_Hook]
    is_last: bool = Field(default=True, alias="isLastPage")
    next_start: int | None = Field(None, alias="nextPageStart")


def base_url(place: Place) -> str:
    """Return the base URL of the API of a repository's server, with the server's context path."""
    _, path = host_and_path(place.url)
    words = path.split("/")[:-2]
    # Only URLs of http have the context path: https://host/context/scm/PROJECT/repository.git
    is_web = place.url.strip().startswith(("https://", "http://"))
    context = words[:-1] if is_web and words[-1:] == ["scm"] else []
    return "/".join([server_url(place.url), *map(quote, context), "rest/api/latest"])


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:  # noqa: ARG001 - as of others
    """Return the headers with an HTTP access token."""
    return {"Authorization": f"Bearer {token}"}


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository, without those of its project.

    How the last delivery ended would take another request for each webhook, so `problem` is always None.
    """
    found: list[RegisteredWebhook] = []
    start: int | None = 0
    while start is not None:
        query = {"limit": "100", "start": str(start)}
        answer = yield ApiRequest(method="GET", path=_hooks(place), query=query, right=RIGHTS[place.scope])
        page = answer.read(_Page)
        found += [_registered(hook) for hook in page.values if hook.scope == "repository"]
        is_next = not page.is_last and page.next_start is not None and page.next_start > start
        start = page.next_start if is_next else None
    return found


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook."""
    answer = yield ApiRequest(
        method="POST", path=_hooks(place), body=_body(webhook), right=RIGHTS[place.scope]
    )
    return _registered(answer.read(_Hook))


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Set URL, secret and events of a webhook, and activate it."""
    path = _hook(place, webhook_id)
    answer = yield ApiRequest(method="PUT", path=path, body=_body(webhook), right=RIGHTS[place.scope])
    return _registered(answer.read(_Hook))


def delete(place: Place, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    path = _hook(place, webhook_id)
    yield ApiRequest(method="DELETE", path=path, right=RIGHTS[place.scope], may_be_missing=True)


def test(place: Place, webhook_id: str) -> Operation[bool]:
    """Request a ping to the webhook's URL. Bitbucket does not sign it, so it does not test the secret."""
    answer = yield ApiRequest(method="GET", path=_hook(place, webhook_id), right=RIGHTS[place.scope])
    query = {"url": answer.read(_Hook).url, "webhookId": webhook_id}
    # An empty document, because Bitbucket refuses some requests without a content type as forged.
    yield ApiRequest(
        method="POST", path=f"{_hooks(place)}/test", query=query, body={}, right=RIGHTS[place.scope]
    )
    return True


def _hooks(place: Place) -> str:
    _, path = host_and_path(place.url)
    project, _, repository = "/".join(path.split("/")[-2:]).rpartition("/")
    return f"/projects/{quote(project, safe='')}/repos/{quote(repository, safe='')}/webhooks"


def _hook(place: Place, webhook_id: str) -> str:
    return f"{_hooks(place)}/{quote(webhook_id, safe='')}"


def _body(webhook: Webhook) -> dict[str, Any]:
    return {
        "name": "Pushgate",
        "url": webhook.url,
        "active": True,
        "configuration": {"secret": webhook.secret},
        "events": sorted(webhook.events),
        "sslVerificationRequired": True,
    }


def _registered(hook: _Hook) -> RegisteredWebhook:
    return RegisteredWebhook(
        id=str(hook.id),
        url=hook.url,
        events=frozenset(hook.events),
        is_active=hook.active,
        # The server may mask a secret, but does not omit it.
        has_secret=None if hook.configuration is None else hook.configuration.secret is not None,
    )
