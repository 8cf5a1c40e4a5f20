"""The statuses of Azure DevOps: of commits, and of pull requests, whose pages show only their own.

Each request adds a status; people see the newest of each context.
https://learn.microsoft.com/en-us/rest/api/azure/devops/git/statuses
https://learn.microsoft.com/en-us/azure/devops/repos/git/pull-request-status
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from gateway.provider_apis.azure_devops import READ_RIGHT, VERSION, repository_path
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place

STATES: Mapping[StatusState, str] = {
    "waiting": "pending",
    "running": "pending",
    "succeeded": "succeeded",
    "failed": "failed",
    "error": "error",
    # Not “notApplicable”, which would exempt the pull request from a policy that requires the status.
    "superseded": "error",
    "cancelled": "error",
    "lost": "error",
    "skipped": "notApplicable",
}
STATUS_RIGHT = "scopes Code (read) and Code (status), with Contribute and Contribute to pull requests"

# Before 7.1, the statuses of pull requests are a preview: servers refuse them without the word.
_PREVIEW = {"api-version": f"{VERSION['api-version']}-preview.1"}
_MAX_DESCRIPTION = 255


class _Commit(BaseModel):
    id: str = Field("", alias="commitId")


class _Iteration(BaseModel):
    id: int
    source: _Commit = Field(_Commit(), alias="sourceRefCommit")


class _Iterations(BaseModel):
    value: list[_Iteration]


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status of a commit, and of its pull request. Raise `ApiRefused` if no retry can succeed.

    Memory has the iteration of the pull request that the commit is in.
    """
    path, body = f"{repository_path(place)}/commits/{status.commit}/statuses", _body(status)
    if status.pull_request is None:
        yield from _post(path, VERSION, body, subject="commit")
        return {}
    refusal = None
    try:
        yield from _post(path, VERSION, body, subject="commit")
    except ApiRefused as error:
        # The repository does not have the commits of a fork; its pull request shows the status all the same.
        refusal = None if error.status == HTTPStatus.NOT_FOUND else error
    path = f"{repository_path(place)}/pullRequests/{status.pull_request}"
    iteration: int | None = memory.get("iteration")
    if iteration is None:
        iteration = yield from _iteration(path, status.commit)
    tied = {} if iteration is None else {"iterationId": iteration}
    yield from _post(f"{path}/statuses", _PREVIEW, {**body, **tied}, subject="pull request")
    if refusal is not None:
        raise refusal
    return {} if iteration is None else {"iteration": iteration}


def _iteration(path: str, commit: str) -> Operation[int | None]:
    """Return the newest iteration of a pull request with a commit; None if none has it, or none is shown.

    A status without an iteration is one of all later commits as well, and some policies refuse it.
    """
    try:
        answer = yield ApiRequest(method="GET", path=f"{path}/iterations", query=VERSION, right=READ_RIGHT)
    except ApiRefused:
        return None
    found = (one.id for one in answer.read(_Iterations).value if one.source.id == commit)
    return max(found, default=None)


def _post(path: str, version: Mapping[str, str], body: Mapping[str, Any], *, subject: str) -> Operation[None]:
    try:
        yield ApiRequest(
            method="POST", path=path, query=version, body=body, right=STATUS_RIGHT, subject=subject
        )
    except ApiRefused as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise
        # The answer to a token without the scope is the one to a wrong token.
        raise ApiRefused(
            f"{error}, or it lacks the right “{STATUS_RIGHT}”", status=HTTPStatus.FORBIDDEN, said=error.said
        ) from None


def _body(status: CommitStatus) -> dict[str, Any]:
    genre, _, name = status.context.partition("/")
    # A policy that requires the status names both.
    context = {"genre": genre, "name": name} if name else {"name": genre}
    return {
        "state": STATES[status.state],
        "description": shortened(status.description, _MAX_DESCRIPTION),
        "targetUrl": status.url,
        "context": context,
    }
