"""Verdicts: from the push to “waiting” beside its commit, by stage.

The repository is small, and its mirror is warm. The provider is a fake of GitHub on the same machine; the
yardstick is the same request to such a fake, without Pushgate.
"""

import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import Response

from bench.report import Progress, Rounds, Row
from gateway.provider_apis import github
from testing.git_host import GitHost
from testing.provider_apis.fake import sender_tls, serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Command, Project, wait_for

# GitHub takes 60 writes at once.
_PUSHES = 50
_ROUNDS = 3
_SECONDS = 60
_MOST_MS = 2_000
_REPOSITORY, _TOKEN = "acme/digits", "the-token-of-the-bench"
_STAGES = {
    "accepted": "from the push to its 202",
    "planned": "from the 202 to the stored request",
    "sent": "from the request to “waiting” at GitHub",
    "in all": "from the push to “waiting” at GitHub",
}

_Times = dict[str, list[float]]


@dataclass(slots=True)
class _TimedGitHub(FakeGitHub):
    """GitHub; `shown_at` has the time at which each commit got its status."""

    shown_at: dict[str, float] = field(default_factory=dict)

    async def answer(self, request: Request) -> Response:
        """Answer a request, and record its time if it has set a status."""
        answer = await FakeGitHub.answer(self, request)
        _, is_status, commit = request.url.path.partition("/statuses/")
        if is_status and answer.status_code == HTTPStatus.CREATED:
            self.shown_at[commit] = time.time()
        return answer


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    rounds = Rounds("statuses", progress, most=_ROUNDS, seconds=_SECONDS)
    for _ in rounds:
        rounds.measure("bare", _bare)
        rounds.measure("push", _pushed)
    rows = []
    for stage, what in _STAGES.items():
        for percent in (50, 99):
            name, of = f"statuses: ms {what}, p{percent}", partial(_percentile, stage, percent)
            rows.append(rounds.row(name, "push", "bare", aim=None, higher_is_better=False, of=of))
    name = f"statuses: ms {_STAGES['in all']}, p99, of {_MOST_MS:,}"
    of = partial(_percentile, "in all", 99)
    rows[-1] = rounds.row(name, "push", _MOST_MS, aim=1, higher_is_better=False, of=of)
    return rows


def _percentile(stage: str, percent: int, times: _Times) -> float:
    # The yardstick has only one stage.
    ordered = sorted(times.get(stage) or times["bare"])
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _bare() -> _Times:
    """Set statuses at the fake, over one connection."""
    times = []
    fake = _github()
    with serving(fake), httpx2.Client(verify=sender_tls(), trust_env=False) as client:
        headers = {**github.HEADERS, "Authorization": f"Bearer {_TOKEN}"}
        for number in range(_PUSHES + 1):
            url = f"{fake.url}/api/v3/repos/{_REPOSITORY}/statuses/{number:040x}"
            wanted = {"state": "pending", "context": "pushgate/train", "description": "waiting for a runner"}
            started = time.perf_counter()
            client.post(url, json=wanted, headers=headers).raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
    return {"bare": times[1:]}


def _github() -> _TimedGitHub:
    return _TimedGitHub(tokens={_TOKEN: {_REPOSITORY}})


def _pushed() -> _Times:
    """Push repeatedly to a known repository; return the ms of each stage."""
    times: _Times = {stage: [] for stage in _STAGES}
    fake = _github()
    with (
        tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path,
        serving(fake),
        GitHost(Path(path) / "git") as host,
        Command(Path(path) / "data") as service,
    ):
        project = Project(host, Path(path), _REPOSITORY)
        api_url = f"{fake.url}/api/v3"
        bot = {"name": "bot", "provider": "github", "token": _TOKEN, "api_url": api_url}
        service.api.send("POST", "/identities", bot)
        connection = service.connect(project.url, "train@main", identity="bot")
        before = project.first
        for number in range(_PUSHES + 1):
            after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
            _time(service, fake, connection, project.payload(before, after), after, times)
            before = after
    return {stage: taken[1:] for stage, taken in times.items()}


def _time(
    service: Command, fake: _TimedGitHub, connection: Any, payload: bytes, commit: str, times: _Times
) -> None:
    """Deliver a push, and add the ms of each stage."""
    started = time.time()
    _, answer = service.deliver(connection, payload)
    accepted = time.time()
    shown = wait_for(lambda: fake.shown_at.get(commit), "the provider shows the commit's verdict")
    [execution] = service.api.get("/executions", delivery=answer["delivery"])["items"]
    planned = datetime.fromisoformat(execution["planned_at"]).timestamp()
    spans = [*pairwise([started, accepted, planned, shown]), (started, shown)]
    for stage, (begin, end) in zip(_STAGES, spans, strict=True):
        times[stage].append((end - begin) * 1000)
