"""What GitHub shows beside commits: statuses and check runs, and the limit of requests that create something.

https://docs.github.com/en/rest/commits/statuses and https://docs.github.com/en/rest/checks/runs
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import refusal

MAX_DESCRIPTION = 140
MAX_STATUSES = 1000
MAX_OUTPUT = 65_535
MAX_ANNOTATIONS = 50
_PERIODS = ((60, 80), (3600, 500))
_WORDS = {"pending", "success", "failure", "error"}
_CONCLUSIONS = {"action_required", "cancelled", "failure", "neutral", "success", "skipped", "timed_out"}
_LIMITED = (
    "You have exceeded a secondary rate limit. Please wait a few minutes before you try again. For more on"
    " scraping GitHub and how it may affect your rights, please review our Terms of Service"
    " (https://docs.github.com/en/site-policy/github-terms/github-terms-of-service)"
)


@dataclass(slots=True)
class SecondaryLimit:
    """The secondary limit: 80 requests that create something in a minute, and 500 in an hour."""

    clock: Callable[[], float] = time.monotonic
    writes: deque[float] = field(default_factory=deque)

    def refusal(self) -> Response | None:
        """Count a request, or return its refusal."""
        now = self.clock()
        while self.writes and self.writes[0] <= now - _PERIODS[-1][0]:
            self.writes.popleft()
        for seconds, most in _PERIODS:
            if len(self.writes) >= most and self.writes[-most] > now - seconds:
                return refusal(403, _LIMITED, retry_after="60")
        self.writes.append(now)
        return None


@dataclass(slots=True)
class Verdicts:
    """The statuses and check runs of commits; `missing` are commits that no repository has any more.

    `writes` counts the requests that have changed any of them.
    """

    posted: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    check_runs: list[dict[str, Any]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    writes: int = 0

    def shown(self) -> dict[tuple[str, str], str]:
        """Return what people see: the newest status of a context, and the newest check run of a name."""
        states = {key: posted[-1]["state"] for key, posted in self.posted.items()}
        runs = {
            (run["head_sha"], run["name"]): run.get("conclusion") or run["status"] for run in self.check_runs
        }
        return states | runs

    def set_status(self, commit: str, wanted: dict[str, Any]) -> Response:
        """Add a status."""
        if commit in self.missing:
            return refusal(422, f"No commit found for SHA: {commit}")
        if wanted.get("state") not in _WORDS:
            return _invalid("State is not included in the list")
        if len(wanted.get("description") or "") > MAX_DESCRIPTION:
            return _invalid("Description is too long (maximum is 140 characters)")
        # Contexts are compared without regard to case.
        posted = self.posted.setdefault((commit, wanted.get("context", "default").lower()), [])
        if len(posted) >= MAX_STATUSES:
            return _invalid("This SHA and context has reached the maximum number of statuses.")
        posted.append(wanted)
        self.writes += 1
        return JSONResponse({"id": self.writes, **wanted}, 201)

    def create(self, app: int, wanted: dict[str, Any]) -> Response:
        """Create a check run of an App."""
        if wanted["head_sha"] in self.missing:
            return refusal(422, f"No commit found for SHA: {wanted['head_sha']}")
        if wrong := _wrong(wanted):
            return wrong
        run = {"id": len(self.check_runs) + 1, "app": app, "status": "queued", "annotations": []}
        self.check_runs.append(run)
        self._change(run, wanted)
        return JSONResponse(_described(run), 201)

    def change(self, app: int, number: int, wanted: dict[str, Any]) -> Response:
        """Change a check run, which must be one of the same App."""
        run = next((run for run in self.check_runs if run["id"] == number), None)
        if run is None:
            return refusal(404, "Not Found")
        if run["app"] != app:
            return refusal(
                403,
                f"Invalid app_id `{app}` - check run can only be modified by the GitHub App that created it.",
            )
        if wrong := _wrong(wanted):
            return wrong
        if run["status"] == "completed":
            # The conclusion stays.
            wanted = {name: value for name, value in wanted.items() if name not in {"status", "conclusion"}}
        self._change(run, wanted)
        return JSONResponse(_described(run))

    def _change(self, run: dict[str, Any], wanted: dict[str, Any]) -> None:
        # Annotations are added to those that are there; the rest of the output is replaced.
        run["annotations"] = run["annotations"] + wanted.get("output", {}).get("annotations", [])
        run.update(wanted)
        if "conclusion" in wanted:
            run["status"] = "completed"
        self.writes += 1


def _wrong(wanted: dict[str, Any]) -> Response | None:
    """Return the refusal of a check run that is not valid."""
    output = wanted.get("output", {})
    summary, annotations = output.get("summary", ""), output.get("annotations", [])
    if wanted.get("conclusion", "neutral") not in _CONCLUSIONS:
        return refusal(422, f"Invalid request. {wanted['conclusion']} is not a member of the list.")
    if output and not (output.get("title") and "summary" in output):
        return refusal(422, 'Invalid request. "title", "summary" weren\'t supplied.')
    if len(summary) > MAX_OUTPUT:
        return refusal(422, f"Only 65535 characters are allowed; {len(summary)} were supplied.")
    if len(summary.encode()) > MAX_OUTPUT:
        return _invalid("summary exceeds a maximum bytesize of 65535")
    if len(annotations) > MAX_ANNOTATIONS:
        return refusal(422, f"No more than 50 items are allowed; {len(annotations)} were supplied.")
    return None


def _described(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in {"app", "annotations"}}


def _invalid(message: str) -> Response:
    body = {"message": "Validation Failed", "errors": f"Validation failed: {message}", "status": "422"}
    return JSONResponse(body, 422)
