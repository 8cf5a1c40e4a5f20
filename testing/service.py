"""The real gateway in its own process, used through its API, its command line and its webhooks."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gateway.cli.api_client import Client, post_webhook
from gateway.cli.main import main
from gateway.store.database import Database
from providers import github
from testing.git_host import GitHost, WorkTree
from testing.github import push_payload

T = TypeVar("T")

PUSHGATE = Path(sys.executable).with_name("pushgate")
# Only a busy machine needs this long.
WAIT_SECONDS = float(os.environ.get("PUSHGATE_TESTS_WAIT_SECONDS", "60"))
ADMIN_TOKEN = "the admin token of all of these tests"

VALOHAI_YAML = """\
- step:
    name: train
    image: docker.io/library/python:3.12
    command: python train.py {parameters}
    parameters:
      - name: epochs
        type: integer
        default: 3
"""


# Importing the gateway's modules takes a second, most of the time of a start, and a test run starts hundreds
# of gateways and commands: so one process imports them, and each of those is forked from it.
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(
    [
        "gateway.cli.app",
        "gateway.server.server",
        "gateway.data_dir",
        "pytest",
        "rich.table",
        "yaml",
        __name__,
        "testing.frozen",
    ]
)


@functools.cache
def migrated_database() -> bytes:
    """Return an empty SQLite database with the current schema: all migrations take half a second."""
    with tempfile.TemporaryDirectory(prefix="pushgate-migrated-") as folder:
        path = Path(folder, "pushgate.db")
        with closing(Database(f"sqlite:///{path}")) as database:
            database.migrate()
        return path.read_bytes()


class Service:
    """One gateway on one data folder; it can be killed and started again."""

    def __init__(self, data: Path, **settings: str) -> None:
        """Take settings as environment variables without their prefix, such as AMQP_URL."""
        self.data = data
        self._settings = settings
        self._process: _Copy | subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, port: int = 0) -> None:
        """Start, on any free port if none is given, and return once it listens."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PUSHGATE_")}
        settings = {
            "ADMIN_TOKEN": ADMIN_TOKEN,
            "FETCH_ALLOW_HTTP": "true",
            "LOG_FORMAT": "json",
            **self._settings,
        }
        self._log.touch()
        start = self._log.stat().st_size
        self._process = self._launched(
            ["serve", "--port", str(port), "--data", str(self.data)],
            {**own, **{f"PUSHGATE_{name}": value for name, value in settings.items()}},
        )
        self.url = wait_for(lambda: self._address(start), "the gateway listens")

    def _launched(
        self, arguments: list[str], environment: dict[str, str]
    ) -> "_Copy | subprocess.Popen[bytes]":
        """Run the command in its own process, and return the process."""
        if not self.data.exists() and "DATABASE_URL" not in self._settings:
            self.data.mkdir(mode=0o700, parents=True)
            (self.data / "pushgate.db").write_bytes(migrated_database())
        return _Copy(arguments, environment, self._log)

    @property
    def _log(self) -> Path:
        return self.data.parent / f"{self.data.name}.log"

    def log(self, start: int = 0) -> list[dict[str, Any]]:
        """Return what the gateway has logged."""
        text = self._log.read_bytes()[start:].decode()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def stored(self) -> bytes:
        """Return the contents of all files of the data folder; read again if one vanishes meanwhile."""

        def read() -> list[bytes] | None:
            try:
                return [path.read_bytes() for path in self.data.rglob("*") if path.is_file()]
            except FileNotFoundError:
                return None

        return b"".join(wait_for(read, "no file vanishes while the data folder is read"))

    def kill(self) -> None:
        """End it as the kernel would when memory is short: at once, without any clean-up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> int:
        """End it as an operator would; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(WAIT_SECONDS)
        self._process = None
        return status

    def __enter__(self) -> Self:
        """Start; leave no process if that fails."""
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process."""
        if self._process is not None:
            self.kill()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return int(next(line["pid"] for line in reversed(self.log()) if line["event"] == "listening"))

    @property
    def admin_token(self) -> str:
        """The admin token of its REST API."""
        return ADMIN_TOKEN

    @property
    def api(self) -> Client:
        """A client of its REST API."""
        return Client(self.url, ADMIN_TOKEN)

    def connect(self, url: str, *triggers: str, **more: Any) -> Any:
        """Connect a repository on GitHub; a trigger is `step@branch`."""
        body = {
            "provider": "github",
            "url": url,
            "project": "digits",
            "triggers": [
                {"name": text, "branches": [text.partition("@")[2]], "run": {"step": text.partition("@")[0]}}
                for text in triggers
            ],
            "force": True,
            **more,
        }
        # Whether the remote can be read is the subject of few tests.
        made = self.api.send("POST", "/connections", body, wait=0)
        # The port changes when the gateway starts again; the connections do not.
        made["path"] = "/hooks/" + made["id"]
        return made

    def deliver(
        self, connection: Any, body: bytes, *, event: str = "push", **changes: str
    ) -> tuple[int, Any]:
        """Sign and post a delivery as GitHub would; `changes` replace headers."""
        headers = github.sign(
            event=event,
            body=body,
            secret=connection["secret"].encode(),
            delivery=str(uuid.uuid4()),
            now=datetime.now(UTC),
        )
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        return post_webhook(self.url + connection["path"], body, headers)

    def settled(self, delivery: str) -> Any:
        """Wait until each ref update of a delivery has ended; return the delivery."""

        def ended() -> Any:
            found = self.api.get(f"/deliveries/{delivery}")
            return found if all(update["state"] != "pending" for update in found["updates"]) else None

        return wait_for(ended, f"delivery {delivery} is settled")

    def fetched(self, connection: Any) -> list[Any]:
        """Request a fetch, after the first look; return the updates that it found."""
        path = f"/connections/{connection['id']}"
        before = wait_for(
            lambda: self.api.get(path)["reconciliation"]["reconciled_at"], "the first look has ended"
        )
        self.api.send("POST", f"{path}/fetch", {})
        wait_for(
            lambda: self.api.get(path)["reconciliation"]["reconciled_at"] != before,
            "the remote was looked at",
        )
        found = self.api.get(path)["reconciliation"]["delivery"]
        return list(self.settled(found)["updates"]) if found else []

    def _address(self, start: int) -> str | None:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(self._log.read_text())
        return next(
            (f"http://{line['address']}" for line in self.log(start) if line["event"] == "listening"), None
        )


class Command(Service):
    """A gateway started in a new interpreter on an empty folder: a forked process could hide faults."""

    def _launched(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen([PUSHGATE, *arguments], env=environment, stderr=log)


class _Copy:
    """A fork of the process that has imported everything; runs the command, with the interface of Popen.

    It appends its errors to a file, and its output too if it is given.
    """

    def __init__(
        self, arguments: list[str], environment: dict[str, str], errors: Path, output: Path | None = None
    ) -> None:
        given = (arguments, environment, Path.cwd(), errors, output)
        # A daemon in multiprocessing's sense: it ends with the test run, however the test ended.
        self._process = _LOADED.Process(target=_run, args=given, daemon=True)
        self._process.start()

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        assert status is not None, f"it has not ended within {timeout} s"
        return status


def _run(
    arguments: list[str], environment: dict[str, str], folder: Path, errors: Path, output: Path | None
) -> None:
    """Run the command with nothing of the forked process but its imported modules."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in ((sys.stderr, errors), (sys.stdout, output)):
        if path is not None:
            with path.open("ab") as written:
                os.dup2(written.fileno(), stream.fileno())
    sys.argv = ["pushgate", *arguments]
    main()


