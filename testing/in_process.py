"""A gateway in this process, without a socket: requests go to its ASGI application."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from gateway.app import Service
from gateway.data_dir import open_data
from gateway.settings import Settings
from testing.service import ADMIN_TOKEN, migrated_database

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the application."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class InProcess:
    """A gateway of the role `web` on a data folder, or on the database of a URL. It runs in a thread."""

    def __init__(self, data: Path, *, database_url: str | None = None, public_url: str | None = None) -> None:
        """Prepare it; the application begins with the block."""
        if database_url is None:
            data.mkdir(parents=True)
            (data / "pushgate.db").write_bytes(migrated_database())
        settings = Settings(
            data_dir=data,
            admin_token=SecretStr(ADMIN_TOKEN),
            fetch_allow_http=True,
            role="web",
            public_url=public_url,
            database_url=None if database_url is None else SecretStr(database_url),
            secret_key=None if database_url is None else SecretStr("k" * 64),
        )
        self._opened = open_data(settings)
        self.database = self._opened.database
        self.application: ASGIApp = Service(settings, self._opened).application
        self._lifespan = AsyncExitStack()

    def __enter__(self) -> Self:
        """Start."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        running = self._lifespan.enter_async_context(lifespan(self.application))
        asyncio.run_coroutine_threadsafe(running, self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the application and the thread."""
        asyncio.run_coroutine_threadsafe(self._lifespan.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = ADMIN_TOKEN,
        **headers: str,
    ) -> Answer:
        """Send a request with a body, bytes or a value that is sent as JSON; return the answer."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            given["authorization"] = f"Bearer {token}"
        return self.run(exchange(self.application, method, path, given, content))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop of the gateway; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


async def exchange(
    application: ASGIApp, method: str, url: str, headers: Mapping[str, str], content: bytes
) -> Answer:
    """Send one request to an application and return its whole answer."""
    parts = urlsplit(url)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": parts.path,
        "raw_path": quote(parts.path).encode(),
        "query_string": parts.query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8080),
    }
    sent: list[Message] = []

    unread = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        # The client waits for the answer: an application that looks whether it has left sees nothing.
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    async def send(message: Message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    [start] = [message for message in sent if message["type"] == "http.response.start"]
    return Answer(
        start["status"],
        {name.decode(): value.decode("latin-1") for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body"),
    )


@asynccontextmanager
async def lifespan(application: ASGIApp) -> AsyncIterator[None]:
    """Begin and end an application, as a server does."""
    events: asyncio.Queue[Message] = asyncio.Queue()
    answers: asyncio.Queue[Message] = asyncio.Queue()

    async def receive() -> Message:
        return await events.get()

    async def send(message: Message) -> None:
        await answers.put(message)

    async def run() -> None:
        await application({"type": "lifespan"}, receive, send)

    running = asyncio.create_task(run())
    await events.put({"type": "lifespan.startup"})
    assert (await answers.get())["type"] == "lifespan.startup.complete"
    yield
    await events.put({"type": "lifespan.shutdown"})
    assert (await answers.get())["type"] == "lifespan.shutdown.complete"
    await running
