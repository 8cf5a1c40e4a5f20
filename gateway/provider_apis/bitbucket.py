"""The REST API of Bitbucket Cloud.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-repositories/#api-repositories-workspace-repo-slug-hooks-get
https://developer.atlassian.com/cloud/bitbucket/rest/api-group-workspaces/#api-workspaces-workspace-hooks-get
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic
from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation, T
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import host_and_path, server_url, without_user

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
_SCOPES_OF_API_TOKENS = "read:webhook:bitbucket, write:webhook:bitbucket, delete:webhook:bitbucket"
RIGHTS: Mapping[Scope, str] = {
    "repository": f"Webhooks: read and write; of an API token: {_SCOPES_OF_API_TOKENS}",
    "owner": "Webhooks: read and write, as an administrator of the workspace; of an API token:"
    f" {_SCOPES_OF_API_TOKENS}",
}
SCOPES = frozenset(RIGHTS)
# https://support.atlassian.com/bitbucket-cloud/docs/api-request-limits/
REQUESTS_PER_HOUR = 1000
WRITE_LIMITS: Sequence[WriteLimit] = ()
HEADERS: Mapping[str, str] = {}

# An API token belongs to an Atlassian account.
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
READ_RIGHT = "Repositories: read; of an API token: read:repository:bitbucket"
_API_TOKEN = "ATATT"  # noqa: S105 - the prefix of all such tokens


class _Hook(BaseModel):
    uuid: str
    url: str = ""
    active: bool = True
    events: list[str] = []
    secret_set: bool | None = None


class _Branch(BaseModel):
    name: str | None = None


class _Commit(BaseModel):
    hash: str


class _Link(BaseModel):
    href: str
    name: str = ""


class _Links(BaseModel):
    clone: list[_Link] = []


class _Repository(BaseModel):
    uuid: str
    full_name: str
    main: _Branch | None = Field(None, alias="mainbranch")
    links: _Links = _Links()

    @property
    def listed(self) -> ListedRepository:
        urls = [without_user(link.href) for link in self.links.clone if link.name == "https"]
        return ListedRepository(
            id=self.uuid,
            full_name=self.full_name,
            url=next(iter(urls), f"https://bitbucket.org/{self.full_name}.git"),
            default_branch=self.main.name if self.main else None,
        )


class _Target(BaseModel):
    target: _Commit


class _Page(BaseModel, Generic[T]):
    values: list[T]
    next: str | None = None


def base_url(place: Place) -> str:
    """Return the base URL of the API of a place's server."""
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
    """Return all webhooks of a repository or a workspace. The API does not show how deliveries ended."""
    found = yield from _pages(_hooks(place), {}, _Page[_Hook], place, right=RIGHTS[place.scope])
    return [_registered(hook) for hook in found]


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


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of a workspace. Bitbucket Cloud cannot archive them."""
    path = f"/repositories/{quote(_workspace(place), safe='')}"
    names = ("uuid", "full_name", "mainbranch.name", "links.clone")
    query = {"fields": ",".join(["next", *(f"values.{name}" for name in names)])}
    found = yield from _pages(path, query, _Page[_Repository], place, right=READ_RIGHT)
    return [repository.listed for repository in found]


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file.

    The default branch, and a branch with a slash in its name, take another request.
    """
    home = repository_path(Place(clone_url))
    if branch is None:
        answer = yield ApiRequest(method="GET", path=home, right=READ_RIGHT, may_be_missing=True)
        if answer.status != HTTPStatus.NOT_FOUND:
            branch = answer.read(_Repository).listed.default_branch
    if branch is not None and "/" in branch:
        at = f"{home}/refs/branches/{quote(branch)}"
        answer = yield ApiRequest(method="GET", path=at, right=READ_RIGHT, may_be_missing=True)
        branch = None if answer.status == HTTPStatus.NOT_FOUND else answer.read(_Target).target.hash
    if branch is None:
        return False
    at, query = f"{home}/src/{quote(branch)}/{quote(path)}", {"format": "meta"}
    answer = yield ApiRequest(method="GET", path=at, query=query, right=READ_RIGHT, may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def _pages(
    path: str, query: Mapping[str, str], model: type[_Page[T]], place: Place, *, right: str
) -> Operation[list[T]]:
    """Return what all pages of a list have."""
    found: list[T] = []
    following: str | None = path
    query = {**query, "pagelen": "100"}
    while following is not None:
        answer = yield ApiRequest(method="GET", path=following, query=query, right=right, subject=place.noun)
        page = answer.read(model)
        found += page.values
        following, query = page.next, {}
    return found


def _workspace(place: Place) -> str:
    return place.owner("bitbucket").name


def repository_path(place: Place) -> str:
    """Return the path of a repository, or of a workspace."""
    if place.scope == "owner":
        return f"/workspaces/{quote(_workspace(place), safe='')}"
    _, path = host_and_path(place.url)
    return f"/repositories/{quote(path)}"


def _hooks(place: Place) -> str:
    return f"{repository_path(place)}/hooks"


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
