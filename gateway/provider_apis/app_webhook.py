"""The own webhook of a GitHub App, which receives the events of all its installations.

An App has exactly one, which cannot be deleted. Its API sets the URL and the secret; events and permissions
can be changed only by a person.
https://docs.github.com/en/rest/apps/webhooks
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from gateway.provider_apis import github, github_app
from gateway.provider_apis.delivery_log import LogPage
from gateway.provider_apis.github_app import App, HookConfig
from gateway.provider_apis.operation import ApiRefused, Operation
from gateway.provider_apis.webhooks import Place, RegisteredWebhook, Webhook, address

PERMISSIONS: Mapping[str, str] = {
    "contents": "read",
    "metadata": "read",
    "pull_requests": "read",
    "merge_queues": "read",
    "checks": "write",
}
"""The permissions of an App that fetches, shows check runs, and gets the events that Pushgate needs."""

CHECK_EVENTS = frozenset({"check_run", "check_suite"})
"""The events of the button Re-run. An App that may write checks gets them without a subscription, too."""


@dataclass(frozen=True, slots=True)
class AppWebhook:
    """The webhook of an App for a source, as the only webhook of a place.

    `urls` are the webhook URL of the source, and those that it replaces. Any other belongs to somebody else.
    """

    urls: Sequence[str]

    def webhooks(self, place: Place) -> Operation[Sequence[RegisteredWebhook]]:  # noqa: ARG002 - the App's
        """Return the webhook, or nothing if it has no URL. Raise `ApiRefused` if it is somebody else's."""
        app = yield from github_app.app()
        config = yield from github_app.hook_config()
        if not config.url:
            return ()
        if address(config.url) not in set(map(address, self.urls)):
            raise ApiRefused(
                f"the GitHub App {app.slug} sends its webhook to {config.url}, and an App has only one: give"
                " the source an App of its own or, if nothing else needs that webhook, set its URL to"
                f" {self.urls[0]} at {app.settings_page}, and register again",
                status=HTTPStatus.CONFLICT,
            )
        return [_registered(app, config)]

    def create(self, place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:  # noqa: ARG002
        """Set URL and secret."""
        return (yield from _set(webhook))

    def change(
        self,
        place: Place,  # noqa: ARG002 - the App's
        webhook_id: str,  # noqa: ARG002
        webhook: Webhook,
    ) -> Operation[RegisteredWebhook]:
        """Set URL and secret."""
        return (yield from _set(webhook))

    def delete(self, place: Place, webhook_id: str) -> Operation[None]:  # noqa: ARG002
        """Do nothing: an App keeps its webhook."""
        yield from ()

    def test(self, place: Place, webhook_id: str) -> Operation[bool]:  # noqa: ARG002
        """Return False: GitHub sends a ping only when it creates an App."""
        yield from ()
        return False


class AppDeliveryLog:
    """The log of the own webhook of an App."""

    EVENTS = github.EVENTS
    LOG_SCOPES = github.LOG_SCOPES
    LOG_KEPT = github.LOG_KEPT
    REDELIVERIES_A_MINUTE = github.REDELIVERIES_A_MINUTE

    def delivery_log(self, place: Place, webhook_id: str, start: str | None) -> Operation[LogPage]:  # noqa: ARG002
        """Return a page of the log, also with the deliveries that succeeded."""
        return (yield from github_app.delivery_log(start))

    def redeliver(self, place: Place, webhook_id: str, attempt_id: str) -> Operation[None]:  # noqa: ARG002
        """Request another attempt."""
        yield from github_app.redeliver(attempt_id)


def _set(webhook: Webhook) -> Operation[RegisteredWebhook]:
    config = yield from github_app.change_hook_config(url=webhook.url, secret=webhook.secret)
    app = yield from github_app.app()
    return _registered(app, config)


def _registered(app: App, config: HookConfig) -> RegisteredWebhook:
    permissions = github_app.lacking(PERMISSIONS, app.permissions)
    return RegisteredWebhook(
        id=str(app.id),
        url=config.url or "",
        events=frozenset(app.events),
        has_secret=bool(config.secret),
        lacks_permissions=bool(permissions),
        advice=_advice(app, permissions, sorted(github.EVENTS - set(app.events))),
    )


def _advice(app: App, permissions: Collection[str], events: Collection[str]) -> str | None:
    """Return what a person has to add in the settings of an App; None if nothing is missing."""
    missing = [
        f"the {noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"
        for noun, names in (("permission", permissions), ("event", events))
        if names
    ]
    if not missing:
        return None
    then = "; then an owner of each organization where it is installed accepts that" if permissions else ""
    return (
        f"Add {' and '.join(missing)} to the GitHub App {app.slug} at {app.settings_page}/permissions{then}"
    )
