"""The post-receive hook for a bare git server, in a real repository, on a real push."""

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from providers import generic
from providers.model import Event
from providers.post_receive import hook_script

SECRETS = {
    "hex": b"3d1c" * 16,
    "short": b"a",
    "of 64 bytes": b"0123456789abcdef" * 4,
    "longer than a block": b"0123456789abcdef" * 8,
    "with signs": b"It's 100% \\a $ecret \"!",
    "whsec": b"whsec_" + base64.b64encode(bytes(range(32))),
    "whsec, long": b"whsec_" + base64.b64encode(bytes(range(256))),
}
SHELLS = [
    shell
    for shell in ("dash", "bash --posix", "busybox sh", "ksh", "mksh", "yash")
    if shutil.which(shell.split()[0])
]
WAIT_SECONDS = 60.0


class Listener:
    """A tiny web server that answers with the given statuses, repeats the last, and keeps all requests."""

    def __init__(self, *statuses: int) -> None:
        """Listen."""
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self._arrived = threading.Condition()
        self._statuses = list(statuses)
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(listener.take({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_port}/hooks/cn_1?a=b&c='d'"

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Store a request, and return the status of its answer."""
        with self._arrived:
            self.requests.append((headers, body))
            self._arrived.notify_all()
            return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def wait_for(self, number: int) -> None:
        """Wait until so many requests have come."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= number, WAIT_SECONDS)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Repository:
    """A bare repository with the hook in it, and a clone."""

    def __init__(self, folder: Path) -> None:
        """Make both, with a first commit, not pushed yet."""
        self._folder = folder
        self.bare, self.clone, self.secret_file = folder / "bare.git", folder / "clone", folder / "a secret"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.com",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.com",
            "REMOTE_USER": 'a"d\\a',
            "no_proxy": "127.0.0.1",
        }
        self.git("init", "--quiet", "--bare", "--initial-branch=main", self.bare, at=folder)
        self.git("init", "--quiet", "--initial-branch=main", self.clone, at=folder)
        self.git("remote", "add", "origin", self.bare)
        self.commit()

    def install(self, url: str, secret: bytes, *, shell: str = "/bin/sh", retries: str = "0 0 0") -> None:
        """Install the hook, with shorter pauses between its tries."""
        self.secret_file.write_bytes(secret + b"\n")
        self.secret_file.chmod(0o600)
        script = hook_script(url=url, secret_file=str(self.secret_file))
        pauses = "in 5 15 60 180 600;"
        assert pauses in script
        hook = self.bare / "hooks" / "post-receive"
        hook.write_text(
            script.replace(pauses, f"in {retries};").replace("#!/bin/sh", f"#!{shell}"), encoding="utf-8"
        )
        hook.chmod(0o755)

    def git(self, *arguments: str | Path, at: Path | None = None) -> str:
        """Run git; return both its outputs."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=at or self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def commit(self) -> str:
        """Commit, and return the commit's id."""
        self.git("commit", "--quiet", "--allow-empty", "--message", "A commit")
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository."""
    return Repository(tmp_path)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Yield a function that starts listeners, which end with the test."""
    listeners: list[Listener] = []

    def start(*statuses: int) -> Listener:
        listeners.append(Listener(*statuses))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.stop()


def parsed(request: tuple[dict[str, str], bytes], secret: bytes) -> Event:
    """Verify and parse what arrived, as the webhook endpoint does."""
    headers, body = request
    now = datetime.now(UTC)
    return generic.parse(generic.verify(headers=headers, body=body, secrets=[secret], auth={}, now=now))


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_push_is_reported_and_verifies(
    repository: Repository, listen: Callable[..., Listener], secret: bytes
) -> None:
    """With keys shorter and longer than a block of the hash, of any characters, in either form."""
    listener = listen(202)
    repository.install(listener.url, secret)
    after = repository.git("rev-parse", "HEAD").strip()
    assert "Pushgate" not in repository.git("push", "origin", "main")
    event = parsed(listener.requests[0], secret)
    assert [(one.ref, one.before, one.after) for one in event.updates] == [("refs/heads/main", None, after)]
    assert event.pusher is not None
    assert event.pusher.name == 'a"d\\a'


@pytest.mark.parametrize("shell", SHELLS)
def test_every_ref_of_a_push_is_reported(
    repository: Repository, listen: Callable[..., Listener], shell: str
) -> None:
    """New, moved, deleted, with quotes and letters of all scripts in its name: one delivery, in any shell."""
    program, _, options = shell.partition(" ")
    path = shutil.which(program)
    listener = listen(202)
    secret = SECRETS["hex"]
    repository.git("push", "--quiet", "origin", "main", "main:old")
    repository.install(listener.url, secret, shell=f"{path} {options}".strip())
    first = repository.git("rev-parse", "HEAD").strip()
    second = repository.commit()
    repository.git("tag", "--annotate", "--message", "One", "v1")
    tag = repository.git("rev-parse", "v1").strip()
    repository.git(
        "push", "origin", "main", ":old", "v1", "main:refs/heads/q\"uo'te", "main:refs/heads/模型/$x"
    )
    event = parsed(listener.requests[0], secret)
    assert {one.name: (one.kind, one.before, one.after) for one in event.updates} == {
        "main": ("branch", first, second),
        "old": ("branch", first, None),
        "v1": ("tag", None, tag),
        "q\"uo'te": ("branch", None, second),
        "模型/$x": ("branch", None, second),
    }
    assert len(listener.requests) == 1


def test_2000_refs_are_sent_without_a_wait(repository: Repository, listen: Callable[..., Listener]) -> None:
    """The hook starts a handful of programs, whatever the number of refs."""
    listener = listen(202)
    repository.install(listener.url, SECRETS["hex"])
    repository.git("push", "--quiet", "origin", *(f"main:refs/heads/b{number}" for number in range(2000)))
    assert len(parsed(listener.requests[0], SECRETS["hex"]).updates) == 2000


def test_the_secret_is_no_argument_of_any_program(
    repository: Repository, listen: Callable[..., Listener], tmp_path: Path
) -> None:
    """A list of the machine's processes does not show it."""
    listener = listen(202)
    secret = SECRETS["hex"]
    repository.install(listener.url, secret)
    shims, log = tmp_path / "shims", tmp_path / "arguments"
    shims.mkdir()
    for program in ("openssl", "curl", "od", "tr", "sed", "cat", "date", "mktemp", "paste", "rm", "id"):
        shim = shims / program
        real = shutil.which(program)
        shim.write_text(
            f'#!/bin/sh\nprintf "%s " "{program}" "$@" >>"{log}"\nexec {real} "$@"\n', encoding="utf-8"
        )
        shim.chmod(0o755)
    repository.environment["PATH"] = f"{shims}:{repository.environment['PATH']}"
    repository.git("push", "--quiet", "origin", "main")
    arguments = log.read_text(encoding="utf-8")
    assert parsed(listener.requests[0], secret).updates
    assert "openssl dgst" in arguments
    assert "curl" in arguments
    for form in (secret.decode(), secret.hex(), base64.b64encode(secret).decode()):
        assert form not in arguments


def test_a_failure_is_tried_again_behind_the_pushs_back(
    repository: Repository, listen: Callable[..., Listener]
) -> None:
    """Retries have the same id and a new signature; the push succeeds with a message, without waiting."""
    listener = listen(503, 500, 202)
    repository.install(listener.url, SECRETS["whsec"])
    said = repository.git("push", "origin", "main")
    assert "Pushgate: not reached (status 503); retrying in the background" in said
    listener.wait_for(3)
    assert len({headers["webhook-id"] for headers, _ in listener.requests}) == 1
    assert len({body for _, body in listener.requests}) == 1
    for request in listener.requests:
        assert parsed(request, SECRETS["whsec"]).updates


def test_a_push_succeeds_while_nobody_listens(repository: Repository) -> None:
    """The pushing user gets a message."""
    repository.install("http://127.0.0.1:1/hooks/cn_1", SECRETS["hex"], retries="0")
    assert "Pushgate: not reached (status 000)" in repository.git("push", "origin", "main")


def test_a_refusal_is_said_and_not_tried_again(
    repository: Repository, listen: Callable[..., Listener]
) -> None:
    """A wrong secret stays wrong."""
    listener = listen(401)
    repository.install(listener.url, SECRETS["hex"])
    assert "Pushgate: refused with status 401" in repository.git("push", "origin", "main")
    assert len(listener.requests) == 1


@pytest.mark.parametrize("content", [None, b"", b"\n", b"whsec_\n"])
def test_a_push_succeeds_without_a_secret(repository: Repository, content: bytes | None) -> None:
    """The message names the missing file."""
    repository.install("http://127.0.0.1:1/hooks/cn_1", b"unused")
    if content is None:
        repository.secret_file.unlink()
    else:
        repository.secret_file.write_bytes(content)
    assert "cannot read a secret in" in repository.git("push", "origin", "main")
