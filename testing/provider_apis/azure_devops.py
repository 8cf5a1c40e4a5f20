"""A fake of an Azure DevOps Server's REST API for service hooks and statuses, with one collection.

https://learn.microsoft.com/en-us/rest/api/azure/devops/hooks/
"""

import json
import re
import uuid
from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.provider_apis.azure_devops import EVENTS
from providers import azure_devops
from testing.provider_apis.azure_statuses import AzureStatuses, refused
from testing.provider_apis.fake import FakeApi, FakeRepository, json_of

COLLECTION = "/tfs/Default"

_PATHS = {
    "repositories": re.compile(r"/(?P<project>[^/]+)/_apis/git/repositories"),
    "repository": re.compile(
        r"/(?P<project>[^/]+)/_apis/git/repositories/(?P<repository>[^/]+)(?P<items>/items)?"
    ),
    "commit": re.compile(
        r"/(?P<project>[^/]+)/_apis/git/repositories/(?P<repository>[^/]+)/commits/(?P<id>[0-9a-f]{40})/statuses"
    ),
    "pull request": re.compile(
        r"/(?P<project>[^/]+)/_apis/git/repositories/(?P<repository>[^/]+)/pullrequests/(?P<id>\d+)"
        r"/(?P<what>statuses|iterations)"
    ),
    "subscriptions": re.compile(r"/_apis/hooks/subscriptions(?:/(?P<id>[^/]+))?"),
    "test": re.compile(r"/_apis/hooks/testnotifications"),
    "permissions": re.compile(r"/_apis/permissions/(?P<namespace>[^/]+)/(?P<bits>\d+)"),
}
_VERSIONS = frozenset({"5.0", "6.0", "7.0", "7.1"})
# The statuses of pull requests left it with 7.1.
_PREVIEWS = frozenset({"5.0", "6.0", "7.0"})
_WRITTEN = (
    "publisherId",
    "eventType",
    "resourceVersion",
    "consumerId",
    "consumerActionId",
    "publisherInputs",
)
_MASK = "********"
_RETRIED = frozenset({408, 502, 503, 504})
_SAMPLE = {
    "id": "278d5cd2-584d-4b63-824a-2ba458937249",
    "name": "Fabrikam-Fiber-Git",
    "project": {"id": "6ce954b1-ce1f-45d1-b94d-e6bf2464ba2c", "name": "Fabrikam-Fiber-Git"},
}


