"""The build statuses of Bitbucket Cloud: one for each key of a commit, which the next with it overwrites.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-commit-statuses/
"""

from collections.abc import Mapping
from hashlib import sha1
from typing import Any

from gateway.provider_apis.bitbucket import repository_path
from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place

STATES: Mapping[StatusState, str] = {
    "waiting": "INPROGRESS",
    "running": "INPROGRESS",
    "succeeded": "SUCCESSFUL",
    "failed": "FAILED",
    "error": "FAILED",
    "superseded": "STOPPED",
    "cancelled": "STOPPED",
    "lost": "FAILED",
    # A pull request that requires builds counts only this state.
    "skipped": "SUCCESSFUL",
}
# Reading is documented to suffice for the first status of a key, which only its author may change.
# https://developer.atlassian.com/cloud/bitbucket/bitbucket-api-changes-commit-status/
STATUS_RIGHT = (
    "Repositories: read and write, of the user who first set the status; of an API token:"
    " read:repository:bitbucket, write:repository:bitbucket"
)

_MAX_KEY = 40
_MAX_TEXT = 255
_HEADS = "refs/heads/"
_INVALID_URL = "Enter a valid URL"


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status. Raise `ApiRefused` if no retry can succeed."""
    path = f"{repository_path(place)}/commit/{status.commit}/statuses/build"
    try:
        yield ApiRequest(method="POST", path=path, body=_body(status), right=STATUS_RIGHT, subject="commit")
    except ApiRefused as error:
        if _INVALID_URL not in error.said:
            raise
        raise ApiRefused(
            f"Bitbucket Cloud accepts no link to {status.url} ({error.said}): set PUSHGATE_PUBLIC_URL to a"
            " URL whose host has a domain",
            status=error.status,
            said=error.said,
        ) from None
    return memory


def _body(status: CommitStatus) -> dict[str, Any]:
    is_branch = status.ref.startswith(_HEADS)
    return {
        "key": _key(status.context),
        "state": STATES[status.state],
        "name": shortened(status.context, _MAX_TEXT),
        "description": shortened(status.description, _MAX_TEXT),
        "url": status.url,
        # Pull requests from this branch show the status.
        **({"refname": status.ref.removeprefix(_HEADS)} if is_branch else {}),
    }


def _key(context: str) -> str:
    if len(context) <= _MAX_KEY:
        return context
    return sha1(context.encode(), usedforsecurity=False).hexdigest()
