"""A small but real git server for demo, tests and benchmarks: `git http-backend` over HTTP on loopback.

https://git-scm.com/docs/git-http-backend
"""

import gzip
import os
import ssl
import subprocess
import threading
from base64 import b64decode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

# Ignore the git configuration of the user who runs this.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada Byron",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada Byron",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


def git(*arguments: str, folder: Path) -> str:
    """Run git in a folder and return its output without the last line feed."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return done.stdout.rstrip("\n")


class WorkTree:
    """A developer's clone, in which tests commit files and push them."""

    def __init__(self, folder: Path, remote: str, *, object_format: str = "sha1") -> None:
        """Begin a new repository whose `origin` is `remote`."""
        self.folder = folder
        folder.mkdir(parents=True)
        git("init", "--quiet", "--initial-branch=main", f"--object-format={object_format}", folder=folder)
        git("remote", "add", "origin", remote, folder=folder)

    def commit(self, message: str, files: Mapping[str, str]) -> str:
        """Write files, commit them, and return the commit's id."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.head()

    def push(self, *refspecs: str) -> None:
        """Push with `--force`; without refspecs, push the current branch."""
        self.git("push", "--quiet", "--force", "origin", *(refspecs or ("HEAD",)))

    def head(self) -> str:
        """Return the id of the current commit."""
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        """Run any git command here."""
        return git(*arguments, folder=self.folder)


class GitHost:
    """Serves the bare repositories of a folder; requires `credentials`, if given.

    These are a user and a password for Basic auth, such as `ada:secret`, or the whole header `Bearer …`.
    `visits` has the path of each request that begins a fetch. While `answers` is cleared, no request is
    answered.
    """

    def __init__(
        self,
        folder: Path,
        *,
        credentials: str | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Serve on a free port of 127.0.0.1 while the `with` block lasts."""
        self.folder = folder
        self.credentials = credentials
        self.visits: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        folder.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Backend,), {"host": self, "folder": folder})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.port: int = self._server.server_address[1]
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def create(self, name: str, *, object_format: str = "sha1") -> str:
        """Make an empty bare repository that accepts pushes; return its URL."""
        bare = self.folder / name
        options = ("--quiet", "--bare", "--initial-branch=main", f"--object-format={object_format}")
        git("init", *options, str(bare), folder=self.folder)
        git("config", "http.receivepack", "true", folder=bare)
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the clone URL of a repository."""
        return f"{self._scheme}://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving, and wait for the server's thread."""
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Backend(BaseHTTPRequestHandler):
    """Runs `git http-backend` as a CGI program."""

    host: GitHost
    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a GET."""
        if self.path.endswith("service=git-upload-pack"):
            self.host.visits.append(self.path)
        self.host.answers.wait()
        self._run(b"")

    def do_POST(self) -> None:
        """Answer a POST; git compresses large ones and sends larger ones in chunks."""
        body = self._body()
        self._run(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _run(self, body: bytes) -> None:
        if not self._is_authorized():
            self._answer(401, {"www-authenticate": 'Basic realm="git"'}, b"")
            return
        path, _, query = self.path.partition("?")
        variables = {
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "REMOTE_USER": "demo",
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env={**ENVIRONMENT, **variables},
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._answer(status, headers, content)

    def _is_authorized(self) -> bool:
        required, given = self.host.credentials, self.headers.get("authorization", "")
        if required is None or required.startswith("Bearer "):
            return required in {None, given}
        return b64decode(given.removeprefix("Basic ")).decode() == required

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
