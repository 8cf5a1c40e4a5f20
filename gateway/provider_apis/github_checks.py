"""Check runs of GitHub, which only Apps may write.

https://docs.github.com/en/rest/checks/runs
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation
from gateway.provider_apis.statuses import Annotation, CommitStatus, StatusMemory, StatusState, shortened
from gateway.provider_apis.webhooks import Place
from providers.clone_urls import host_and_path

STATES: Mapping[StatusState, str] = {
    "waiting": "queued",
    "running": "in_progress",
    "succeeded": "success",
    "failed": "failure",
    "error": "failure",
    # Not `skipped`, with which a required check passes.
    "superseded": "cancelled",
    "cancelled": "cancelled",
    "lost": "timed_out",
    "skipped": "skipped",
}
"""The `status` of a check run or, of a completed one, its `conclusion`."""

STATUS_RIGHT = "Checks: read and write"

MAX_ANNOTATIONS = 50
# Of a summary. The documentation says characters, but more bytes are refused, too: 422 “summary exceeds a
# maximum bytesize of 65535”.
MAX_SUMMARY = 65_535

_MAX_TITLE = 140
_MAX_MESSAGE = 16_000
_OPEN = frozenset({"queued", "in_progress"})
_OF_ANOTHER_APP = "Invalid app_id"
_CUT = "\n\n…"


class _CheckRun(BaseModel):
    id: int


def set_status(place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
    """Change the check run of the last write, or create one if that is completed, or gone.

    GitHub keeps the conclusion of a completed one, and shows the newest of a name in its place:
    https://docs.github.com/en/rest/checks/runs and
    https://github.com/orgs/community/discussions/24761#discussioncomment-3245360
    """
    word = STATES[status.state]
    wanted = _output(status) | ({"status": word} if word in _OPEN else {"conclusion": word})
    path = f"/repos/{quote(host_and_path(place.url)[1])}/check-runs"
    known = memory.get("open")
    if known is None or not (yield from _is_changed(f"{path}/{known}", wanted)):
        new = wanted | {"name": status.context, "head_sha": status.commit}
        answer = yield ApiRequest(method="POST", path=path, body=new, right=STATUS_RIGHT)
        known = answer.read(_CheckRun).id
    return {"open": known} if word in _OPEN else {}


def _is_changed(path: str, wanted: Mapping[str, Any]) -> Operation[bool]:
    """Change a check run; return False if it is gone, or was created by an App that was there before."""
    try:
        answer = yield ApiRequest(
            method="PATCH", path=path, body=wanted, right=STATUS_RIGHT, may_be_missing=True
        )
    except ApiRefused as error:
        if error.said.startswith(_OF_ANOTHER_APP):
            return False
        raise
    return answer.status != HTTPStatus.NOT_FOUND


def _output(status: CommitStatus) -> dict[str, Any]:
    output: dict[str, Any] = {
        "title": shortened(status.description, _MAX_TITLE),
        "summary": _cut(status.summary or status.description),
    }
    if status.annotations:
        output["annotations"] = [_annotation(each) for each in status.annotations[:MAX_ANNOTATIONS]]
    execution = {} if status.execution is None else {"external_id": status.execution}
    return {"details_url": status.url, "output": output, **execution}


def _annotation(annotation: Annotation) -> dict[str, Any]:
    return {
        "path": annotation.path,
        "start_line": annotation.line,
        "end_line": annotation.line,
        "annotation_level": "failure",
        "message": annotation.message[:_MAX_MESSAGE],
    }


def _cut(text: str) -> str:
    """Return a text whose UTF-8 has at most `MAX_SUMMARY` bytes."""
    encoded = text.encode()
    if len(encoded) <= MAX_SUMMARY:
        return text
    return encoded[: MAX_SUMMARY - len(_CUT.encode())].decode(errors="ignore") + _CUT
