"""The REST API of Gogs, which has no pages of webhooks, no results of deliveries and no test delivery.

https://gogs.io/api-reference/webhooks/list-hooks
"""

from collections.abc import Mapping, Sequence

from gateway.provider_apis import gogs_like
from gateway.provider_apis.gogs_like import Hook, Repository
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook

EVENTS = frozenset({"push", "create", "delete", "pull_request"})
RIGHTS: Mapping[Scope, str] = {"repository": "Admin Access to the repository"}
SCOPES = frozenset(RIGHTS)
READ_RIGHT = "Read Access to the repository"
REQUESTS_PER_HOUR = gogs_like.REQUESTS_PER_HOUR
WRITE_LIMITS = gogs_like.WRITE_LIMITS
HEADERS = gogs_like.HEADERS

base_url = gogs_like.base_url
authorization = gogs_like.authorization
test = gogs_like.test


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository."""
    answer = yield ApiRequest(method="GET", path=gogs_like.hooks_path(place), right=RIGHTS[place.scope])
    return [hook.registered for hook in answer.read(list[Hook])]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook."""
    return (
        yield from gogs_like.create(
            place, webhook, kind="gogs", events=webhook.events, right=RIGHTS[place.scope]
        )
    )


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Replace a webhook, because the API ignores the secret in a change."""
    new = create(place, webhook)
    return (yield from gogs_like.replace(place, webhook_id, new, right=RIGHTS[place.scope]))


def delete(place: Place, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    yield from gogs_like.delete(place, webhook_id, right=RIGHTS[place.scope])


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of an organisation, whose webhooks can only be added by hand."""
    path = f"{gogs_like.home_path(place)}/repos"
    answer = yield ApiRequest(method="GET", path=path, right=READ_RIGHT, subject=place.noun)
    return [repository.listed for repository in answer.read(list[Repository])]


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    return (yield from gogs_like.has_file(clone_url, path, branch, right=READ_RIGHT))
