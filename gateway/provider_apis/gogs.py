"""The REST API of Gogs, which has no pages of webhooks, no results of deliveries and no test delivery.

https://gogs.io/api-reference/webhooks/list-hooks
"""

from collections.abc import Sequence

from gateway.provider_apis import gogs_like
from gateway.provider_apis.gogs_like import Hook
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import RegisteredWebhook, Webhook

EVENTS = frozenset({"push", "create", "delete", "pull_request"})
RIGHTS = "Admin Access to the repository"
REQUESTS_PER_HOUR = gogs_like.REQUESTS_PER_HOUR
HEADERS = gogs_like.HEADERS

base_url = gogs_like.base_url
authorization = gogs_like.authorization
test = gogs_like.test


def webhooks(clone_url: str) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository."""
    answer = yield ApiRequest(method="GET", path=gogs_like.hooks_path(clone_url), right=RIGHTS)
    return [hook.registered for hook in answer.read(list[Hook])]


def create(clone_url: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook."""
    return (yield from gogs_like.create(clone_url, webhook, kind="gogs", events=webhook.events, right=RIGHTS))


def change(clone_url: str, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Replace a webhook, because the API ignores the secret in a change."""
    new = create(clone_url, webhook)
    return (yield from gogs_like.replace(clone_url, webhook_id, new, right=RIGHTS))


def delete(clone_url: str, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    yield from gogs_like.delete(clone_url, webhook_id, right=RIGHTS)
