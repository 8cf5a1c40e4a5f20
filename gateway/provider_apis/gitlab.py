"""The REST API of GitLab: gitlab.com and self-managed.

A server below a path, such as `https://host/gitlab`, is not recognized by its clone URLs.
https://docs.gitlab.com/api/project_webhooks/ and …/group_webhooks/ and …/system_hooks/
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.delivery_log import DeliveryAttempt, LogPage
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation, T
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook
from providers import gitlab
from providers.clone_urls import host_and_path, server_url

EVENTS = frozenset({"push_events", "tag_push_events", "merge_requests_events"})
RIGHTS: Mapping[Scope, str] = {
    "repository": "scope api with the role Maintainer",
    "owner": "scope api with the role Owner of the group, whose plan must be Premium or Ultimate",
    "server": "scope api of an administrator, with the scope admin_mode if the server has Admin Mode",
}
SCOPES = frozenset(RIGHTS)
# What a self-managed server permits if its limit is switched on; gitlab.com permits 2,000 a minute.
# https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/
REQUESTS_PER_HOUR = 7200
WRITE_LIMITS: Sequence[WriteLimit] = ()
HEADERS: Mapping[str, str] = {}
# System hooks have none.
LOG_SCOPES: frozenset[Scope] = frozenset({"repository", "owner"})
LOG_KEPT = timedelta(days=7)
# https://docs.gitlab.com/administration/settings/rate-limit-on-webhook-operations/
# All webhooks of a project share it, and only ours is sent again.
REDELIVERIES_A_MINUTE = 5

# GitLab sends a test of any event, also of one that the webhook is not registered for. This one always has a
# sample, even in an empty project, and has no effect: a test push would be executed like a real push.
_TEST = "test/resource_access_token_events"
# A system hook has one event for all refs of a push, which the limit of 3 refs does not apply to.
# https://docs.gitlab.com/administration/system_hooks/
_PUSHES = frozenset({"push_events", "tag_push_events"})
_ALL_REFS = "repository_update_events"
READ_RIGHT = "scope read_api"
_EXECUTABLE = "executable"
# The names that the log has for the events.
_TRIGGERS: Mapping[str, str] = {
    "push_hooks": "push_events",
    "tag_push_hooks": "tag_push_events",
    "merge_request_hooks": "merge_requests_events",
}
# A page of the log has the bodies, so that GitLab permits no larger one.
_LOG_PAGE = "20"


class _Hook(BaseModel):
    """A webhook. Beside these fields it has a field such as `push_events` for each event."""

    model_config = ConfigDict(extra="allow")

    id: int
    url: str
    push_events_branch_filter: str | None = None
    alert_status: str = _EXECUTABLE
    disabled_until: str | None = None
    # Since 19.0
    token_present: bool | None = None
    signing_token_present: bool | None = None


class _Delivery(BaseModel):
    id: int
    trigger: str = ""
    request_headers: dict[str, Any] | None = None
    response_status: str | None = None
    # Not every version shows it.
    created_at: datetime | None = None


class _Project(BaseModel):
    id: int
    path_with_namespace: str
    http_url_to_repo: str
    default_branch: str | None = None
    archived: bool = False

    @property
    def listed(self) -> ListedRepository:
        return ListedRepository(
            id=str(self.id),
            full_name=self.path_with_namespace,
            url=self.http_url_to_repo,
            default_branch=self.default_branch,
            is_archived=self.archived,
        )


def base_url(place: Place) -> str:
    """Return the base URL of the API of a place's server."""
    return f"{server_url(place.url)}/api/v4"


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:  # noqa: ARG001 - as of others
    """Return the headers with a personal, project or group access token."""
    return {"PRIVATE-TOKEN": token}


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a project or a group, or all system hooks of a server."""
    found = yield from _pages(_hooks(place), {}, list[_Hook], place, right=RIGHTS[place.scope])
    return [_registered(hook) for hook in found]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a webhook."""
    answer = yield ApiRequest(
        method="POST", path=_hooks(place), body=_body(webhook, place), right=RIGHTS[place.scope]
    )
    hook = answer.read(_Hook)
    if _lacks_signing_token(hook, webhook):
        yield from delete(place, str(hook.id))
        raise _no_signing_tokens()
    return _registered(hook)


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Set URL, secret and events of a webhook, for all branches, and activate it.

    Only a successful delivery activates a webhook that GitLab has disabled, so a test is sent.
    """
    path = _hook(place, webhook_id)
    answer = yield ApiRequest(method="PUT", path=path, body=_body(webhook, place), right=RIGHTS[place.scope])
    hook = answer.read(_Hook)
    if _lacks_signing_token(hook, webhook):
        raise _no_signing_tokens()
    changed = _registered(hook)
    if not changed.is_active and (yield from test(place, webhook_id)):
        return replace(changed, is_active=True, problem=None)
    return changed


def delete(place: Place, webhook_id: str) -> Operation[None]:
    """Delete a webhook, or do nothing if it is gone."""
    path = _hook(place, webhook_id)
    yield ApiRequest(method="DELETE", path=path, right=RIGHTS[place.scope], may_be_missing=True)


def test(place: Place, webhook_id: str) -> Operation[bool]:
    """Request a test delivery; return False for a server before 16.11, or if the webhook is gone.

    GitLab answers when the delivery has ended, and refuses with the receiver's answer if it has failed. It
    permits 5 tests a minute for each project. Groups have tests since 17.1. That of a system hook is about
    the creation of a sample project, and its result is not shown.
    """
    path = _hook(place, webhook_id) + ("" if place.scope == "server" else f"/{_TEST}")
    answer = yield ApiRequest(method="POST", path=path, right=RIGHTS[place.scope], may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def delivery_log(place: Place, webhook_id: str, start: str | None) -> Operation[LogPage]:
    """Return a page of the log of a webhook, without the deliveries that succeeded.

    Servers have it since 17.3. It lacks deliveries that were answered with a redirect, and GitLab makes none
    while the webhook is disabled.
    """
    query = {"status": "client_failure,server_failure", "per_page": _LOG_PAGE, "page": start or "1"}
    path = f"{_hook(place, webhook_id)}/events"
    answer = yield ApiRequest(method="GET", path=path, query=query, right=RIGHTS[place.scope])
    attempts = [_attempt(found) for found in answer.read(list[_Delivery])]
    return LogPage(attempts=attempts, next=answer.headers.get("x-next-page") or None)


def redeliver(place: Place, webhook_id: str, attempt_id: str) -> Operation[None]:
    """Request another attempt. GitLab answers when it has ended, with 422 if the receiver was unreachable."""
    path = f"{_hook(place, webhook_id)}/events/{quote(attempt_id, safe='')}/resend"
    yield ApiRequest(method="POST", path=path, right=RIGHTS[place.scope])


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all projects of a group and its subgroups, or of a server."""
    query = {"order_by": "id", "sort": "asc"}
    if place.scope == "owner":
        query |= {"include_subgroups": "true", "with_shared": "false"}
        found = yield from _pages(
            f"{home_path(place)}/projects", query, list[_Project], place, right=READ_RIGHT
        )
        return [project.listed for project in found]
    listed: list[ListedRepository] = []
    last = "0"
    while last:
        # Pages by number end at 50,000 projects.
        query |= {"per_page": "100", "id_after": last}
        answer = yield ApiRequest(method="GET", path="/projects", query=query, right=READ_RIGHT)
        projects = answer.read(list[_Project])
        listed += [project.listed for project in projects]
        last = listed[-1].id if projects else ""
    return listed


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    path = f"{home_path(Place(clone_url))}/repository/files/{quote(path, safe='')}"
    query = {"ref": branch or "HEAD"}
    answer = yield ApiRequest(method="HEAD", path=path, query=query, right=READ_RIGHT, may_be_missing=True)
    return answer.status != HTTPStatus.NOT_FOUND


