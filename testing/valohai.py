"""A fake of the platform's API: projects that fetch commits, and executions and pipelines that tests advance.

Its answers are those that the platform's documentation and its public clients show. It runs nothing.
"""

import asyncio
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import FakeApi, json_of

TOKEN = "t0ken-of-the-platform"
_ENDS = {"complete", "error", "crashed", "stopped"}


@dataclass(slots=True)
class FakePlatform(FakeApi):
    """A fake with one project. A commit must have been fetched before something can be started from it."""

    project: str = "0185b1a5-7e6b-4ba5-8e1a-3f6f3f1b7c11"
    pushed: set[str] = field(default_factory=set)
    """The commits that are in the repository."""
    fetched: set[str] = field(default_factory=set)
    fetch_errors: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    """The commits from which every start fails."""
    environments: set[str] = field(default_factory=lambda: {"gpu-small"})
    started: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"executions": [], "pipelines": []}
    )
    statuses: list[str] = field(default_factory=list)
    """The states that the newest of `started` has, one for each time that it is read."""
    lists_tags: bool = False
    fails_after_starting: int = 0
    """How many further starts are answered by a 502, as a proxy does."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Starts are answered once it is set, as it is at first."""

    def __post_init__(self) -> None:
        """Answer at once."""
        self.may_answer.set()

    async def handle(self, request: Request) -> Response:
        """Answer a request as the platform does."""
        if request.headers.get("authorization") != f"Token {TOKEN}":
            return JSONResponse({"detail": "Invalid token."}, 401)
        path = request.url.path.removeprefix("/api/v0/").strip("/")
        if (request.method, path) == ("POST", f"projects/{self.project}/fetch"):
            return self._fetch()
        kind, _, rest = path.partition("/")
        if kind not in self.started:
            return JSONResponse({"detail": "Not found."}, 404)
        if request.method == "POST":
            return await self._start(kind, await json_of(request))
        return self._read(kind, *rest.split("/")) if rest else self._list(kind, request)

    def _fetch(self) -> Response:
        new = [] if self.fetch_errors else sorted(self.pushed - self.fetched)
        self.fetched.update(new)
        commits = [{"identifier": commit, "ref": "main", "repository": 7} for commit in new]
        return JSONResponse({"commits": commits, "errors": self.fetch_errors}, 201)

    async def _start(self, kind: str, body: Any) -> Response:
        if body.get("project") != self.project:
            return _wrong("project", f"Object with primary key {body.get('project')} does not exist.")
        templates = [node["template"] for node in body["nodes"]] if kind == "pipelines" else [body]
        for template in templates:
            if template["commit"] in self.failing:
                return Response("Internal Server Error", 500)
            if template["commit"] not in self.fetched:
                return _wrong("commit", f"No commit {template['commit']} in this project.")
            if template.get("environment", "gpu-small") not in self.environments:
                name = template["environment"]
                return _wrong("environment", f"Object with slug or primary key {name} does not exist.")
        number = len(self.started[kind]) + 1
        made = {
            "id": str(uuid.uuid4()),
            "counter": number,
            "ctime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "status": "created",
            "urls": {"display": f"https://platform.example/p/acme/{kind}/{number}/"},
            "tags": body.get("tags", []),
            "body": body,
        }
        self.started[kind].append(made)
        await asyncio.to_thread(self.may_answer.wait)
        if self.fails_after_starting:
            self.fails_after_starting -= 1
            return Response("Bad Gateway", 502)
        return JSONResponse(made, 201)

    def _list(self, kind: str, request: Request) -> Response:
        query = request.query_params
        limit, offset = int(query["limit"]), int(query.get("offset", 0))
        found = self.started[kind][::-1] if query["ordering"] == "-counter" else self.started[kind]
        hidden = {"body"} if self.lists_tags else {"body", "tags"}
        page = [{name: one[name] for name in one if name not in hidden} for one in found]
        more = urlencode({**query, "offset": offset + limit})
        return JSONResponse(
            {
                "count": len(found),
                "next": f"{request.url.replace(query=more)}" if offset + limit < len(found) else None,
                "previous": None,
                "results": page[offset : offset + limit],
            }
        )

    def _read(self, kind: str, name: str, part: str = "") -> Response:
        if part == "events":
            events = [{"time": "2026-05-04T12:31:00", "stream": "stderr", "message": "no memory\n"}]
            return JSONResponse({"total": 1, "limit": 100, "truncated": False, "events": events})
        for one in self.started[kind]:
            if one["id"] == name:
                if self.statuses and one is self.started[kind][-1]:
                    self._advance(one, self.statuses.pop(0))
                return JSONResponse(one)
        return JSONResponse({"detail": "Not found."}, 404)

    def _advance(self, one: dict[str, Any], status: str) -> None:
        one["status"] = status
        if status in _ENDS:
            one["duration"] = 777.2
            one["cumulative_metadata"] = {"accuracy": 0.93, "note": "fine"}
            one["outputs"] = [{"id": "0185d0", "name": "model.pkl", "size": 5}]


def throttled(seconds: int) -> Response:
    """Return the answer to one request too many."""
    detail = f"Request was throttled. Expected available in {seconds} seconds."
    return JSONResponse({"detail": detail}, 429, {"Retry-After": str(seconds)})


def _wrong(name: str, message: str) -> Response:
    return JSONResponse({name: [{"message": message, "code": "does_not_exist"}]}, 400)
