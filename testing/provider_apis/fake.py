"""What the fakes have in common: an HTTP server in a thread, a log of its requests, and answers to come."""

import functools
import json
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from testing.ports import free_ports

_START_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that a fake has answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRepository:
    """A repository that a fake lists. `full_name` begins with the owner; `files` are on the default branch.

    Without `url`, its clone URL is one of the fake's.
    """

    id: str
    full_name: str
    url: str = ""
    default_branch: str = "main"
    is_archived: bool = False
    files: frozenset[str] = frozenset()


@dataclass(slots=True)
class FakeApi(ABC):
    """A fake. `instead` holds answers that are given before the real ones, one for each request.

    Only `repositories` are in lists, and have files; of others, only the webhooks are known.
    """

    port: int = 0
    repositories: list[FakeRepository] = field(default_factory=list)
    requests: list[Answered] = field(default_factory=list)
    instead: deque[Response] = field(default_factory=deque)

    @property
    def url(self) -> str:
        """Return the address of the server, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def of_owner(self, name: str) -> list[FakeRepository]:
        """Return the repositories of an owner, or all if the name is empty."""
        start = f"{name.lower()}/" if name else ""
        return [one for one in self.repositories if one.full_name.lower().startswith(start)]

    def clone_url(self, repository: FakeRepository) -> str:
        """Return the clone URL of a repository."""
        return repository.url or f"{self.url}/{repository.full_name}.git"

    def has_file(self, full_name: str, path: str, branch: str | None) -> bool:
        """Return whether a branch of a repository has a file; None is the default branch."""
        return any(
            path in one.files and branch in {None, one.default_branch}
            for one in self.repositories
            if one.full_name.lower() == full_name.lower()
        )

    @abstractmethod
    async def handle(self, request: Request) -> Response:
        """Answer a request as the provider does."""

    async def answer(self, request: Request) -> Response:
        """Answer a request, and record it."""
        body = await request.body()
        answer = self.instead.popleft() if self.instead else await self.handle(request)
        raw = request.scope["raw_path"].decode()
        path = raw + (f"?{request.url.query}" if request.url.query else "")
        self.requests.append(Answered(request.method, path, dict(request.headers), body, answer.status_code))
        return answer


@functools.cache
def sender_tls() -> ssl.SSLContext:
    """Return what the fakes send deliveries with: to read the system's authorities takes 50 ms each time."""
    return ssl.create_default_context()


def refusal(status: int, message: str, **headers: str) -> Response:
    """Return an error as GitHub and Gitea word it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"message": message}, status, named)


async def json_of(request: Request) -> Any:
    """Return the JSON body of a request."""
    return json.loads(await request.body())


def application(fake: FakeApi) -> Starlette:
    """Return the web application of a fake."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", fake.answer, methods=methods)])


@contextmanager
def serving(fake: FakeApi) -> Iterator[None]:
    """Serve a fake within the block."""
    fake.port = fake.port or free_ports(1)[0]
    server = uvicorn.Server(
        uvicorn.Config(application(fake), host="127.0.0.1", port=fake.port, log_config=None)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
