"""The REST API of Gitea and of Forgejo.

https://docs.gitea.com/api/ and https://codeberg.org/api/swagger
"""

from collections.abc import Mapping, Sequence

from gateway.provider_apis import gogs_like
from gateway.provider_apis.gogs_like import Hook
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import Place, RegisteredWebhook, Scope, Webhook

EVENTS = frozenset({"push", "delete", "pull_request", "pull_request_sync"})
RIGHTS: Mapping[Scope, str] = {"repository": "write:repository, as an administrator of the repository"}
SCOPES = frozenset(RIGHTS)
REQUESTS_PER_HOUR = gogs_like.REQUESTS_PER_HOUR
HEADERS = gogs_like.HEADERS

base_url = gogs_like.base_url
authorization = gogs_like.authorization
test = gogs_like.test

# In a request, `pull_request` stands for all events of pull requests, such as labels and comments.
# https://github.com/go-gitea/gitea/blob/main/routers/api/v1/utils/hook.go
_REQUESTED = {"pull_request": "pull_request_only"}
# A server's own limit may be lower (MAX_RESPONSE_ITEMS, 50 by default), so a short page may not be the last.
_PAGE_SIZE = 50


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository."""
    found: dict[int, Hook] = {}
    path, page, is_complete = gogs_like.hooks_path(place), 1, False
    while not is_complete:
        query = {"page": str(page), "limit": str(_PAGE_SIZE)}
        answer = yield ApiRequest(method="GET", path=path, query=query, right=RIGHTS[place.scope])
        before = len(found)
        found |= {hook.id: hook for hook in answer.read(list[Hook])}
        total = answer.headers.get("x-total-count", "")
        # Hooks have no Link header, and old servers have neither header nor pages.
        is_complete = len(found) == before or (total.isdecimal() and len(found) >= int(total))
        page += 1
    return [hook.registered for hook in found.values()]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook, of the kind that both Gitea and Forgejo have."""
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
