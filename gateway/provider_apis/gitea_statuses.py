"""The commit statuses of Gitea and Forgejo, which show the newest of each context.

https://docs.gitea.com/api/#tag/repository/operation/repoCreateStatus
"""

from collections.abc import Mapping

from gateway.provider_apis.gogs_like import home_path
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place

# Servers accept any word, and count those that they do not know in ways of their own. `skipped` came with
# Gitea 1.25 and Forgejo 14. `warning` permits a merge in Gitea 1.25, and prevents it in other versions:
# https://github.com/go-gitea/gitea/pull/37048. The words here mean the same in all versions.
STATES: Mapping[StatusState, str] = {
    "waiting": "pending",
    "running": "pending",
    "succeeded": "success",
    "failed": "failure",
    "error": "error",
    "superseded": "error",
    "cancelled": "error",
    "lost": "error",
    "skipped": "success",
}
STATUS_RIGHT = "write:repository, and write access to the code of the repository"

# Servers accept longer ones, but show them in one line.
_MAX_DESCRIPTION = 255


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status. Raise `ApiRefused` if no retry can succeed."""
    yield ApiRequest(
        method="POST",
        path=f"{home_path(place)}/statuses/{status.commit}",
        body={
            "context": status.context,
            "state": STATES[status.state],
            "target_url": status.url,
            "description": shortened(status.description, _MAX_DESCRIPTION),
        },
        right=STATUS_RIGHT,
        subject="repository or commit",
    )
    return memory
