"""The REST API of GitHub and of GitHub Enterprise Server.

https://docs.github.com/en/rest/repos/webhooks and https://docs.github.com/en/rest/orgs/webhooks
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import BaseModel

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.delivery_log import DeliveryAttempt, LogPage
from gateway.provider_apis.operation import ApiAnswer, ApiRequest, Operation, T
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import host_and_path, server_url

EVENTS = frozenset({"push", "create", "delete", "pull_request", "merge_group", "repository"})
RIGHTS: Mapping[Scope, str] = {
    "repository": "Webhooks: read and write",
    "owner": "Organization webhooks: read and write, as an owner of the organization; of a classic token:"
    " admin:org_hook",
}
SCOPES = frozenset(RIGHTS)
# https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
REQUESTS_PER_HOUR = 5000
# Of requests that create something, by the same page.
WRITE_LIMITS: Sequence[WriteLimit] = (
    WriteLimit(requests=80, seconds=60.0, at_once=60),
    WriteLimit(requests=500, seconds=3600.0, at_once=250),
)
HEADERS: Mapping[str, str] = {
    "Accept": "application/vnd.github+json",
    "X-GitHub-Api-Version": "2022-11-28",
}
# https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks
LOG_SCOPES = SCOPES
LOG_KEPT = timedelta(days=3)
# Some of what WRITE_LIMITS permit at once is left for statuses.
REDELIVERIES_A_MINUTE = 50

PUBLIC_API = "https://api.github.com"

READ_RIGHT = "Metadata: read, Contents: read"
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class _LastResponse(BaseModel):
    code: int | None = None
    status: str | None = None
    message: str | None = None


class _Config(BaseModel):
    url: str = ""
    secret: str | None = None


class _Hook(BaseModel):
    id: int
    active: bool
    events: list[str]
    config: _Config
    last_response: _LastResponse = _LastResponse()


class _Delivery(BaseModel):
    id: int
    guid: str
    delivered_at: datetime
    event: str
    status: str | None = None
    status_code: int | None = None


class Repository(BaseModel):
    """A repository of a list."""

    id: int
    full_name: str
    clone_url: str
    default_branch: str | None = None
    archived: bool = False


def base_url(place: Place) -> str:
    """Return the base URL of the API of a place's server."""
    server = server_url(place.url)
    return PUBLIC_API if server == "https://github.com" else f"{server}/api/v3"


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:  # noqa: ARG001 - as of others
    """Return the headers with a token."""
    return {"Authorization": f"Bearer {token}"}


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository, or of an organization."""
    found = yield from _pages(_hooks(place), list[_Hook], place, right=RIGHTS[place.scope])
    return [_registered(hook) for hook in found]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook."""
    body = {"name": "web", **_body(webhook)}
    answer = yield ApiRequest(method="POST", path=_hooks(place), body=body, right=RIGHTS[place.scope])
    return _registered(answer.read(_Hook))


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Set URL, secret and events of a webhook, and activate it."""
    path = _hook(place, webhook_id)
    answer = yield ApiRequest(method="PATCH", path=path, body=_body(webhook), right=RIGHTS[place.scope])
    return _registered(answer.read(_Hook))


def delete(place: Place, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    path = _hook(place, webhook_id)
    yield ApiRequest(method="DELETE", path=path, right=RIGHTS[place.scope], may_be_missing=True)


def test(place: Place, webhook_id: str) -> Operation[bool]:
    """Request a ping."""
    path = f"{_hook(place, webhook_id)}/pings"
    yield ApiRequest(method="POST", path=path, right=RIGHTS[place.scope])
    return True


def delivery_log(place: Place, webhook_id: str, start: str | None) -> Operation[LogPage]:
    """Return a page of the log of a webhook, also with the deliveries that succeeded."""
    return (yield from log_page(_hook(place, webhook_id), start, right=RIGHTS[place.scope]))


def log_page(hook: str, start: str | None, *, right: str) -> Operation[LogPage]:
    """Return a page of the log of the webhook at a path of the API."""
    query = {"per_page": "100"} | ({"cursor": start} if start else {})
    answer = yield ApiRequest(method="GET", path=f"{hook}/deliveries", query=query, right=right)
    following = parse_qs(urlsplit(next_page(answer) or "").query).get("cursor", [None])
    return LogPage(attempts=[_attempt(found) for found in answer.read(list[_Delivery])], next=following[0])


def redeliver(place: Place, webhook_id: str, attempt_id: str) -> Operation[None]:
    """Request another attempt. GitHub makes it after it has answered."""
    yield from request_attempt(_hook(place, webhook_id), attempt_id, right=RIGHTS[place.scope])


def request_attempt(hook: str, attempt_id: str, *, right: str) -> Operation[None]:
    """Request another attempt of the webhook at a path of the API."""
    path = f"{hook}/deliveries/{quote(attempt_id, safe='')}/attempts"
    yield ApiRequest(method="POST", path=path, right=right)


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of an organization."""
    found = yield from _pages(f"{_home(place)}/repos", list[Repository], place, right=READ_RIGHT)
    return [listed(one) for one in found]


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    query = {"ref": branch} if branch else {}
    path = f"{_home(Place(clone_url))}/contents/{quote(path)}"
    answer = yield ApiRequest(method="HEAD", path=path, query=query, right=READ_RIGHT, may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def _pages(path: str, model: type[list[T]], place: Place, *, right: str) -> Operation[list[T]]:
    """Return what all pages of a list have."""
    found: list[T] = []
    following: str | None = path
    query: Mapping[str, str] = {"per_page": "100"}
    while following is not None:
        answer = yield ApiRequest(method="GET", path=following, query=query, right=right, subject=place.noun)
        found += answer.read(model)
        following, query = next_page(answer), {}
    return found


def _home(place: Place) -> str:
    if place.scope == "owner":
        return f"/orgs/{quote(place.owner('github').name, safe='')}"
    _, path = host_and_path(place.url)
    return f"/repos/{quote(path)}"


def _hooks(place: Place) -> str:
    return f"{_home(place)}/hooks"


def _hook(place: Place, webhook_id: str) -> str:
    return f"{_hooks(place)}/{quote(webhook_id, safe='')}"


def _body(webhook: Webhook) -> dict[str, Any]:
    config = {"url": webhook.url, "content_type": "json", "secret": webhook.secret, "insecure_ssl": "0"}
    return {"active": True, "events": sorted(webhook.events), "config": config}


def _registered(hook: _Hook) -> RegisteredWebhook:
    last = hook.last_response
    is_fine = last.code is None or 200 <= last.code < 300  # noqa: PLR2004 - HTTP's classes
    return RegisteredWebhook(
        id=str(hook.id),
        url=hook.config.url,
        events=EVENTS if "*" in hook.events else frozenset(hook.events),
        is_active=hook.active,
        # GitHub shows a secret as asterisks.
        has_secret=hook.config.secret is not None,
        problem=None if is_fine else f"{last.code} {last.message or last.status}",
    )


def _attempt(found: _Delivery) -> DeliveryAttempt:
    status = found.status_code or 0
    return DeliveryAttempt(
        id=str(found.id),
        guid=found.guid,
        event=found.event,
        at=found.delivered_at,
        status=f"{status} {found.status or ''}".strip(),
        has_succeeded=200 <= status < 300,  # noqa: PLR2004 - HTTP's classes
    )


def listed(repository: Repository) -> ListedRepository:
    """Return a repository as the lists of all providers have it."""
    return ListedRepository(
        id=str(repository.id),
        full_name=repository.full_name,
        url=repository.clone_url,
        default_branch=repository.default_branch,
        is_archived=repository.archived,
    )


def next_page(answer: ApiAnswer) -> str | None:
    """Return the address of the page behind the one of an answer; None behind the last."""
    found = _NEXT.search(answer.headers.get("link", ""))
    return found[1] if found else None
