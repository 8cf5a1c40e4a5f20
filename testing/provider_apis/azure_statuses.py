"""The statuses of a fake Azure DevOps: those of commits, and those of pull requests. Each write adds one.

https://learn.microsoft.com/en-us/rest/api/azure/devops/git/statuses/list
https://learn.microsoft.com/en-us/azure/devops/repos/git/pull-request-status
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

_STATES = frozenset({"notSet", "notApplicable", "pending", "succeeded", "failed", "error"})


@dataclass(slots=True)
class AzureStatuses:
    """Statuses, the oldest first. `pull_requests` has the commits of each one's iterations.

    The commits in `gone` are not in the repository. If a policy `needs_iterations`, it refuses the status of
    a whole pull request.
    """

    pull_requests: dict[int, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    needs_iterations: bool = False
    of_commits: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    of_pull_requests: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def writes(self) -> int:
        """Return how many requests have set a status."""
        return len(self.of_commits) + len(self.of_pull_requests)

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """Return what people see: the newest state by commit and context."""
        return {(commit, context_of(status)): status["state"] for commit, status in self.of_commits}

    def page(self, number: int) -> dict[str, str]:
        """Return what the page of a pull request shows: the states of its newest iteration, by context."""
        newest = len(self.pull_requests[number])
        shown = (status for of, status in self.of_pull_requests if of == number)
        return {
            context_of(status): status["state"]
            for status in shown
            if status.get("iterationId", newest) == newest
        }

    def of_commit(self, method: str, commit: str, query: Mapping[str, str], wanted: Any) -> Response:
        """Answer a request about the statuses of a commit."""
        if commit in self.gone:
            return refused(404, f"TF401175: The version descriptor <Commit: {commit}> could not be resolved.")
        if method == "GET":
            found = [status for of, status in self.of_commits if of == commit]
            if query.get("latestOnly") == "true":
                found = list({context_of(status): status for status in found}.values())
            return _listed(reversed(found))
        return _invalid(wanted) or self._added(self.of_commits, commit, wanted)

    def of_pull_request(self, method: str, number: int, what: str, wanted: Any) -> Response:
        """Answer a request about the statuses, or the iterations, of a pull request."""
        if number not in self.pull_requests:
            return refused(404, "TF401180: The requested pull request was not found.")
        commits = self.pull_requests[number]
        if what == "iterations":
            return _listed(
                {"id": at, "sourceRefCommit": {"commitId": commit}} for at, commit in enumerate(commits, 1)
            )
        if method == "GET":
            return _listed(status for of, status in self.of_pull_requests if of == number)
        if wanted.get("iterationId", 1) not in range(1, len(commits) + 1):
            return refused(400, "TF401179: The iteration ID is invalid.")
        if self.needs_iterations and "iterationId" not in wanted:
            text = "Policy configuration requires status to be posted on iteration."
            return refused(403, f"Pull request status rejected by status policy. {text}")
        return _invalid(wanted) or self._added(self.of_pull_requests, number, wanted)

    def _added(self, statuses: list[tuple[Any, dict[str, Any]]], of: Any, wanted: dict[str, Any]) -> Response:
        status = {"id": len(statuses) + 1, **wanted}
        statuses.append((of, status))
        return JSONResponse(status)


def context_of(status: Mapping[str, Any]) -> str:
    """Return genre and name of a status, as a policy names it."""
    context = status["context"]
    return "/".join(part for part in (context.get("genre"), context["name"]) if part)


def refused(status: int, message: str) -> Response:
    """Return an error as Azure DevOps words it."""
    more = {"$id": "1", "innerException": None, "typeKey": "Exception", "errorCode": 0, "eventId": 3000}
    return JSONResponse({"message": message, **more}, status)


def _listed(values: Iterable[dict[str, Any]]) -> Response:
    value = list(values)
    return JSONResponse({"count": len(value), "value": value})


def _invalid(wanted: dict[str, Any]) -> Response | None:
    if not wanted.get("context", {}).get("name"):
        return refused(400, "Value cannot be null. Parameter name: status.Context.Name")
    return None if wanted.get("state") in _STATES else refused(400, "The status state is invalid.")
