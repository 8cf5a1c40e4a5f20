"""Keep the accepted requests in a file, execute them one by one, and report how they end.

This module needs only Python's standard library: copy it together with `execution.py` and `step.py`.
"""

import fcntl
import json
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from execution import check, execute, read
from step import Result, Unusable, log

MAX_ATTEMPTS = 3
"""How often a request is attempted, including attempts that ended with the runner's own process."""

REPORT_EVERY_SECONDS = 300
"""How often a runner reports that it still runs."""

_PAUSE_SECONDS = 5
_MAX_SUMMARY = 10_000
_REPORT_TIMEOUT_SECONDS = 10
_REPORT_PAUSE_SECONDS = 30


class Inbox:
    """The accepted requests, in a file, so that the broker no longer needs to keep them.

    RabbitMQ redelivers a message that a consumer holds for too long, 30 minutes by default. So a runner
    first stores the request, then acknowledges it, and only then executes it. After a restart, it executes
    the requests that it had not finished.
    """

    def __init__(self, path: Path) -> None:
        """Open the inbox in this file, or create it."""
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self._database.execute("PRAGMA synchronous = FULL")
        for table in (
            "requests (id TEXT PRIMARY KEY, request TEXT NOT NULL, redrive INTEGER NOT NULL, ended TEXT)",
            "attempts (id TEXT NOT NULL, redrive INTEGER NOT NULL, started_at TEXT NOT NULL)",
            "reports (number INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL, body TEXT NOT NULL)",
        ):
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        self._lock = path.with_suffix(".lock")
        self._send_after = 0.0

    def take(self, body: bytes, headers: Mapping[str, Any] | None) -> bool:
        """Store the request in a message; return False if the message is to be rejected for good.

        The request is on disk when this returns True: only then acknowledge the message. The broker delivers
        at least once: a repetition has the same id, and changes nothing. If an operator has republished the
        request, it has a higher `redrive`, and is executed again.
        """
        try:
            request = read(body, headers)
        except Unusable as error:
            log(f"rejected for good: {error}")
            return False
        try:
            check(request)
        except Unusable as error:
            log(f"rejected for good: {error}")
            self._report(request, "rejected", str(error))
            return False
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            stored = self._database.execute(
                "INSERT INTO requests (id, request, redrive) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE"
                " SET request = excluded.request, redrive = excluded.redrive, ended = NULL"
                " WHERE excluded.redrive > redrive",
                (request["id"], json.dumps(request), request["redrive"]),
            )
            if stored.rowcount:
                self._report(request, "accepted")
        return True

    def has_pending(self) -> bool:
        """Return whether a stored request has not ended yet."""
        return self._oldest_pending() is not None

    def is_executing(self) -> bool:
        """Return whether a process executes the stored requests now."""
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def execute_pending(self) -> None:
        """Execute the stored requests, in the order in which they arrived, and send the reports.

        Of several processes that share the file, one executes at a time.
        """
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.send_reports()
            while (request := self._oldest_pending()) is not None:
                self._attempt(request)
                self.send_reports()

    def _oldest_pending(self) -> dict[str, Any] | None:
        found = self._database.execute(
            "SELECT request FROM requests WHERE ended IS NULL ORDER BY rowid LIMIT 1"
        ).fetchone()
        return None if found is None else json.loads(found[0])

    def _attempt(self, request: Mapping[str, Any]) -> None:
        """Execute a request; record the end, unless something was unreachable and attempts are left."""
        number = self._begin(request)
        if number > MAX_ATTEMPTS:
            self._end(request, Result(status=1, summary=f"gave up after {MAX_ATTEMPTS} attempts"))
            return
        try:
            with self._reporting(request):
                result = execute(request)
        except Unusable as error:
            result = Result(status=1, summary=str(error))
        except (ValueError, TypeError, LookupError) as error:
            result = Result(status=1, summary=f"the request is malformed: {error!r}")
        except OSError as error:
            log(f"attempt {number} of {MAX_ATTEMPTS} failed: {error}")
            if number < MAX_ATTEMPTS:
                time.sleep(_PAUSE_SECONDS)
                return
            result = Result(status=1, summary=str(error))
        self._end(request, result)

    @contextmanager
    def _reporting(self, request: Mapping[str, Any]) -> Iterator[None]:
        """Send reports while a request is executed, which nothing else does meanwhile."""
        ended = threading.Event()

        def repeat() -> None:
            self.send_reports()
            while not ended.wait(REPORT_EVERY_SECONDS):
                self._report(request, "running")
                self.send_reports()

        repeating = threading.Thread(target=repeat)
        repeating.start()
        try:
            yield
        finally:
            ended.set()
            repeating.join()

    def _begin(self, request: Mapping[str, Any]) -> int:
        """Record an attempt before it begins; return its number, from 1."""
        key = (request["id"], request["redrive"])
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO attempts VALUES (?, ?, ?)", (*key, _now()))
            self._report(request, "running")
            [number] = self._database.execute(
                "SELECT count(*) FROM attempts WHERE id = ? AND redrive = ?", key
            ).fetchone()
        return int(number)

    def _end(self, request: Mapping[str, Any], result: Result) -> None:
        ended = f"with status {result.status}" + (f": {result.summary.strip()}" if result.summary else "")
        log(f"{request['id']} ended {ended}")
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("UPDATE requests SET ended = ? WHERE id = ?", (ended, request["id"]))
            state = "succeeded" if result.status == 0 else "failed"
            self._report(request, state, f"ended {ended}", result.metrics)

    def _report(
        self,
        request: Mapping[str, Any],
        state: str,
        summary: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Store a report for Pushgate, in the same transaction as what it reports."""
        if not request.get("status_url"):
            return
        report = {
            "id": request["id"],
            "state": state,
            "at": _now(),
            # Grows from report to report, also if another runner continues.
            "sequence": time.time_ns() // 1000,
            # Surrogates cannot be encoded.
            "summary": summary and summary[:_MAX_SUMMARY].encode(errors="backslashreplace").decode(),
            "metrics": metrics,
            "runner": socket.gethostname(),
        }
        body = json.dumps({name: value for name, value in report.items() if value})
        self._database.execute("INSERT INTO reports (url, body) VALUES (?, ?)", (request["status_url"], body))

    def send_reports(self) -> None:
        """Send the stored reports, oldest first; while Pushgate cannot be reached, they stay."""
        if time.monotonic() < self._send_after:
            return
        stored = self._database.execute("SELECT number, url, body FROM reports ORDER BY number").fetchall()
        for number, url, body in stored:
            try:
                _post(url, body.encode())
            except Unusable as error:
                log(str(error))
            except OSError as error:
                log(f"a report could not be sent, and will be repeated: {error}")
                self._send_after = time.monotonic() + _REPORT_PAUSE_SECONDS
                return
            self._database.execute("DELETE FROM reports WHERE number = ?", (number,))


def _post(url: str, body: bytes) -> None:
    """Post a report. Raises `Unusable` if it is refused for good, `OSError` if it may be repeated."""
    if not url.startswith(("https://", "http://")):
        raise Unusable(f"this URL is not http or https: {url[:100]}")
    report = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked
    try:
        with urllib.request.urlopen(report, timeout=_REPORT_TIMEOUT_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in {408, 425, 429}:  # noqa: PLR2004
            raise
        raise Unusable(f"a report was refused: {error}: {error.read(1000)!r}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat()
