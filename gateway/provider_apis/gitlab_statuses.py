"""The commit statuses of GitLab: each is a job in a pipeline of its commit and ref.

GitLab sets a status in the newest pipeline, which is the one that people see, and creates one of the source
`external` if there is none. It changes the job there that has the same name and user and is unfinished, or
else adds a job.
https://docs.gitlab.com/api/commits/#set-commit-pipeline-status
https://gitlab.com/gitlab-org/gitlab/-/blob/master/app/services/ci/create_commit_status_service.rb
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus

from pydantic import BaseModel

from gateway.provider_apis.gitlab import home_path
from gateway.provider_apis.operation import ApiRefused, ApiRequest, ApiUnavailable, Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place

STATES: Mapping[StatusState, str] = {
    "waiting": "pending",
    "running": "running",
    "succeeded": "success",
    "failed": "failed",
    "error": "failed",
    "superseded": "canceled",
    "cancelled": "canceled",
    "lost": "failed",
    "skipped": "skipped",
}
STATUS_RIGHT = (
    "scope api with the role Developer; for a protected branch or tag, also to be allowed to push or merge"
    " there"
)

_UNFINISHED = frozenset({"pending", "running"})
_MAX_DESCRIPTION = 255
_TRANSITION = re.compile(r"Cannot transition status via :\w+ from :(?P<current>\w+)")
# Of a job's locks and of the database; GitLab answers them with 400.
_BUSY = re.compile(r"Failed to obtain a lock|stale object|PG::")
# https://gitlab.com/gitlab-org/gitlab/-/merge_requests/168350 added `skipped`.
_INVALID_STATE = "state does not have a valid value"


class _Job(BaseModel):
    # Not every version shows it.
    pipeline_id: int | None = None


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Set a status. Raise `ApiRefused` if no retry can succeed.

    Once GitLab CI has created another pipeline, or the commit is on another ref, the next status is a job
    there. Memory has the pipelines with an unfinished job, and their refs: a final state ends all these jobs.
    """
    unfinished: dict[str, str] = dict(memory.get("unfinished", {}))
    state = STATES[status.state]
    path = f"{home_path(place)}/statuses/{status.commit}"
    ref = status.ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    body = {
        "name": status.context,
        "ref": ref,
        "target_url": status.url,
        "description": shortened(status.description, _MAX_DESCRIPTION),
    }
    pipeline = yield from _set(path, body, state)
    if state in _UNFINISHED:
        return {"unfinished": unfinished if pipeline is None else unfinished | {pipeline: ref}}
    for earlier, its_ref in unfinished.items():
        if earlier != pipeline:
            # The job may be gone with its pipeline, and people see the newest one.
            with suppress(ApiRefused):
                yield from _set(path, {**body, "ref": its_ref, "pipeline_id": earlier}, state)
    return {}


def _set(path: str, body: Mapping[str, str], state: str) -> Operation[str | None]:
    """Set a state; return the id of the pipeline, or None if GitLab does not show it."""
    try:
        answer = yield ApiRequest(
            method="POST", path=path, body={**body, "state": state}, right=STATUS_RIGHT, subject="commit"
        )
    except ApiRefused as error:
        refused = error
    else:
        found = answer.read(_Job).pipeline_id
        return None if found is None else str(found)
    if refused.status == HTTPStatus.CONFLICT or _BUSY.search(refused.said):
        raise ApiUnavailable(f"GitLab is busy with this commit ({refused.said}); try again later")
    if refused.said == _INVALID_STATE and state == "skipped":
        return (yield from _set(path, body, "success"))
    transition = _TRANSITION.match(refused.said)
    if transition is None:
        raise refused
    if transition["current"] == state:
        return None
    # A job cannot go back, from running to pending for example, so another one takes its place.
    yield from _set(path, body, "canceled")
    return (yield from _set(path, body, state))
