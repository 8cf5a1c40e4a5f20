"""The REST API of Azure DevOps: Services and Server.

A webhook of Pushgate is several subscriptions here, one for each event, all with one URL. Its id has the ids
of all of them.
https://learn.microsoft.com/en-us/rest/api/azure/devops/hooks/subscriptions
"""

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.webhooks import ListedRepository, Place, RegisteredWebhook, Scope, Webhook
from providers.clone_urls import azure_place, without_user

_PUSH = "git.push"
EVENTS = frozenset(
    {
        _PUSH,
        "git.pullrequest.created",
        "git.pullrequest.updated",
        "git.pullrequest.merged",
        "git.repo.renamed",
    }
)
# https://learn.microsoft.com/en-us/azure/devops/service-hooks/view-permission
_RIGHT = "scope Code (read), with View, Edit and Delete subscriptions, which a Project Administrator has"
READ_RIGHT = "scope Code (read)"
RIGHTS: Mapping[Scope, str] = {"repository": _RIGHT, "owner": _RIGHT}
SCOPES = frozenset(RIGHTS)
# 200 units in 5 minutes; a request costs about one at most.
# https://learn.microsoft.com/en-us/azure/devops/integrate/concepts/rate-limits
REQUESTS_PER_HOUR = 2400
WRITE_LIMITS: Sequence[WriteLimit] = ()
# Without the header, the Services answer a wrong token with a redirect to a page for people.
HEADERS: Mapping[str, str] = {"X-TFS-FedAuthRedirect": "Suppress"}

# The version of the oldest supported server, 2019; newer servers and the Services accept it as well.
# https://learn.microsoft.com/en-us/azure/devops/integrate/concepts/rest-api-versioning
VERSION: Mapping[str, str] = {"api-version": "5.0"}
_CONSUMER = {"publisherId": "tfs", "consumerId": "webHooks", "consumerActionId": "httpRequest"}
_ENABLED = "enabled"
_HEADS = "refs/heads/"
# https://learn.microsoft.com/en-us/azure/devops/service-hooks/events
_FILTERS = frozenset(
    {
        "branch",
        "pushedBy",
        "pullrequestCreatedBy",
        "pullrequestReviewersContains",
        "notificationType",
        "mergeResult",
    }
)
# The namespace of permissions on service hooks, and the bit “View subscriptions”.
# https://learn.microsoft.com/en-us/azure/devops/organizations/security/namespace-reference
_MAY_VIEW = "/_apis/permissions/cb594ebe-87dd-4fc9-ac2c-6a10a4c92046/1"


class _Project(BaseModel):
    id: str
    name: str


class _Repository(BaseModel):
    id: str
    project: _Project
    name: str
    url: str = Field("", alias="remoteUrl")
    default_branch: str | None = Field(None, alias="defaultBranch")
    is_disabled: bool = Field(default=False, alias="isDisabled")

    @property
    def listed(self) -> ListedRepository:
        return ListedRepository(
            id=self.id,
            full_name=f"{self.project.name}/{self.name}",
            url=without_user(self.url),
            default_branch=self.default_branch.removeprefix(_HEADS) if self.default_branch else None,
            is_archived=self.is_disabled,
        )


class _Repositories(BaseModel):
    value: list[_Repository]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a webhook is about: a repository, or a whole project, by the ids that subscriptions name."""

    project: str
    repository: str | None = None


class _Subscription(BaseModel):
    id: str
    event: str = Field(alias="eventType")
    status: str = _ENABLED
    publisher: dict[str, str | None] = Field(default_factory=dict, alias="publisherInputs")
    consumer: dict[str, str | None] = Field(default_factory=dict, alias="consumerInputs")

    @property
    def url(self) -> str:
        return self.consumer.get("url") or ""

    @property
    def is_filtered(self) -> bool:
        return any(self.publisher.get(name) for name in _FILTERS)

    def is_about(self, subject: _Subject) -> bool:
        """Return whether events of a repository are sent, or of all repositories of a project.

        Without a repository, the events of all are sent.
        """
        project = (self.publisher.get("projectId") or subject.project).lower()
        repository = (self.publisher.get("repository") or subject.repository or "").lower()
        return (project, repository) == (subject.project.lower(), (subject.repository or "").lower())


class _Subscriptions(BaseModel):
    value: list[_Subscription]


class _Permissions(BaseModel):
    value: list[bool]


def base_url(place: Place) -> str:
    """Return the URL of an organisation, or of a server's collection.

    Raise `ApiRefused` for a URL that names no repository, or no project, of Azure DevOps.
    """
    return place.owner("azure-devops").server if place.scope == "owner" else _names(place)[0]


def authorization(token: str, *, user: str | None = None) -> Mapping[str, str]:  # noqa: ARG001 - as of others
    """Return the headers with a personal access token, which needs no user."""
    return {"Authorization": f"Basic {b64encode(f':{token}'.encode()).decode()}"}


def webhooks(place: Place) -> Operation[Sequence[RegisteredWebhook]]:
    """Return all webhooks of a repository or a project. Subscriptions with one URL are one webhook.

    A second subscription of the same event and URL is another webhook, because it doubles the deliveries.
    Raise `ApiRefused` if the identity may not see the subscriptions.
    """
    subject = yield from _subject(place)
    found = yield from _subscriptions(subject)
    if not found:
        yield from _check_view(subject)
    webhooks: dict[tuple[str, int], list[_Subscription]] = {}
    counts: dict[tuple[str, str], int] = {}
    # The best first, so that the doubled ones are the others.
    for one in sorted(found, key=lambda one: (one.status != _ENABLED, one.is_filtered)):
        number = counts.get((one.url, one.event), 0)
        counts[one.url, one.event] = number + 1
        webhooks.setdefault((one.url, number), []).append(one)
    return [_registered(subscriptions) for subscriptions in webhooks.values()]


def create(place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create a subscription for each event, first the one for pushes.

    If one is refused, those before it remain, and are found as a webhook that lacks events.
    """
    subject = yield from _subject(place)
    return (yield from _write(subject, {}, webhook))


