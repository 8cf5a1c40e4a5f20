"""Carry out an execution request, independently of the AMQP library that received it.

Fetch the package, check its SHA-256, unpack it into a new folder, and run the step's commands there. This
module needs only Python's standard library: copy it, and adapt it to your runners.
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

MAX_ATTEMPTS = 3
"""How often a request is attempted."""

_PAUSE_SECONDS = 5
_CHUNK_BYTES = 1024 * 1024


class Unusable(Exception):
    """The request can never be carried out, here or elsewhere: reject it for good."""


class Inbox:
    """The accepted requests, in a file, so that the broker no longer needs to keep them.

    RabbitMQ redelivers a message that a consumer holds for too long, 30 minutes by default. So a runner
    first stores the request, then acknowledges it, and only then executes it. After a restart, it executes
    the requests that it had not finished.
    """

    def __init__(self, path: Path) -> None:
        """Open the inbox in this file, or create it."""
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS requests"
            " (id TEXT PRIMARY KEY, request TEXT NOT NULL, redrive INTEGER NOT NULL, ended TEXT)"
        )

    def add(self, request: Mapping[str, Any]) -> None:
        """Store a request; it is on disk when this returns.

        The broker delivers at least once: a repetition has the same id, and changes nothing. If an operator
        has republished the request, it has a higher `redrive`, and is executed again.
        """
        self._database.execute(
            "INSERT INTO requests (id, request, redrive) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET request = excluded.request, redrive = excluded.redrive, ended = NULL"
            " WHERE excluded.redrive > redrive",
            (request["id"], json.dumps(request), request["redrive"]),
        )

    def execute_pending(self) -> None:
        """Execute the stored requests, in the order in which they arrived."""
        pending = "SELECT id, request FROM requests WHERE ended IS NULL ORDER BY rowid"
        for request_id, text in self._database.execute(pending).fetchall():
            ended = _attempt(json.loads(text))
            log(f"{request_id} ended {ended}")
            self._database.execute("UPDATE requests SET ended = ? WHERE id = ?", (ended, request_id))


def _attempt(request: Mapping[str, Any]) -> str:
    """Execute a request, with retries if something is unreachable; return how it ended."""
    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return f"with status {execute(request)}"
        except Unusable as error:
            return f"without success: {error}"
        except OSError as error:
            log(f"attempt {number} of {MAX_ATTEMPTS} failed: {error}")
            if number < MAX_ATTEMPTS:
                time.sleep(_PAUSE_SECONDS)
    return "without success: see above"


def read(body: bytes, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the request in a message, in either mode of CloudEvents. Raises `Unusable`.

    `redrive` is added to it: how often an operator has republished the request.
    """
    try:
        request: dict[str, Any] = json.loads(body)
        redrive = (headers or {}).get("ce-redrive", 0)
        if "specversion" in request:
            request, redrive = request["data"], request.get("redrive", 0)
        request["redrive"] = int(redrive)
        kind = request["execution"]["kind"]
    except (ValueError, TypeError, KeyError) as error:
        raise Unusable(f"this is not an execution request: {error!r}") from error
    if kind != "step" or request["package"] is None:
        raise Unusable(f"this runner executes steps with a package, and this is a {kind}")
    return request


def execute(request: Mapping[str, Any]) -> int:
    """Run a request's step and pass its output on; return the exit status. Raises `Unusable`, `OSError`."""
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
    """Download the package, and accept only the size and digest that the request names."""
    if not package["url"].startswith(("https://", "http://")):
        raise Unusable(f"the package's URL is not http or https: {package['url'][:100]}")
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(package["url"], timeout=60) as answer, path.open("wb") as file:  # noqa: S310
        while chunk := answer.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > package["size"]:
                raise Unusable("the package is larger than the request says")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != package["sha256"]:
        raise Unusable("the package's SHA-256 differs from the request's")


def _unpack(archive: Path, folder: Path, package_format: str) -> None:
    folder.mkdir()
    # The filter refuses paths that would leave the folder; Python before 3.11.4 does not have it.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    if package_format == "tar.zst":
        subprocess.run(["tar", "--zstd", "-xf", archive, "-C", folder], check=True)  # noqa: S603, S607
        return
    with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(folder, **options)  # noqa: S202 - filtered, see above


def log(text: str) -> None:
    """Write a line to the runner's log, on standard error."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    # Execute one request from standard input, without a broker: the `message` of `pushgate executions ID`.
    sys.exit(execute(read(sys.stdin.buffer.read())))
