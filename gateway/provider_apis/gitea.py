"""The REST API of Gitea and of Forgejo.

https://docs.gitea.com/api/ and https://codeberg.org/api/swagger
"""

from collections.abc import Sequence

from gateway.provider_apis import gogs_like
from gateway.provider_apis.gogs_like import Hook
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import RegisteredWebhook, Webhook

EVENTS = frozenset({"push", "delete", "pull_request", "pull_request_sync"})
RIGHTS = "write:repository, as an administrator of the repository"
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


def webhooks(clone_url: str) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository."""
    found: dict[int, Hook] = {}
    path, page, is_complete = gogs_like.hooks_path(clone_url), 1, False
    while not is_complete:
        query = {"page": str(page), "limit": str(_PAGE_SIZE)}
        answer = yield ApiRequest(method="GET", path=path, query=query, right=RIGHTS)
        before = len(found)
        found |= {hook.id: hook for hook in answer.read(list[Hook])}
        total = answer.headers.get("x-total-count", "")
        # Hooks have no Link header, and old servers have neither header nor pages.
        is_complete = len(found) == before or (total.isdecimal() and len(found) >= int(total))
        page += 1
    return [hook.registered for hook in found.values()]


def create(clone_url: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook, of the kind that both Gitea and Forgejo have."""
    events = {_REQUESTED.get(event, event) for event in webhook.events}
    return (yield from gogs_like.create(clone_url, webhook, kind="gitea", events=events, right=RIGHTS))


def change(clone_url: str, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Replace a webhook, because the API ignores the secret in a change."""
    new = create(clone_url, webhook)
    return (yield from gogs_like.replace(clone_url, webhook_id, new, right=RIGHTS))


def delete(clone_url: str, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    yield from gogs_like.delete(clone_url, webhook_id, right=RIGHTS)