def change(place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Set URL and secret of all subscriptions, without filters, enable them, and create the missing ones.

    Those of other events are deleted.
    """
    subject = yield from _subject(place)
    ids = webhook_id.split(",")
    found = yield from _subscriptions(subject)
    ours = {one.event: one.id for one in found if one.id in ids}
    changed = yield from _write(subject, ours, webhook)
    yield from _delete(set(ids) - set(changed.id.split(",")))
    return changed


def delete(place: Place, webhook_id: str) -> Operation[None]:  # noqa: ARG001 - as of others
    """Delete the subscriptions of a webhook, or do nothing for those that are gone."""
    yield from _delete(webhook_id.split(","))


def test(place: Place, webhook_id: str) -> Operation[bool]:  # noqa: ARG001 - as of others
    """Request a test delivery; return False if the webhook is gone, or has only pushes.

    It is an event of a sample project, but never a push: without details, a sample push could not be
    distinguished from a real push. Azure DevOps sends it later, with the secret that it has.
    """
    path = _subscription_path(webhook_id.rsplit(",", maxsplit=1)[-1])
    answer = yield ApiRequest(method="GET", path=path, query=VERSION, right=_RIGHT, may_be_missing=True)
    if answer.status == HTTPStatus.NOT_FOUND:
        return False
    subscription = answer.read(_Subscription)
    if subscription.event == _PUSH:
        return False
    details = {
        **_CONSUMER,
        "eventType": subscription.event,
        "publisherInputs": subscription.publisher,
        # The password is masked; Azure DevOps replaces it with the one of the subscription.
        "consumerInputs": subscription.consumer,
    }
    yield ApiRequest(
        method="POST",
        path="/_apis/hooks/testnotifications",
        query={"useRealData": "false", **VERSION},
        body={"subscriptionId": subscription.id, "details": details},
        right=_RIGHT,
    )
    return True


def repositories(place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of a project. A disabled one counts as archived."""
    found = yield from _repositories(place, right=READ_RIGHT)
    return [repository.listed for repository in found]


def has_file(clone_url: str, path: str, branch: str | None) -> Operation[bool]:
    """Return whether a branch has a file."""
    version = {"version": branch, "versionType": "branch"} if branch else {}
    query = {"path": f"/{path}", **{f"versionDescriptor.{name}": value for name, value in version.items()}}
    answer = yield ApiRequest(
        method="GET",
        path=f"{repository_path(Place(clone_url))}/items",
        query={**query, **VERSION},
        right=READ_RIGHT,
        may_be_missing=True,
    )
    return answer.status != HTTPStatus.NOT_FOUND


def _names(place: Place) -> tuple[str, str, str]:
    try:
        return azure_place(place.url)
    except ValueError:
        raise ApiRefused(
            "the clone URL names no repository of Azure DevOps: it has the form"
            " https://dev.azure.com/organisation/project/_git/repository",
            status=HTTPStatus.OK,
        ) from None


def _subject(place: Place) -> Operation[_Subject]:
    """Return the ids of a repository and its project, or of a project."""
    if place.scope == "owner":
        # A request for the project itself would need another scope.
        found = yield from _repositories(place, right=_RIGHT)
        if not found:
            raise ApiRefused("the project has no repository yet", status=HTTPStatus.OK)
        return _Subject(found[0].project.id)
    answer = yield ApiRequest(method="GET", path=repository_path(place), query=VERSION, right=_RIGHT)
    repository = answer.read(_Repository)
    return _Subject(repository.project.id, repository.id)


def _repositories(place: Place, *, right: str) -> Operation[list[_Repository]]:
    """Return all repositories of a project. The API has no pages of them."""
    path = f"/{_quoted(place.owner('azure-devops').name)}/_apis/git/repositories"
    answer = yield ApiRequest(method="GET", path=path, query=VERSION, right=right, subject=place.noun)
    return answer.read(_Repositories).value


def repository_path(place: Place) -> str:
    """Return the path of a repository, in its organisation or collection."""
    _, project, name = _names(place)
    return f"/{_quoted(project)}/_apis/git/repositories/{_quoted(name)}"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _subscriptions(subject: _Subject) -> Operation[list[_Subscription]]:
    """Return the subscriptions of a repository. The API has no pages, and no filter for repositories."""
    query = {**_CONSUMER, **VERSION}
    answer = yield ApiRequest(method="GET", path="/_apis/hooks/subscriptions", query=query, right=_RIGHT)
    return [one for one in answer.read(_Subscriptions).value if one.is_about(subject)]


def _check_view(subject: _Subject) -> Operation[None]:
    """Raise `ApiRefused` if the identity may not see subscriptions: Azure DevOps then shows it none."""
    query = {"tokens": f"PublisherSecurity/{subject.project}", **VERSION}
    answer = yield ApiRequest(method="GET", path=_MAY_VIEW, query=query, right=_RIGHT, may_be_missing=True)
    if answer.status != HTTPStatus.NOT_FOUND and not all(answer.read(_Permissions).value):
        raise ApiRefused(
            f"Azure DevOps does not show the project's service hooks; the right “{_RIGHT}” is needed",
            status=HTTPStatus.FORBIDDEN,
        )


def _write(subject: _Subject, ids: Mapping[str, str], webhook: Webhook) -> Operation[RegisteredWebhook]:
    """Create or replace the subscription of each event; `ids` has those that exist."""
    written: list[_Subscription] = []
    for event in sorted(webhook.events, key=_order):
        body = _body(subject, event, webhook)
        request = ApiRequest(
            method="POST",
            path="/_apis/hooks/subscriptions",
            query=VERSION,
            body=body,
            right=_RIGHT,
        )
        if id_ := ids.get(event):
            path, body = _subscription_path(id_), {"id": id_, **body}
            request = ApiRequest(method="PUT", path=path, query=VERSION, body=body, right=_RIGHT)
        answer = yield request
        written.append(answer.read(_Subscription))
    return _registered(written)


def _delete(ids: Collection[str]) -> Operation[None]:
    for id_ in ids:
        path = _subscription_path(id_)
        yield ApiRequest(method="DELETE", path=path, query=VERSION, right=_RIGHT, may_be_missing=True)


def _subscription_path(id_: str) -> str:
    return f"/_apis/hooks/subscriptions/{quote(id_, safe='')}"


def _order(event: str) -> tuple[bool, str]:
    return event != _PUSH, event


def _body(subject: _Subject, event: str, webhook: Webhook) -> dict[str, Any]:
    header = webhook.auth.get("header")
    credential = (
        {"httpHeaders": f"{header}:{webhook.secret}"}
        if header
        else {
            "basicAuthUsername": webhook.auth.get("user", "pushgate"),
            "basicAuthPassword": webhook.secret,
        }
    )
    return {
        **_CONSUMER,
        "eventType": event,
        "resourceVersion": "1.0-preview.1" if event.startswith("git.repo.") else "1.0",
        "status": _ENABLED,
        "publisherInputs": {
            "projectId": subject.project,
            **({"repository": subject.repository} if subject.repository else {}),
        },
        "consumerInputs": {
            "url": webhook.url,
            "acceptUntrustedCerts": "false",
            "resourceDetailsToSend": "all",
            "messagesToSend": "none",
            "detailedMessagesToSend": "none",
            **credential,
        },
    }


def _registered(subscriptions: Sequence[_Subscription]) -> RegisteredWebhook:
    """Return the webhook that subscriptions with one URL are. It is active if all of them are."""
    ordered = sorted(subscriptions, key=lambda one: _order(one.event))
    problems = [f"{one.event}: {one.status}" for one in ordered if one.status != _ENABLED]
    return RegisteredWebhook(
        id=",".join(one.id for one in ordered),
        url=ordered[0].url,
        events=frozenset(one.event for one in ordered),
        is_active=not problems,
        # The password is shown as asterisks.
        has_secret=all(
            one.consumer.get("basicAuthPassword") or one.consumer.get("httpHeaders") for one in ordered
        ),
        is_filtered=any(one.is_filtered for one in ordered),
        problem=", ".join(problems) or None,
    )
