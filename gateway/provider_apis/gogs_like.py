"""What the REST APIs of Gogs, Gitea and Forgejo have in common; the latter two descend from Gogs.

https://docs.gitea.com/api/ and https://gogs.io/api-reference/webhooks/list-hooks
"""

from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Webhook
from providers.clone_urls import host_and_path, server_url

# None of them limits requests. This is one a second, so that Pushgate is no burden on a small server.
REQUESTS_PER_HOUR = 3600
WRITE_LIMITS: Sequence[WriteLimit] = ()
HEADERS: Mapping[str, str] = {"Accept": "application/json"}

_FILTERS_OF_ALL_BRANCHES = frozenset({"", "*", "**"})


class _Config(BaseModel):
    url: str = ""


class Hook(BaseModel):
    """A webhook in an answer. Its secret is never shown; only Gitea and Forgejo have branch filters."""

    id: int
    active: bool
    events: list[str]
    config: _Config
    branch_filter: str = ""

    @property
    def registered(self) -> RegisteredWebhook:
        """Return the webhook in the words of all providers."""
        return RegisteredWebhook(
            id=str(self.id),
            url=self.config.url,
            events=frozenset(self.events),
            is_active=self.active,
            is_filtered=self.branch_filter not in _FILTERS_OF_ALL_BRANCHES,
        )


class Repository(BaseModel):
    """A repository in an answer. Gogs does not archive repositories."""

    id: int
    full_name: str
    clone_url: str
    default_branch: str | None = None
    archived: bool = False

    @property
    def listed(self) -> ListedRepository:
        """Return the repository in the words of all providers."""
        return ListedRepository(
            id=str(self.id),
            full_name=self.full_name,
            url=self.clone_url,
            default_branch=self.default_branch or None,
            is_archived=self.archived,
        )


def base_url(place: Place) -> str:
    """Return the base URL of the API of a place's server, which may be in a folder of a web server."""
    if place.scope == "owner":
        return f"{place.owner('gitea').server}/api/v1"
    _, path = host_and_path(place.url)
    # An SSH clone URL does not show the folder.
    is_web = place.url.strip().lower().startswith(("https://", "http://"))
    words = path.split("/")[: -2 if place.scope == "repository" else None] if is_web else []
    folder = "".join(f"/{quote(word)}" for word in words if word)
    return f"{server_url(place.url)}{folder}/api/v1"


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:  # noqa: ARG001 - as of others
    """Return the headers with a token."""
    return {"Authorization": f"token {token}"}


def home_path(place: Place) -> str:
    """Return the path of a repository, an organisation, or what administrators use."""
    match place.scope:
        case "repository":
            _, path = host_and_path(place.url)
            return f"/repos/{quote('/'.join(path.split('/')[-2:]))}"
        case "owner":
            return f"/orgs/{quote(place.owner('gitea').name, safe='')}"
        case "server":
            return "/admin"


def hooks_path(place: Place) -> str:
    """Return the path of a place's webhooks."""
    return f"{home_path(place)}/hooks"


def hook_path(place: Place, webhook_id: str) -> str:
    """Return the path of a webhook."""
    return f"{hooks_path(place)}/{quote(webhook_id, safe='')}"


def create(
    place: Place, webhook: Webhook, *, kind: Literal["gitea", "gogs"], events: Collection[str], right: str
) -> Operation[RegisteredWebhook]:
    """Create a webhook with payloads of a kind; `events` are those of the webhook as the API wants them."""
    body: dict[str, Any] = {
        "type": kind,
        "active": True,
        "events": sorted(events),
        "config": {"url": webhook.url, "content_type": "json", "secret": webhook.secret},
    }
    if place.scope == "server":
        # Otherwise, it is a template for the webhooks of new repositories.
        body["config"]["is_system_webhook"] = "true"
    answer = yield ApiRequest(method="POST", path=hooks_path(place), body=body, right=right)
    return answer.read(Hook).registered


def has_file(clone_url: str, path: str, branch: str | None, *, right: str) -> Operation[bool]:
    """Return whether a branch has a file. The answer has its content as well."""
    path = f"{home_path(Place(clone_url))}/contents/{quote(path)}"
    query = {"ref": branch} if branch else {}
    answer = yield ApiRequest(method="GET", path=path, query=query, right=right, may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def delete(place: Place, webhook_id: str, *, right: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    path = hook_path(place, webhook_id)
    yield ApiRequest(method="DELETE", path=path, right=right, may_be_missing=True)


def replace(
    place: Place, webhook_id: str, new: Operation[RegisteredWebhook], *, right: str
) -> Operation[RegisteredWebhook]:
    """Create a new webhook and then delete an old one, in this order so that no push is missed."""
    created = yield from new
    yield from delete(place, webhook_id, right=right)
    return created


def test(place: Place, webhook_id: str) -> Operation[bool]:  # noqa: ARG001 - as of others
    """Return False without a request.

    Gogs has no test delivery in its API. That of Gitea and Forgejo is a push of the newest commit, which
    Pushgate would execute.
    """
    yield from ()
    return False