class Project:
    """A repository on a real git server, and a developer's clone of it."""

    def __init__(self, host: GitHost, folder: Path, name: str = "acme/digits") -> None:
        """Make it, with one commit on main."""
        self.name = name
        self.url = host.create(f"{name}.git")
        self.tree = WorkTree(folder / "clone" / name, self.url)
        self.first = self.push("The first model", {"valohai.yaml": VALOHAI_YAML, "train.py": "print(1)\n"})

    def push(self, message: str, files: dict[str, str]) -> str:
        """Commit, push, and return the commit's id."""
        commit = self.tree.commit(message, files)
        self.tree.push()
        return commit

    def push_tag(self, name: str) -> str:
        """Push an annotated tag of the newest commit, and return the id of its own object."""
        self.tree.git("tag", "--annotate", "--message", "A release", name)
        self.tree.push(f"refs/tags/{name}")
        return self.tree.git("rev-parse", name)

    def payload(self, before: str | None, after: str | None, ref: str = "refs/heads/main") -> bytes:
        """Return GitHub's payload of a push."""
        return push_payload(url=self.url, full_name=self.name, ref=ref, before=before, after=after)


def run_pushgate(
    *arguments: str | Path, service: Service | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a fork of a loaded process; with a service, as its admin."""
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory(prefix="pushgate-command-") as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        output.touch()
        process = _Copy(given, _command_environment(service, variables), errors, output)
        status = process.wait(WAIT_SECONDS)
        return subprocess.CompletedProcess(
            given, status, *(path.read_text(encoding="utf-8") for path in (output, errors))
        )


def run_interpreter(
    *arguments: str | Path, service: Service | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Do the same in a new interpreter: for its encodings, and for commands that have child processes."""
    return subprocess.run(
        [PUSHGATE, *arguments],
        env=_command_environment(service, variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )


def _command_environment(service: Service | None, variables: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment of a command: a wide terminal, and, with a service, what its admin sets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUSHGATE_")}
    if service is not None:
        environment |= {"PUSHGATE_URL": service.url, "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN}
    # The contexts of whoever runs the tests are in the home folder.
    return {**environment, "COLUMNS": "200", "XDG_CONFIG_HOME": os.devnull, **(variables or {})}


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Return the condition's result once it is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"after {seconds:.0f} s still not true: {what}")
