"""The REST API of Bitbucket Cloud.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-repositories/#api-repositories-workspace-repo-slug-hooks-get
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.webhooks import Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import host_and_path, server_url

EVENTS = frozenset(
    {
        "repo:push",
        "repo:updated",
        "repo:transfer",
        "pullrequest:created",
        "pullrequest:updated",
        "pullrequest:fulfilled",
        "pullrequest:rejected",
    }
)
# The scopes of access tokens and those of API tokens, of which none includes another.
# https://support.atlassian.com/bitbucket-cloud/docs/repository-access-token-permissions/
# https://support.atlassian.com/bitbucket-cloud/docs/api-token-permissions/
RIGHTS: Mapping[Scope, str] = {
    "repository": (
        "Webhooks: read and write; of an API token: read:webhook:bitbucket, write:webhook:bitbucket,"
        " delete:webhook:bitbucket"
    )
}
SCOPES = frozenset(RIGHTS)
# https://support.atlassian.com/bitbucket-cloud/docs/api-request-limits/
REQUESTS_PER_HOUR = 1000
HEADERS: Mapping[str, str] = {}

# An API token belongs to an Atlassian account.
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
_API_TOKEN = "ATATT"  # noqa: S105 - the prefix of all such tokens


class _Hook(BaseModel):
    uuid: str
    url: str = ""
    active: bool = True
    events: list[str] = []
    secret_set: bool | None = None


class _Page(BaseModel):
    values: list[_Hook]
    next: str | None = None


def base_url(place: Place) -> str:
    """Return the base URL of the API of a repository's server."""
    server = server_url(place.url)
    return "https://api.bitbucket.org/2.0" if server == "https://bitbucket.org" else f"{server}/2.0"


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:
    """Return the headers with a token: an access token, or an API token with its account's e-mail address.

    Raise `ApiRefused` for an API token without the address.
    """
    if not token.startswith(_API_TOKEN):
        return {"Authorization": f"Bearer {token}"}
    if not user:
        raise ApiRefused(
            f"an API token of Atlassian ({_API_TOKEN}…) needs the e-mail address of its account as the user",
            status=HTTPStatus.UNAUTHORIZED,
        )
    return {"Authorization": f"Basic {b64encode(f'{user}:{token}'.encode()).decode()}"}


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository. The API does not show how deliveries ended."""
    found: list[RegisteredWebhook] = []
    path: str | None = _hooks(place)
    query: Mapping[str, str] = {"pagelen": "100"}
    while path is not None:
        answer = yield ApiRequest(method="GET", path=path, query=query, right=RIGHTS[place.scope])
        page = answer.read(_Page)
        found += [_registered(hook) for hook in page.values]
        path, query = page.next, {}
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


def test(place: Place, webhook_id: str) -> Operation[bool]:  # noqa: ARG001 - as of others
    """Return False without a request: Bitbucket Cloud has no test delivery."""
    yield from ()
    return False


def _hooks(place: Place) -> str:
    _, path = host_and_path(place.url)
    return f"/repositories/{quote(path)}/hooks"


def _hook(place: Place, webhook_id: str) -> str:
    return f"{_hooks(place)}/{quote(webhook_id, safe='')}"


def _body(webhook: Webhook) -> dict[str, Any]:
    return {
        "description": "Pushgate",
        "url": webhook.url,
        "active": True,
        "secret": webhook.secret,
        "events": sorted(webhook.events),
    }


def _registered(hook: _Hook) -> RegisteredWebhook:
    return RegisteredWebhook(
        id=hook.uuid,
        url=hook.url,
        events=frozenset(hook.events),
        is_active=hook.active,
        has_secret=hook.secret_set,
    )
