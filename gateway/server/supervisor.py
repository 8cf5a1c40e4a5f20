"""Several door processes on one port: started, started again when they die, and ended together.

They share one listening socket: what waits in it when a process dies is taken by another. What is done behind
the door runs in the first of them only: the mirrors of a data folder have one process that looks after them,
and more work at once is a matter of `concurrency`.

Not uvicorn's own supervisor: that one starts a dead process again at once and forever, and knows nothing of
an application that is built of settings and told when to end.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Protocol

import structlog

from gateway.backoff import backoff
from gateway.data_dir import DataDir, open_data
from gateway.errors import PushgateError, SettingError
from gateway.server.listener import listen
from gateway.settings import Settings

log = structlog.get_logger()

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_HEARD = _ENDING | {signal.SIGCHLD}
# The exit status of a process that no new start would help; uvicorn has the same.
_CANNOT_START = 3
_FIRST_DELAY = 0.2
_MAX_DELAY = 30.0
# A process that has lived for so many seconds did not die of its start.
_STEADY = 60.0
_ASLEEP = 3600.0


def supervise(settings: Settings) -> int:
    """Run `settings.workers` processes until SIGTERM or SIGINT; return 0 if all have ended in order, else 1.

    Raises `PushgateError` where there is nothing to start them on: no database, no port.
    """
    # Here, once: the schema is brought up to date, and what is wrong with it is told before anything runs.
    open_data(settings).database.close()
    with tempfile.TemporaryDirectory(prefix="pushgate-metrics-") as folder, listen(settings) as listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Only now: what is counted is counted where that says when the counters are made.
        from gateway.server.server import serve  # noqa: PLC0415

        return _Supervisor(settings, partial(_run, serve, listener)).run()


@dataclass(slots=True, kw_only=True)
class _Place:
    """A process that there is to be, and the one there is. Times are of the monotonic clock, in seconds."""

    number: int
    settings: Settings
    process: ForkProcess | None = None
    started_at: float = 0.0
    failures: int = 0
    due_at: float = 0.0


class Serve(Protocol):
    """Runs the service in this process."""

    def __call__(self, settings: Settings, opened: DataDir, *, listener: socket.socket) -> None:
        """Return once it has ended."""


class _Supervisor:
    def __init__(self, settings: Settings, run: Callable[[Settings, int], None]) -> None:
        self._run = run
        door = settings.model_copy(update={"role": "web"})
        self._places = [
            _Place(number=number, settings=settings if number == 0 else door)
            for number in range(settings.workers)
        ]

    def run(self) -> int:
        """Keep a process in each place until told to end."""
        # They wait until they are asked for: no handler runs in the middle of anything.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        while True:
            now = time.monotonic()
            for place in self._places:
                if place.process is None and place.due_at <= now:
                    self._start(place, now)
            due = [place.due_at for place in self._places if place.process is None]
            heard = signal.sigtimedwait(_HEARD, max(0.0, min(due, default=now + _ASLEEP) - now))
            if heard is not None and heard.si_signo in _ENDING:
                return self._end(0)
            if any(self._is_hopeless(place) for place in self._places):
                return self._end(1)

    def _start(self, place: _Place, now: float) -> None:
        process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(place.settings, place.number), name=f"door {place.number}"
        )
        process.start()
        place.process, place.started_at = process, now

    def _is_hopeless(self, place: _Place) -> bool:
        """Make room for the next process where one has died; say whether no next one would live."""
        if place.process is None or place.process.exitcode is None:
            return False
        now, status = time.monotonic(), place.process.exitcode
        if status == _CANNOT_START:
            return True
        if now - place.started_at > _STEADY:
            place.failures = 0
        delay = backoff(place.failures, first=_FIRST_DELAY, longest=_MAX_DELAY)
        log.error(
            "a process died",
            process=place.number,
            pid=place.process.pid,
            reason=f"exit status {status}" if status >= 0 else signal.Signals(-status).name,
            starts_again_in_s=round(delay, 1),
        )
        place.process.close()
        place.process = None
        place.failures += 1
        place.due_at = now + delay
        return False

    def _end(self, status: int) -> int:
        """Ask all to end, and wait for it."""
        processes = [place.process for place in self._places if place.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        # Whoever had not begun to listen yet dies of the signal, and leaves nothing undone.
        in_order = all(process.exitcode in {0, -signal.SIGTERM} for process in processes)
        log.info("all processes have ended", in_order=in_order)
        return status if in_order else 1


def _run(serve: Serve, listener: socket.socket, settings: Settings, number: int) -> None:
    """Be one of the processes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    structlog.contextvars.bind_contextvars(process=number)
    try:
        serve(settings, open_data(settings), listener=listener)
    except SettingError as error:
        log.error("the process cannot start", reason=str(error))
        sys.exit(_CANNOT_START)
    except PushgateError as error:
        log.error("the process cannot start now", reason=str(error))
        sys.exit(1)