def _pages(
    path: str, query: Mapping[str, str], model: type[list[T]], place: Place, *, right: str
) -> Operation[list[T]]:
    """Return what all pages of a list have."""
    found: list[T] = []
    page = "1"
    while page:
        numbered = {**query, "per_page": "100", "page": page}
        answer = yield ApiRequest(method="GET", path=path, query=numbered, right=right, subject=place.noun)
        found += answer.read(model)
        # Not the header Link: behind a proxy, its URL may be at another address.
        page = answer.headers.get("x-next-page", "")
    return found


def home_path(place: Place) -> str:
    """Return the path of a project or a group, or the beginning of what administrators use."""
    match place.scope:
        case "repository":
            _, path = host_and_path(place.url)
            return f"/projects/{quote(path, safe='')}"
        case "owner":
            return f"/groups/{quote(place.owner('gitlab').name, safe='')}"
        case "server":
            return ""


def _hooks(place: Place) -> str:
    return f"{home_path(place)}/hooks"


def _hook(place: Place, webhook_id: str) -> str:
    return f"{_hooks(place)}/{quote(webhook_id, safe='')}"


def _body(webhook: Webhook, place: Place) -> dict[str, Any]:
    events = webhook.events
    if place.scope == "server":
        events = events - _PUSHES | ({_ALL_REFS} if events & _PUSHES else frozenset())
    return {
        "url": webhook.url,
        "signing_token" if webhook.has_signing_secret else "token": webhook.secret,
        "enable_ssl_verification": True,
        # A server without strategies sends the pushes of all branches if the filter is empty.
        "branch_filter_strategy": "all_branches",
        "push_events_branch_filter": "",
        "custom_webhook_template": "",
        **{event: event in events for event in EVENTS | events},
    }


