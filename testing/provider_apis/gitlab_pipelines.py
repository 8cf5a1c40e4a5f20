"""The pipelines of a fake GitLab, whose jobs are the statuses of commits.

https://gitlab.com/gitlab-org/gitlab/-/blob/master/app/services/ci/create_commit_status_service.rb
https://gitlab.com/gitlab-org/gitlab/-/blob/master/app/models/commit_status.rb
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import refusal

STATUS_PATH = re.compile(r"/api/v4/projects/(?P<project>[^/]+)/statuses/(?P<commit>[^/]+)")
# The answer to a request that waits for 10 s for another one about the same commit.
LOCKED = "Another update to this commit status is in progress"
MAX_TEXT = 255
UNFINISHED = frozenset({"pending", "running"})
SKIPPED_SINCE = (17, 6)
PIPELINE_IDS_SINCE = (16, 3)

# The event that leads to each state, and the states that a job may have before it.
_TRANSITIONS: dict[str, tuple[str, frozenset[str]]] = {
    "pending": ("enqueue", frozenset({"created"})),
    "running": ("run", frozenset({"created", "pending"})),
    "success": ("success", frozenset({"created", "pending", "running"})),
    "failed": ("drop", frozenset({"created", "pending", "running"})),
    "canceled": ("cancel", frozenset({"created", "pending", "running"})),
    "skipped": ("skip", frozenset({"created", "pending"})),
}


@dataclass(slots=True, kw_only=True)
class Job:
    """A job; `user` is the token that created it, None if it is one of GitLab CI."""

    name: str
    user: str | None
    state: str = "created"
    description: str | None = None
    target_url: str | None = None
    is_retried: bool = False


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """A pipeline of a commit and the short name of a ref."""

    id: int
    project: str
    commit: str
    ref: str
    source: str
    jobs: list[Job] = field(default_factory=list)
    is_archived: bool = False

    @property
    def shown(self) -> dict[str, str]:
        """Return the states that people see, by the names of the jobs."""
        return {job.name: job.state for job in self.jobs if not job.is_retried}


@dataclass(slots=True, kw_only=True)
class Pipelines:
    """The pipelines of all projects.

    `protected` has short names of refs where developers may not push, `missing` the commits that are in no
    project. `writes` counts the requests that have set a status.
    """

    all: list[Pipeline] = field(default_factory=list)
    protected: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    max_jobs: int = 500
    writes: int = 0

    def run_ci(self, project: str, commit: str, ref: str, *, jobs: tuple[str, ...] = ("test",)) -> Pipeline:
        """Create a pipeline of GitLab CI, which succeeds."""
        made = self._create(project, commit, ref, source="push")
        made.jobs += [Job(name=name, user=None, state="success") for name in jobs]
        return made

    def newest(self, commit: str, ref: str | None = None) -> Pipeline:
        """Return the pipeline that a merge request from a branch shows, or of any ref that of the commit."""
        return [one for one in self.all if one.commit == commit and ref in {None, one.ref}][-1]

    @property
    def unfinished(self) -> list[Job]:
        """Return the statuses that are pending or running in any pipeline."""
        return [job for one in self.all for job in one.jobs if job.state in UNFINISHED]

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """Return the states that people see at each commit, by commit and context."""
        commits = {one.commit for one in self.all}
        return {
            (commit, name): state for commit in commits for name, state in self.newest(commit).shown.items()
        }

    def set_status(
        self,
        project: str,
        commit: str,
        body: dict[str, Any],
        *,
        user: str,
        is_developer: bool,
        version: tuple[int, int],
    ) -> Response:
        """Answer a request that sets a status."""
        states = _TRANSITIONS.keys() - (set() if version >= SKIPPED_SINCE else {"skipped"})
        if body.get("state") not in states:
            return JSONResponse({"error": "state does not have a valid value"}, 400)
        if commit in self.missing or not body.get("ref"):
            # Without a ref, a real server would take the first branch that has the commit.
            subject = "Commit" if commit in self.missing else "References for commit"
            return refusal(404, f"404 {subject} Not Found")
        found = self._pipeline(project, commit, body, user)
        if isinstance(found, Pipeline) and is_developer and body["ref"] in self.protected:
            return refusal(403, "403 Forbidden")
        if isinstance(found, Pipeline):
            return self._set(found, body, user, shows_pipeline=version >= PIPELINE_IDS_SINCE)
        return found

    def _pipeline(self, project: str, commit: str, body: dict[str, Any], user: str) -> Pipeline | Response:
        """Return the pipeline of a request, which is created if there is none, or if it has no room."""
        wanted = body.get("pipeline_id")
        matching = [
            one
            for one in self.all
            if (one.project, one.commit, one.ref) == (project, commit, body["ref"])
            and not one.is_archived
            and wanted in {None, str(one.id)}
        ]
        if wanted is not None and not matching:
            return refusal(404, "404 Pipeline for pipeline_id, sha and ref Not Found")
        if not matching:
            return self._create(project, commit, body["ref"], source="external")
        has_room = len(matching[-1].jobs) < self.max_jobs
        if has_room or _unfinished_job(matching[-1], body["name"], user):
            return matching[-1]
        if wanted is not None:
            return refusal(422, "The number of jobs has exceeded the limit")
        return self._create(project, commit, body["ref"], source="external")

    def _set(self, pipeline: Pipeline, body: dict[str, Any], user: str, *, shows_pipeline: bool) -> Response:
        if wrong := next(_wrong_fields(pipeline, body), None):
            return JSONResponse({"message": wrong}, 400)
        job = _unfinished_job(pipeline, body["name"], user)
        is_new = job is None
        job = job or Job(name=body["name"], user=user)
        event, before = _TRANSITIONS[body["state"]]
        if job.state not in before:
            said = f"Cannot transition status via :{event} from :{job.state}"
            return refusal(400, f'{said} (Reason(s): Status cannot transition via "{event}")')
        job.state, job.description, job.target_url = (
            body["state"],
            body.get("description"),
            body.get("target_url"),
        )
        if is_new:
            for other in pipeline.jobs:
                other.is_retried |= other.name == job.name
            pipeline.jobs.append(job)
        self.writes += 1
        shown: dict[str, Any] = {
            "name": job.name,
            "status": job.state,
            "sha": pipeline.commit,
            "ref": pipeline.ref,
        }
        if shows_pipeline:
            shown["pipeline_id"] = pipeline.id
        return JSONResponse(shown, 201)

    def _create(self, project: str, commit: str, ref: str, *, source: str) -> Pipeline:
        made = Pipeline(id=len(self.all) + 1, project=project, commit=commit, ref=ref, source=source)
        self.all.append(made)
        return made


def _unfinished_job(pipeline: Pipeline, name: str, user: str) -> Job | None:
    return next(
        (job for job in pipeline.jobs if (job.name, job.user) == (name, user) and job.state in UNFINISHED),
        None,
    )


def _wrong_fields(pipeline: Pipeline, body: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
    for name in ("ref", "target_url", "description"):
        if len(body.get(name) or "") > MAX_TEXT:
            yield {name: [f"is too long (maximum is {MAX_TEXT} characters)"]}
    if not (body.get("target_url") or "http://").startswith(("http://", "https://")):
        yield {"target_url": ["is blocked: Only allowed schemes are http, https"]}
    if any(job.name == body["name"] and job.user is None for job in pipeline.jobs):
        yield {"name": ["has already been taken"]}
