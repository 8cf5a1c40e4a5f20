"""The REST API of Gitea and of Forgejo.

https://docs.gitea.com/api/ and https://codeberg.org/api/swagger
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel

from gateway.provider_apis import gogs_like
from gateway.provider_apis.gogs_like import Hook, Repository
from gateway.provider_apis.operation import ApiAnswer, ApiRequest, Operation
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook

EVENTS = frozenset({"push", "delete", "pull_request", "pull_request_sync"})
RIGHTS: Mapping[Scope, str] = {
    "repository": "write:repository, as an administrator of the repository",
    "owner": "write:organization, as an owner of the organisation",
    "server": "write:admin, as an administrator of the server",
}
SCOPES = frozenset(RIGHTS)
READ_RIGHT = "read:repository"
REQUESTS_PER_HOUR = gogs_like.REQUESTS_PER_HOUR
WRITE_LIMITS = gogs_like.WRITE_LIMITS
HEADERS = gogs_like.HEADERS

base_url = gogs_like.base_url
authorization = gogs_like.authorization
test = gogs_like.test

# In a request, `pull_request` stands for all events of pull requests, such as labels and comments.
# https://github.com/go-gitea/gitea/blob/main/routers/api/v1/utils/hook.go
_REQUESTED = {"pull_request": "pull_request_only"}
# A server's own limit may be lower (MAX_RESPONSE_ITEMS, 50 by default), so a short page may not be the last.
_PAGE_SIZE = 50
_Item = TypeVar("_Item", Hook, Repository)


class _Found(BaseModel):
    data: list[Repository]


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository or an organisation, or all system webhooks of a server."""
    found = yield from _pages(
        gogs_like.hooks_path(place),
        lambda answer: answer.read(list[Hook]),
        place,
        right=RIGHTS[place.scope],
    )
    return [hook.registered for hook in found]


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of an organisation, or of a server."""
    is_server = place.scope == "server"
    found = yield from _pages(
        "/repos/search" if is_server else f"{gogs_like.home_path(place)}/repos",
        lambda answer: answer.read(_Found).data if is_server else answer.read(list[Repository]),
        place,
        right=READ_RIGHT,
    )
    return [repository.listed for repository in found]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook, of the kind that both Gitea and Forgejo have.

    Gitea before 1.24 has no system webhooks in its API: it creates one that only new repositories inherit.
    """
    events = {_REQUESTED.get(event, event) for event in webhook.events}
    return (
        yield from gogs_like.create(place, webhook, kind="gitea", events=events, right=RIGHTS[place.scope])
    )


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Replace a webhook, because the API ignores the secret in a change."""
    new = create(place, webhook)
    return (yield from gogs_like.replace(place, webhook_id, new, right=RIGHTS[place.scope]))


def delete(place: Place, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    yield from gogs_like.delete(place, webhook_id, right=RIGHTS[place.scope])


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    return (yield from gogs_like.has_file(clone_url, path, branch, right=READ_RIGHT))


def _pages(
    path: str, read: Callable[[ApiAnswer], list[_Item]], place: Place, *, right: str
) -> Operation[list[_Item]]:
    """Return what all pages of a list have."""
    found: dict[int, _Item] = {}
    page, is_complete = 1, False
    while not is_complete:
        query = {"page": str(page), "limit": str(_PAGE_SIZE)}
        answer = yield ApiRequest(method="GET", path=path, query=query, right=right, subject=place.noun)
        before = len(found)
        found |= {item.id: item for item in read(answer)}
        total = answer.headers.get("x-total-count", "")
        # Hooks have no Link header, and old servers have neither header nor pages.
        is_complete = len(found) == before or (total.isdecimal() and len(found) >= int(total))
        page += 1
    return list(found.values())
