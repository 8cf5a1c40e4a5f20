"""Execute the accepted requests one by one, and report how they end.

This module needs only Python's standard library: copy it together with `execution.py`, `journal.py` and
`step.py`.
"""

import fcntl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from execution import check, execute
from journal import Journal, Report, Request, now
from step import Result, Stopped, Unusable, log, start, stop

MAX_ATTEMPTS = 3
"""How often a request is attempted, including attempts that ended with the runner's own process."""

REPORT_EVERY_SECONDS = 300
"""How often a runner reports that it still runs."""

_PAUSE_SECONDS = 5


class Inbox(Journal):
    """A journal whose requests this process executes."""

    def __init__(self, path: Path) -> None:
        """Open the inbox in this file, or create it."""
        attempts = "attempts (id TEXT NOT NULL, redrive INTEGER NOT NULL, started_at TEXT NOT NULL)"
        super().__init__(path, check, attempts)
        self._lock = path.with_suffix(".lock")
        self._executing: str | None = None

    def cancel(self, execution: str, redrive: int | None = None) -> bool:
        """Cancel a request; stop it if it is being executed. Return False if it is not here, or has ended."""
        is_new = super().cancel(execution, redrive)
        if is_new and execution == self._executing:
            stop()
        return is_new

    def has_pending(self) -> bool:
        """Return whether a stored request has not ended yet."""
        return bool(self.pending(1))

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
            while oldest := self.pending(1):
                self._attempt(oldest[0])
                self.send_reports()

    def _attempt(self, request: Request) -> None:
        """Execute a request; record the end, unless something was unreachable and attempts are left."""
        start()
        self._executing = request["id"]
        if self.is_cancelled(request):
            self.end(request, Report("cancelled", "cancelled before it began"))
            return
        number = self._begin(request)
        if number > MAX_ATTEMPTS:
            self._end(request, Result(status=1, summary=f"gave up after {MAX_ATTEMPTS} attempts"))
            return
        try:
            with self._reporting(request):
                result = execute(request)
        except Stopped:
            self.end(request, Report("cancelled", "stopped, because it was cancelled"))
            return
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

    def _begin(self, request: Request) -> int:
        """Record an attempt before it begins; return its number, from 1."""
        key = (request["id"], request["redrive"])
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute("INSERT INTO attempts VALUES (?, ?, ?)", (*key, now()))
            self.report(request, Report("running"))
            [number] = self.database.execute(
                "SELECT count(*) FROM attempts WHERE id = ? AND redrive = ?", key
            ).fetchone()
        return int(number)

    @contextmanager
    def _reporting(self, request: Request) -> Iterator[None]:
        """Send reports while a request is executed, which nothing else does meanwhile."""
        ended = threading.Event()

        def repeat() -> None:
            self.send_reports()
            while not ended.wait(REPORT_EVERY_SECONDS):
                self.report(request, Report("running"))
                self.send_reports()

        repeating = threading.Thread(target=repeat)
        repeating.start()
        try:
            yield
        finally:
            ended.set()
            repeating.join()

    def _end(self, request: Request, result: Result) -> None:
        state = "succeeded" if result.status == 0 else "failed"
        outputs = [{"name": str(output.name)} for output in result.outputs]
        self.end(request, Report(state, summarized(result), metadata=result.metadata, outputs=outputs))


def summarized(result: Result) -> str:
    """Return how an execution ended, as Markdown: the status, the reason, the last lines of the output."""
    reason = result.summary.strip()
    first = f"ended with status {result.status}"
    # An indented block: unlike a fence, no line of the output can end it.
    log_lines = "\n".join(f"    {line}" for line in result.log)
    if reason and "\n" not in reason:
        first, reason = f"{first}: {reason}", ""
    return "\n\n".join(part for part in (first, reason, log_lines) if part)


if __name__ == "__main__":
    # Execute one request from standard input, without a broker, and report how it ends.
    received = Inbox(Path("inbox.db"))
    if not received.take(sys.stdin.buffer.read(), None):
        received.send_reports()
        sys.exit("this request cannot be executed")
    received.execute_pending()
