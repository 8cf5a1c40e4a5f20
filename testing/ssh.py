"""A real SSH server that runs git's own upload-pack: asyncssh, in a thread of its own."""

import asyncio
import contextlib
import shlex
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncssh

from testing.git_host import ENVIRONMENT
from testing.ports import free_ports


class SshHost:
    """Serves the bare repositories of a folder to the holders of `authorized`, a list of public keys.

    `options` are passed to asyncssh.
    """

    def __init__(self, folder: Path, authorized: list[str], **options: Any) -> None:
        """Serve on a free port of 127.0.0.1 while the `with` block lasts."""
        self.folder = folder
        self.authorized = authorized
        self._options = options
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.port = 0
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def url(self, name: str) -> str:
        """Return the clone URL of a repository."""
        return f"ssh://git@127.0.0.1:{self.port}/{name}"

    @property
    def known_hosts(self) -> str:
        """The server's known_hosts line."""
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode().strip()}"

    def authorize(self, public: str) -> None:
        """Authorize another key."""
        self.authorized.append(public)

    def change_host_key(self) -> None:
        """Listen at the same address with another host key."""
        port = self.port
        self._close()
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._call(self._listen(port))

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        self._call(self._listen(*free_ports(1)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        self._close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self, port: int) -> None:
        self._server = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[self.host_key],
            server_factory=lambda: _Guard(self.authorized, self._connections),
            process_factory=self._serve,
            encoding=None,
            **self._options,
        )
        self.port = self._server.get_port()

    async def _serve(self, process: Any) -> None:
        words = shlex.split(process.command or "")
        if len(words) != 2 or words[0] != "git-upload-pack":
            process.exit(1)
            return
        protocol = {name: value for name, value in process.env.items() if name == "GIT_PROTOCOL"}
        child = await asyncio.create_subprocess_exec(
            "git",
            "upload-pack",
            self.folder / words[1].lstrip("/"),
            env={**ENVIRONMENT, **protocol},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.TaskGroup() as passing:
                incoming = passing.create_task(_pass(process.stdin, child.stdin))
                outgoing = [(child.stdout, process.stdout), (child.stderr, process.stderr)]
                await asyncio.gather(*(_pass(source, target) for source, target in outgoing))
                incoming.cancel()
            process.exit(await child.wait())
        except* (OSError, asyncssh.Error):
            # The client has disconnected: end git.
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def _close(self) -> None:
        async def close() -> None:
            self._server.close()
            await self._server.wait_closed()
            # Closing the server only stops new connections; the existing ones remain.
            for connection in tuple(self._connections):
                connection.abort()
                await connection.wait_closed()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

        self._call(close())

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


class _Guard(asyncssh.SSHServer):
    """Accepts the keys that are authorized at the time of the connection."""

    def __init__(self, authorized: list[str], connections: set[asyncssh.SSHServerConnection]) -> None:
        self._authorized = authorized
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Add the connection."""
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh calls it so
        """Remove the connection."""
        self._connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        """Require a key."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Return whether a key is authorized."""
        known = [asyncssh.import_public_key(public) for public in self._authorized]
        return username == "git" and key in known


async def _pass(source: Any, target: Any) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    if isinstance(target, asyncio.StreamWriter):
        target.close()
