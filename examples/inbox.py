"""Keep the accepted requests in a file, and execute them one by one.

This module needs only Python's standard library: copy it together with `execution.py` and `step.py`.
"""

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from execution import execute
from step import Unusable, log

MAX_ATTEMPTS = 3
"""How often a request is attempted."""

_PAUSE_SECONDS = 5


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
        except (ValueError, TypeError, LookupError) as error:
            return f"without success: the request is malformed: {error!r}"
        except OSError as error:
            log(f"attempt {number} of {MAX_ATTEMPTS} failed: {error}")
            if number < MAX_ATTEMPTS:
                time.sleep(_PAUSE_SECONDS)
    return "without success: see above"
