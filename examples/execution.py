"""What every runner does with an execution request, whichever library has brought it.

Fetch the package, compare its SHA-256, unpack it into a folder of its own, run the step's commands there. It
needs Python's standard library only: copy it, and change it to what your runners need.
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT = 3
"""How often a request is tried."""

_PAUSE_SECONDS = 5
_PART = 1024 * 1024


class Unusable(Exception):
    """The request can never be carried out, here or elsewhere: reject it for good."""


class Inbox:
    """Requests that were taken over, in a file: from then on they are ours, and the broker may forget them.

    RabbitMQ takes back what a consumer holds for too long, 30 minutes by default. So a runner writes down
    what it was given, acknowledges, and only then begins. What it was at when it ended, it begins anew when
    it starts again.
    """

    def __init__(self, path: Path) -> None:
        """Keep it in this file."""
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS requests (id TEXT PRIMARY KEY, request TEXT NOT NULL, ended TEXT)"
        )

    def take(self, request: Mapping[str, Any]) -> None:
        """Take a request over; it is on disk when this returns.

        The broker delivers at least once: a repetition has the same id, and changes nothing.
        """
        row = (request["id"], json.dumps(request))
        self._database.execute("INSERT OR IGNORE INTO requests (id, request) VALUES (?, ?)", row)

    def work_off(self) -> None:
        """Carry out what was taken over, in that order."""
        waiting = "SELECT id, request FROM requests WHERE ended IS NULL ORDER BY rowid"
        for request_id, text in self._database.execute(waiting).fetchall():
            ended = _carry_out(json.loads(text))
            tell(f"{request_id} ended {ended}")
            self._database.execute("UPDATE requests SET ended = ? WHERE id = ?", (ended, request_id))


def _carry_out(request: Mapping[str, Any]) -> str:
    """Execute a request, and again where something was out of reach; return how it ended."""
    for number in range(1, LIMIT + 1):
        try:
            return f"with status {execute(request)}"
        except Unusable as error:
            return f"without success: {error}"
        except OSError as error:
            tell(f"try {number} of {LIMIT} has failed: {error}")
            if number < LIMIT:
                time.sleep(_PAUSE_SECONDS)
    return "without success: see above"


def read(body: bytes) -> dict[str, Any]:
    """Return a message's body as a request, whichever mode of CloudEvents it has. Raises `Unusable`."""
    try:
        request: dict[str, Any] = json.loads(body)
        if "specversion" in request:
            request = request["data"]
        kind = request["execution"]["kind"]
    except (ValueError, TypeError, KeyError) as error:
        raise Unusable(f"this is no execution request: {error!r}") from error
    if kind != "step" or request["package"] is None:
        raise Unusable(f"this runner executes steps with a package, and this is a {kind}")
    return request


def execute(request: Mapping[str, Any]) -> int:
    """Run a request's step, with its output to ours; return the exit status. Raises `Unusable`, `OSError`."""
    with tempfile.TemporaryDirectory(prefix="execution-") as path:
        folder = Path(path)
        archive = folder / "package"
        _fetch(request["package"], archive)
        code = folder / "code"
        _unpack(archive, code, request["package"]["format"])
        environment = {**os.environ, **request["execution"]["environment_variables"]}
        for command in request["execution"]["command"]:
            print(f"+ {command}", flush=True)  # noqa: T201 - a runner shows what it does
            done = subprocess.run(["sh", "-c", command], cwd=code, env=environment, check=False)  # noqa: S603, S607
            if done.returncode != 0:
                return done.returncode
    return 0


def _fetch(package: Mapping[str, Any], path: Path) -> None:
    """Download the package. Whatever is behind the URL, only what was promised is kept."""
    if not package["url"].startswith(("https://", "http://")):
        raise Unusable(f"the package is behind no web address: {package['url'][:100]}")
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(package["url"], timeout=60) as answer, path.open("wb") as file:  # noqa: S310
        while part := answer.read(_PART):
            size += len(part)
            if size > package["size"]:
                raise Unusable("the package is larger than the request says")
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != package["sha256"]:
        raise Unusable("the package is not the one that the request names: its SHA-256 differs")


def _unpack(archive: Path, folder: Path, package_format: str) -> None:
    folder.mkdir()
    # The filter refuses what would leave the folder; Pythons before 3.11.4 have none.
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    if package_format == "tar.zst":
        subprocess.run(["tar", "--zstd", "-xf", archive, "-C", folder], check=True)  # noqa: S603, S607
        return
    with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(folder, **safely)  # noqa: S202 - filtered, see above


def tell(text: str) -> None:
    """Say something to whoever reads the runner's log."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    # One request from standard input, without a broker: `pushgate executions ID` prints it as `message`.
    sys.exit(execute(read(sys.stdin.buffer.read())))