@dataclass(slots=True)
class FakeAzureDevOps(FakeApi):
    """Azure DevOps with some repositories. `tokens` has the repositories that each token may see.

    A token in `readers` may not view or edit the subscriptions, or set statuses; one in `blind` lacks the
    scope of statuses. The tokens of Entra in `strangers` are of
    principals that are not in the organization.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    strangers: Collection[str] = ()
    subscriptions: list[dict[str, Any]] = field(default_factory=list)
    blind: set[str] = field(default_factory=set)
    git: AzureStatuses = field(default_factory=AzureStatuses)

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """Return what people see: the newest state by commit and context."""
        return self.git.statuses

    @property
    def status_writes(self) -> int:
        """Return how many requests have set a status of a commit or of a pull request."""
        return self.git.writes

    async def handle(self, request: Request) -> Response:
        """Answer as Azure DevOps does."""
        token = next((token for token in self.tokens if _given(request) in _authorizations(token)), None)
        if _given(request).removeprefix("Bearer ") in self.strangers:
            user = "3c4ed8d0-4f92-4f32-bd25-6b7a5e1b7c2a"
            return refused(401, f"TF400813: The user '{user}' is not authorized to access this resource.")
        if token is None:
            return Response("<html>401 - Uh-oh, you do not have access.</html>", 401, media_type="text/html")
        path = request.scope["raw_path"].decode().lower().removeprefix(COLLECTION.lower())
        for name, pattern in _PATHS.items():
            if found := pattern.fullmatch(path):
                is_preview = name == "pull request" and found["what"] == "statuses"
                if answer := _version_refusal(request, is_preview=is_preview):
                    return answer
                return await self._answer(name, request, token, found)
        return refused(404, "The controller for path was not found.")

    async def _answer(self, name: str, request: Request, token: str, found: re.Match[str]) -> Response:
        match name:
            case "repositories":
                return self._repositories(token, unquote(found["project"]))
            case "repository":
                project, repository = unquote(found["project"]), unquote(found["repository"])
                is_item = bool(found["items"])
                return (
                    self._item(request, token, project, repository)
                    if is_item
                    else self._repository(token, project, repository)
                )
            case "commit" | "pull request":
                return await self._status(name, request, token, found)
            case "permissions":
                return JSONResponse({"count": 1, "value": [token not in self.readers]})
            case "test":
                return await self._test(await json_of(request))
        return await self._subscriptions(request, token, found["id"])

    async def _status(self, name: str, request: Request, token: str, found: re.Match[str]) -> Response:
        answer = self._repository(token, unquote(found["project"]), unquote(found["repository"]))
        if answer.status_code != httpx2.codes.OK:
            return answer
        is_write, wanted = request.method == "POST", None
        if is_write and token in self.blind:
            return Response(status_code=401)
        if is_write and token in self.readers:
            right = "GenericContribute" if name == "commit" else "PullRequestContribute"
            return refused(403, f"TF401027: You need the Git '{right}' permission to perform this action.")
        if is_write:
            wanted = await json_of(request)
        if name == "commit":
            return self.git.of_commit(request.method, found["id"], request.query_params, wanted)
        return self.git.of_pull_request(request.method, int(found["id"]), found["what"], wanted)

    async def _subscriptions(self, request: Request, token: str, id_: str | None) -> Response:
        if request.method == "GET" and id_ is None:
            return self._list(request, token)
        if token in self.readers:
            return refused(
                403,
                "TF50309: The following account does not have sufficient permissions to complete the"
                " operation: bot. The following permissions are needed to perform this operation: Edit"
                " subscriptions.",
            )
        if id_ is None:
            return self._save({"id": str(uuid.uuid4())}, await json_of(request), is_new=True)
        subscription = next((one for one in self.subscriptions if one["id"] == id_), None)
        if subscription is None:
            return refused(404, f"The subscription with id {id_} could not be found.")
        return await self._act(request, subscription)

    async def _act(self, request: Request, subscription: dict[str, Any]) -> Response:
        if request.method == "DELETE":
            self.subscriptions.remove(subscription)
            return Response(status_code=204)
        if request.method == "PUT":
            return self._save(subscription, await json_of(request), is_new=False)
        return JSONResponse(_shown(subscription))

    def _repositories(self, token: str, project: str) -> Response:
        """Return the repositories of a project that the token may see."""
        found = [one for one in self.of_owner(project) if one.full_name.lower() in self.tokens[token]]
        if not found:
            return refused(
                404,
                f"TF200016: The following project does not exist: {project}. Verify that the name of the"
                " project is correct and that the project exists on the specified Azure DevOps Server.",
            )
        return JSONResponse({"count": len(found), "value": [self._described(one) for one in found]})

    def _described(self, repository: FakeRepository) -> dict[str, Any]:
        project, _, name = repository.full_name.partition("/")
        url = f"{self.url}{COLLECTION}/{quote(project)}/_git/{quote(name)}"
        return {
            "id": repository.id,
            "name": name,
            "project": {"id": id_of(project.lower()), "name": project},
            "defaultBranch": f"refs/heads/{repository.default_branch}",
            "remoteUrl": (repository.url or url).replace("://", "://acme@", 1),
            "isDisabled": repository.is_archived,
        }

    def _item(self, request: Request, token: str, project: str, name: str) -> Response:
        path, full_name = request.query_params["path"], f"{project}/{name}"
        branch = request.query_params.get("versionDescriptor.version")
        is_seen = full_name in self.tokens[token]
        if is_seen and self.has_file(full_name, path.removeprefix("/"), branch):
            return JSONResponse({"path": path, "gitObjectType": "blob"})
        return refused(404, f"TF401174: The item '{path}' could not be found in the repository '{name}'.")

    def _repository(self, token: str, project: str, name: str) -> Response:
        if f"{project}/{name}" not in self.tokens[token]:
            return refused(
                404,
                f"TF401019: The Git repository with name or identifier {name} does not exist or you do not"
                " have permissions for the operation you are attempting.",
            )
        ids = {"id": id_of(f"{project}/{name}"), "project": {"id": id_of(project), "name": project}}
        return JSONResponse({"name": name, **ids})

    def _list(self, request: Request, token: str) -> Response:
        # Azure DevOps does not refuse the request of one who may not view subscriptions.
        names = ("publisherId", "consumerId", "consumerActionId", "eventType")
        wanted = {name: request.query_params[name] for name in names if name in request.query_params}
        value = [
            _shown(one)
            for one in self.subscriptions
            if token not in self.readers and all(one[name] == text for name, text in wanted.items())
        ]
        return JSONResponse({"count": len(value), "value": value})

    def _save(self, subscription: dict[str, Any], wanted: dict[str, Any], *, is_new: bool) -> Response:
        if wanted["eventType"] not in EVENTS:
            return refused(
                400, f"The event type {wanted['eventType']} is not supported by the publisher tfs."
            )
        if not wanted["consumerInputs"].get("url"):
            return refused(400, "The consumer input url is required.")
        inputs = dict(wanted["consumerInputs"])
        if inputs.get("basicAuthPassword") == _MASK:
            inputs["basicAuthPassword"] = subscription["consumerInputs"].get("basicAuthPassword")
        subscription.update({name: wanted[name] for name in _WRITTEN})
        subscription.update(consumerInputs=inputs, status=wanted.get("status", "enabled"))
        if is_new:
            self.subscriptions.append(subscription)
        return JSONResponse(_shown(subscription))

    async def _test(self, wanted: dict[str, Any]) -> Response:
        """Deliver an event about the sample project; its result is no failure of the subscription."""
        subscription = next(one for one in self.subscriptions if one["id"] == wanted["subscriptionId"])
        resource = {"repository": _SAMPLE, "newName": _SAMPLE["name"], "oldName": "Diber-Git"}
        status = await self._send(subscription, wanted["details"]["eventType"], resource)
        result = "succeeded" if httpx2.codes.is_success(status) else "failed"
        return JSONResponse({"subscriptionId": subscription["id"], "status": "completed", "result": result})

    async def deliver(self, subscription: dict[str, Any], resource: dict[str, Any]) -> None:
        """Deliver an event; a refusal puts the subscription on probation, and 410 disables it."""
        status = await self._send(subscription, subscription["eventType"], resource)
        if status == httpx2.codes.GONE:
            subscription["status"] = "disabledBySystem"
        elif not httpx2.codes.is_success(status) and status not in _RETRIED:
            subscription["status"] = "onProbation"

    async def _send(self, subscription: dict[str, Any], event: str, resource: dict[str, Any]) -> int:
        inputs, id_ = subscription["consumerInputs"], str(uuid.uuid4())
        payload = {
            "subscriptionId": subscription["id"],
            "notificationId": 1,
            "id": id_,
            "eventType": event,
            "resource": resource,
        }
        body, secret = json.dumps(payload).encode(), inputs.get("basicAuthPassword", "").encode()
        headers = azure_devops.sign(
            event=event, body=body, secret=secret, delivery=id_, now=datetime.now(UTC)
        )
        if name_and_value := inputs.get("httpHeaders"):
            name, _, value = name_and_value.partition(":")
            headers[name] = value
        async with httpx2.AsyncClient() as http:
            answer = await http.post(inputs["url"], content=body, headers=headers)
        return answer.status_code


def id_of(name: str) -> str:
    """Return the id of a project, or of a repository with its project."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _version_refusal(request: Request, *, is_preview: bool) -> Response | None:
    version, _, preview = request.query_params.get("api-version", "").partition("-")
    if version not in _VERSIONS or (preview and not is_preview):
        return refused(400, "No api-version was supplied, or one that is out of range.")
    if is_preview and version in _PREVIEWS and not preview:
        return refused(
            400,
            f'The requested version "{version}" of the resource is under preview. The -preview flag must be'
            f' supplied in the api-version for such requests. For example: "{version}-preview"',
        )
    return None


def _given(request: Request) -> str:
    return request.headers.get("authorization", "")


def _authorizations(token: str) -> tuple[str, str]:
    """Return the headers with a personal access token, and with an access token of Entra."""
    return f"Basic {b64encode(f':{token}'.encode()).decode()}", f"Bearer {token}"


def _shown(subscription: dict[str, Any]) -> dict[str, Any]:
    inputs = dict(subscription["consumerInputs"])
    if "basicAuthPassword" in inputs:
        inputs["basicAuthPassword"] = _MASK
    return {**subscription, "consumerInputs": inputs}