def _lacks_signing_token(hook: _Hook, webhook: Webhook) -> bool:
    """Return whether the server has ignored the signing token, as all do that have none."""
    return webhook.has_signing_secret and not hook.signing_token_present


def _no_signing_tokens() -> ApiRefused:
    return ApiRefused(
        "this GitLab has no signing tokens, which came with 19.0: connect with --secret and a secret that"
        " does not begin with whsec_",
        status=HTTPStatus.OK,
    )


def _attempt(found: _Delivery) -> DeliveryAttempt:
    headers = {name.lower(): str(value) for name, value in (found.request_headers or {}).items()}
    return DeliveryAttempt(
        id=str(found.id),
        guid=next((headers[name] for name in gitlab.ID_HEADERS if headers.get(name)), str(found.id)),
        event=_TRIGGERS.get(found.trigger, found.trigger),
        at=found.created_at,
        status=found.response_status or "no answer",
        has_succeeded=False,
    )


def _registered(hook: _Hook) -> RegisteredWebhook:
    fields = (hook.model_extra or {}).items()
    events = frozenset(name for name, value in fields if name.endswith("_events") and value)
    known = [part for part in (hook.token_present, hook.signing_token_present) if part is not None]
    return RegisteredWebhook(
        id=str(hook.id),
        url=hook.url,
        events=events | (_PUSHES if _ALL_REFS in events else frozenset()),
        is_active=hook.alert_status == _EXECUTABLE,
        has_secret=any(known) if known else None,
        has_signing_secret=hook.signing_token_present,
        is_filtered=bool(hook.push_events_branch_filter),
        problem=_problem(hook),
    )


def _problem(hook: _Hook) -> str | None:
    """Return the state of a webhook that is disabled. The failed deliveries would cost further requests."""
    if hook.alert_status == _EXECUTABLE:
        return None
    until = f" until {hook.disabled_until}" if hook.alert_status == "temporarily_disabled" else ""
    return hook.alert_status.replace("_", " ") + until
