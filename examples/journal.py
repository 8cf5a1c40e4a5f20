"""Keep the accepted requests in a file, and the reports about them until Pushgate has received them.

This module needs only Python's standard library: copy it together with `execution.py` and `step.py`.
"""

import itertools
import json
import re
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from execution import read
from step import Unusable, log

Request = Mapping[str, Any]
"""An execution request, as `read` returns it."""

_PAGE = re.compile(r"https?://[!-~]{1,1900}")
_MAX_SUMMARY = 10_000
_MAX_METRIC = 1e300
_MAX_METRICS = 100
_MAX_OUTPUTS = 200
_MAX_NAME = 200
_REPORT_TIMEOUT_SECONDS = 10
_REPORT_PAUSE_SECONDS = 30


@dataclass(frozen=True)
class Report:
    """What a runner reports about a request, beside the time. What is empty is left out.

    The summary may be Markdown. Of the metadata, the numbers are reported.
    """

    state: str
    summary: str = ""
    url: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Mapping[str, str]] = ()

    def contents(self) -> dict[str, Any]:
        """Return the fields within the bounds of a report."""
        numbers = {
            name: value
            for name, value in self.metadata.items()
            # Neither infinite nor NaN, which compares as False.
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and -_MAX_METRIC < value < _MAX_METRIC
            and _is_name(name)
        }
        outputs = [output for output in self.outputs if _is_name(output["name"])]
        found = {
            "state": self.state,
            # Surrogates cannot be encoded.
            "summary": self.summary[:_MAX_SUMMARY].encode(errors="backslashreplace").decode(),
            "url": self.url if _PAGE.fullmatch(self.url or "") else "",
            "metrics": dict(itertools.islice(numbers.items(), _MAX_METRICS)),
            "outputs": outputs[:_MAX_OUTPUTS],
        }
        return {name: value for name, value in found.items() if value}


class Journal:
    """The accepted requests, in a file, so that the broker no longer needs to keep them.

    RabbitMQ redelivers a message that a consumer holds for too long, 30 minutes by default. So a runner
    first stores the request, then acknowledges it, and only then executes it. After a restart, it executes
    the requests that it had not finished.
    """

    def __init__(self, path: Path, check: Callable[[Request], None], *tables: str) -> None:
        """Open the journal in this file, or create it, with further tables.

        `check` raises `Unusable` for what cannot be run.
        """
        self._check = check
        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self.database.execute("PRAGMA synchronous = FULL")
        for table in (
            "requests (id TEXT PRIMARY KEY, request TEXT NOT NULL, redrive INTEGER NOT NULL, ended TEXT)",
            "cancelled (id TEXT NOT NULL, redrive INTEGER NOT NULL, PRIMARY KEY (id, redrive))",
            "reports (number INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL, body TEXT NOT NULL)",
            *tables,
        ):
            self.database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
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
            self._check(request)
        except Unusable as error:
            log(f"rejected for good: {error}")
            self.report(request, Report("rejected", str(error)))
            return False
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            stored = self.database.execute(
                "INSERT INTO requests (id, request, redrive) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE"
                " SET request = excluded.request, redrive = excluded.redrive, ended = NULL"
                " WHERE excluded.redrive > redrive",
                (request["id"], json.dumps(request), request["redrive"]),
            )
            if stored.rowcount:
                self.report(request, Report("accepted"))
        return True

    def pending(self, limit: int | None = None) -> list[Request]:
        """Return the stored requests that have not ended, in the order in which they arrived."""
        found = self.database.execute(
            "SELECT request FROM requests WHERE ended IS NULL ORDER BY rowid LIMIT ?",
            (-1 if limit is None else limit,),
        )
        return [json.loads(request) for (request,) in found]

    def end(self, request: Request, report: Report) -> None:
        """Record how a request ended, which never changes."""
        ended = report.summary.partition("\n")[0]
        log(f"{request['id']} {ended}")
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute("UPDATE requests SET ended = ? WHERE id = ?", (ended, request["id"]))
            self.report(request, report)

    def cancel(self, execution: str, redrive: int | None = None) -> bool:
        """Record that an operator has cancelled a request; return False if it is not here, or has ended.

        A message names the `redrive` that is cancelled: a request with a higher one is a later order.
        """
        stored = self.database.execute(
            "INSERT OR IGNORE INTO cancelled SELECT id, redrive FROM requests"
            " WHERE id = ? AND redrive <= coalesce(?, redrive) AND ended IS NULL",
            (execution, redrive),
        )
        return stored.rowcount > 0

    def is_cancelled(self, request: Request) -> bool:
        """Return whether an operator has cancelled a request."""
        key = (request["id"], request["redrive"])
        found = self.database.execute("SELECT 1 FROM cancelled WHERE id = ? AND redrive = ?", key)
        return found.fetchone() is not None

    def report(self, request: Request, report: Report) -> None:
        """Store a report for Pushgate: in the same transaction as what it reports, if there is one."""
        if not request.get("status_url"):
            return
        # The sequence grows from report to report, also if another runner continues.
        said = {"id": request["id"], "at": now(), "sequence": time.time_ns() // 1000}
        body = json.dumps({**said, **report.contents(), "runner": socket.gethostname()})
        self.database.execute("INSERT INTO reports (url, body) VALUES (?, ?)", (request["status_url"], body))

    def send_reports(self) -> None:
        """Send the stored reports, oldest first; while Pushgate cannot be reached, they stay."""
        if time.monotonic() < self._send_after:
            return
        stored = self.database.execute("SELECT number, url, body FROM reports ORDER BY number").fetchall()
        for number, url, body in stored:
            try:
                answer = _post(url, body.encode())
                if answer.get("cancel_requested_at"):
                    self.cancel(json.loads(body)["id"])
            except Unusable as error:
                log(str(error))
            except OSError as error:
                log(f"a report could not be sent, and will be repeated: {error}")
                self._send_after = time.monotonic() + _REPORT_PAUSE_SECONDS
                return
            self.database.execute("DELETE FROM reports WHERE number = ?", (number,))


def _is_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= _MAX_NAME


def _post(url: str, body: bytes) -> dict[str, Any]:
    """Post a report; return the answer. Raises `Unusable` if it is refused for good, `OSError` otherwise."""
    if not url.startswith(("https://", "http://")):
        raise Unusable(f"this URL is not http or https: {url[:100]}")
    report = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked
    try:
        with urllib.request.urlopen(report, timeout=_REPORT_TIMEOUT_SECONDS) as response:  # noqa: S310
            return dict(json.load(response))
    except (ValueError, TypeError):
        # Not from Pushgate, or empty.
        return {}
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in {408, 425, 429}:  # noqa: PLR2004
            raise
        raise Unusable(f"a report was refused: {error}: {error.read(1000)!r}") from error


def now() -> str:
    """Return the time, as reports and tables have it."""
    return datetime.now(UTC).isoformat()
