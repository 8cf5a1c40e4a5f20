"""The REST API of Bitbucket Data Center.

https://developer.atlassian.com/server/bitbucket/rest/
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic
from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRequest, Operation, T
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import host_and_path, server_url, without_user

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
RIGHTS: Mapping[Scope, str] = {"repository": "Repository admin", "owner": "Project admin"}
SCOPES = frozenset(RIGHTS)
# The limit that an administrator is offered, 5 requests a second.
# https://confluence.atlassian.com/bitbucketserver/improving-instance-stability-with-rate-limiting-976171954.html
REQUESTS_PER_HOUR = 18_000
WRITE_LIMITS: Sequence[WriteLimit] = ()
HEADERS: Mapping[str, str] = {}

READ_RIGHT = "Repository read"
_HEADS = "refs/heads/"


class _Configuration(BaseModel):
    secret: str | None = None


class _Hook(BaseModel):
    id: int
    url: str = ""
    active: bool = True
    events: list[str] = []
    configuration: _Configuration | None = None
    scope: str = Field("repository", alias="scopeType")


class _Project(BaseModel):
    key: str


class _Link(BaseModel):
    href: str
    name: str = ""


class _Links(BaseModel):
    clone: list[_Link] = []


class _Repository(BaseModel):
    id: int
    slug: str
    project: _Project
    links: _Links = _Links()
    archived: bool = False

    @property
    def url(self) -> str | None:
        """Return the clone URL of http; None if the server offers only SSH."""
        return next((without_user(link.href) for link in self.links.clone if link.name == "http"), None)


class _Page(BaseModel, Generic[T]):
    values: list[T]
    is_last: bool = Field(default=True, alias="isLastPage")
    next_start: int | None = Field(None, alias="nextPageStart")


def base_url(place: Place) -> str:
    """Return the base URL of the API of a place's server, with the server's context path."""
    if place.scope == "owner":
        return f"{place.owner('bitbucket-server').server}/rest/api/latest"
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
    """Return all webhooks of a repository, without those of its project, or those of a project.

    How the last delivery ended would take another request for each webhook, so `problem` is always None.
    """
    found = yield from _pages(_hooks(place), _Page[_Hook], place, right=RIGHTS[place.scope])
    return [_registered(hook) for hook in found if place.scope == "owner" or hook.scope == "repository"]


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


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of a project. The list does not show their default branches."""
    found = yield from _pages(f"{repository_path(place)}/repos", _Page[_Repository], place, right=READ_RIGHT)
    server = place.owner("bitbucket-server").server
    return [
        ListedRepository(
            id=str(one.id),
            full_name=f"{one.project.key}/{one.slug}",
            url=one.url or f"{server}/scm/{one.project.key.lower()}/{one.slug}.git",
            is_archived=one.archived,
        )
        for one in found
    ]


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    path = f"{repository_path(Place(clone_url))}/browse/{quote(path)}"
    # Only the type of the entry, without its content.
    query = {"type": "true", **({"at": _HEADS + branch} if branch else {})}
    answer = yield ApiRequest(method="GET", path=path, query=query, right=READ_RIGHT, may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def _pages(path: str, model: type[_Page[T]], place: Place, *, right: str) -> Operation[list[T]]:
    """Return what all pages of a list have."""
    found: list[T] = []
    start: int | None = 0
    while start is not None:
        query = {"limit": "100", "start": str(start)}
        answer = yield ApiRequest(method="GET", path=path, query=query, right=right, subject=place.noun)
        page = answer.read(model)
        found += page.values
        is_next = not page.is_last and page.next_start is not None and page.next_start > start
        start = page.next_start if is_next else None
    return found


def repository_path(place: Place) -> str:
    """Return the path of a repository, or of a project."""
    if place.scope == "owner":
        return f"/projects/{quote(place.owner('bitbucket-server').name, safe='')}"
    _, path = host_and_path(place.url)
    project, _, repository = "/".join(path.split("/")[-2:]).rpartition("/")
    return f"/projects/{quote(project, safe='')}/repos/{quote(repository, safe='')}"


def _hooks(place: Place) -> str:
    return f"{repository_path(place)}/webhooks"


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
