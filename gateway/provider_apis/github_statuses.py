"""Commit statuses of GitHub, for identities that are no App.

https://docs.github.com/en/rest/commits/statuses
"""

from collections.abc import Mapping
from urllib.parse import quote

from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place
from providers.clone_urls import host_and_path

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
STATUS_RIGHT = "Commit statuses: read and write; of a classic token: repo:status"

MAX_DESCRIPTION = 140


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status: GitHub shows the newest of a context. It takes 1,000 for a context of a commit."""
    yield ApiRequest(
        method="POST",
        path=f"/repos/{quote(host_and_path(place.url)[1])}/statuses/{status.commit}",
        body={
            "state": STATES[status.state],
            "context": status.context,
            "description": shortened(status.description, MAX_DESCRIPTION),
            "target_url": status.url,
        },
        right=STATUS_RIGHT,
    )
    return memory
