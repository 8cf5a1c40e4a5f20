"""The build statuses of Bitbucket Data Center: one for each key of a commit, overwritten by the next.

https://developer.atlassian.com/server/bitbucket/how-tos/updating-build-status-for-commits/
https://developer.atlassian.com/server/bitbucket/reference/api-changelog/
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from gateway.provider_apis.bitbucket_server import repository_path
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place

STATES: Mapping[StatusState, str] = {
    "waiting": "INPROGRESS",
    "running": "INPROGRESS",
    "succeeded": "SUCCESSFUL",
    "failed": "FAILED",
    "error": "FAILED",
    "superseded": "CANCELLED",
    "cancelled": "CANCELLED",
    "lost": "UNKNOWN",
    # A pull request that requires builds counts only this state.
    "skipped": "SUCCESSFUL",
}
STATUS_RIGHT = "Repository read"

# Servers before 8.0 refuse these states.
_NEW_STATES = frozenset({"CANCELLED", "UNKNOWN"})
_MAX_TEXT = 255


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status. Raise `ApiRefused` if no retry can succeed.

    Memory has what the server is found to lack: the API of 7.4, or the states of 8.0.
    """
    if not memory.get("lacks_api"):
        try:
            return (yield from _set_build(place, status, memory))
        except ApiRefused as error:
            if not _is_unknown_path(error):
                raise
    yield _request(f"../../build-status/1.0/commits/{status.commit}", _body(status, has_new_states=False))
    return {"lacks_api": True}


def _set_build(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    path = f"{repository_path(place)}/commits/{status.commit}/builds"
    # The parent is what a repository's required builds name.
    more = {"parent": status.context, "ref": status.ref}
    if not memory.get("lacks_states"):
        try:
            yield _request(path, {**_body(status), **more})
        except ApiRefused as error:
            if error.status != HTTPStatus.BAD_REQUEST or STATES[status.state] not in _NEW_STATES:
                raise
        else:
            return {}
    yield _request(path, {**_body(status, has_new_states=False), **more})
    return {"lacks_states": True}


def _request(path: str, body: Mapping[str, Any]) -> ApiRequest:
    return ApiRequest(method="POST", path=path, body=body, right=STATUS_RIGHT, subject="commit")


def _body(status: CommitStatus, *, has_new_states: bool = True) -> dict[str, Any]:
    state = STATES[status.state]
    return {
        "key": status.context,
        "state": state if has_new_states or state not in _NEW_STATES else "FAILED",
        "name": shortened(status.context, _MAX_TEXT),
        "description": shortened(status.description, _MAX_TEXT),
        "url": status.url,
    }


def _is_unknown_path(error: ApiRefused) -> bool:
    """Return whether a server has no such API; of a missing commit or repository, it says what is missing."""
    is_unknown = error.status == HTTPStatus.NOT_FOUND and (
        not error.said or error.said.startswith("null for uri")
    )
    return is_unknown or error.status == HTTPStatus.METHOD_NOT_ALLOWED
