"""Several web processes on one port: started, restarted when they die, and stopped together.

They share one listening socket: connections that wait in it when a process dies are accepted by another. Only
the first process runs the worker: the mirrors of a data folder may have only one process that works on them,
and `concurrency` sets how much it does at once.

uvicorn's own supervisor restarts a dead process immediately and forever, and does not support an application
that is built from settings and shut down in order.
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
_SIGNALS = _ENDING | {signal.SIGCHLD}
# The exit status of a process that a restart would not help; uvicorn uses the same value.
_CANNOT_START = 3
_FIRST_DELAY = 0.2
_MAX_DELAY = 30.0
# A process that has run for this many seconds did not fail at its start.
_STEADY = 60.0
_ASLEEP = 3600.0


def supervise(settings: Settings) -> int:
    """Run `settings.workers` processes until SIGTERM or SIGINT; return 0 if all ended in order, else 1.

    Raises `PushgateError` if they cannot start: no database, no port.
    """
    # Upgrade the schema once, and report problems with it before anything runs.
    open_data(settings).database.close()
    with tempfile.TemporaryDirectory(prefix="pushgate-metrics-") as folder, listen(settings) as listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Imported only now, because counters are created where that variable says at import.
        from gateway.server.server import serve  # noqa: PLC0415

        return _Supervisor(settings, partial(_run, serve, listener)).run()


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A supervised process slot. Times are of the monotonic clock, in seconds."""

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
        web = settings.model_copy(update={"role": "web"})
        self._slots = [
            _Slot(number=number, settings=settings if number == 0 else web)
            for number in range(settings.workers)
        ]

    def run(self) -> int:
        """Keep a process in each slot until a signal to stop."""
        # Blocked signals wait for sigtimedwait, so no handler interrupts anything.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            now = time.monotonic()
            for slot in self._slots:
                if slot.process is None and slot.due_at <= now:
                    self._start(slot, now)
            due = [slot.due_at for slot in self._slots if slot.process is None]
            received = signal.sigtimedwait(_SIGNALS, max(0.0, min(due, default=now + _ASLEEP) - now))
            if received is not None and received.si_signo in _ENDING:
                return self._end(0)
            if any(self._is_hopeless(slot) for slot in self._slots):
                return self._end(1)

    def _start(self, slot: _Slot, now: float) -> None:
        process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(slot.settings, slot.number), name=f"web {slot.number}"
        )
        process.start()
        slot.process, slot.started_at = process, now

    def _is_hopeless(self, slot: _Slot) -> bool:
        """Free the slot of a dead process; return whether a restart would not help."""
        if slot.process is None or slot.process.exitcode is None:
            return False
        now, status = time.monotonic(), slot.process.exitcode
        if status == _CANNOT_START:
            return True
        if now - slot.started_at > _STEADY:
            slot.failures = 0
        delay = backoff(slot.failures, first=_FIRST_DELAY, longest=_MAX_DELAY)
        log.error(
            "process died",
            process=slot.number,
            pid=slot.process.pid,
            reason=f"exit status {status}" if status >= 0 else signal.Signals(-status).name,
            starts_again_in_s=round(delay, 1),
        )
        slot.process.close()
        slot.process = None
        slot.failures += 1
        slot.due_at = now + delay
        return False

    def _end(self, status: int) -> int:
        """Stop all processes, and wait for them."""
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        # A process that does not listen yet dies of the signal, and leaves no work undone.
        in_order = all(process.exitcode in {0, -signal.SIGTERM} for process in processes)
        log.info("all processes ended", in_order=in_order)
        return status if in_order else 1


def _run(serve: Serve, listener: socket.socket, settings: Settings, number: int) -> None:
    """Run as one of the processes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    structlog.contextvars.bind_contextvars(process=number)
    try:
        serve(settings, open_data(settings), listener=listener)
    except SettingError as error:
        log.error("process cannot start", reason=str(error))
        sys.exit(_CANNOT_START)
    except PushgateError as error:
        log.error("process cannot start at present", reason=str(error))
        sys.exit(1)
