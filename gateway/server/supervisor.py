"""Several processes of one role on one port: started, restarted when they die or hang, and stopped together.

They share one listening socket: connections that wait in it when a process dies are accepted by another. They
also share the data folder, which the supervisor holds against other gateways: each mirror has a lock of its
own, and only the first process tidies up.

A process hangs if its event loop stands still. The probes of an orchestrator do not notice that, because they
reach any of the processes on the port; so the supervisor itself watches each of them.

uvicorn's own supervisor restarts a dead process immediately and forever, and does not support an application
that is built from settings and shut down in order.
"""

import faulthandler
import mmap
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Protocol

import structlog

from gateway.backoff import backoff
from gateway.data_dir import DataDir, locked, open_data
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
# How often the supervisor looks for processes that hang.
_LOOK_SECONDS = 1.0
# Makes a process print the stacks of all its threads.
_DUMP_STACKS = signal.SIGUSR1


def supervise(settings: Settings) -> int:
    """Run `settings.workers` processes until SIGTERM or SIGINT; return 0 if all ended in order, else 1.

    Raises `PushgateError` if they cannot start: no database, no port.
    """
    # Upgrade the schema once, and report problems with it before anything runs. None of this creates metrics.
    open_data(settings).database.close()
    with (
        locked(settings) if settings.role != "web" else nullcontext(),
        tempfile.TemporaryDirectory(prefix="pushgate-metrics-") as folder,
        listen(settings) as listener,
    ):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Imported only now, because counters are created where that variable says at import.
        from gateway.api.exposition import name_process  # noqa: PLC0415
        from gateway.server.server import serve  # noqa: PLC0415

        name_process("supervisor")
        return _Supervisor(settings, partial(_run, serve, listener)).run()


class Pulse:
    """A counter in memory that a process and its supervisor share: it stands still while the process hangs.

    The supervisor counts the seconds that it has itself run meanwhile, at most two looks for each look. So a
    machine that was suspended, and a group of processes that was stopped, do not seem to hang.
    """

    def __init__(self) -> None:
        """Share the memory with the processes that are forked from now on."""
        self._count = memoryview(mmap.mmap(-1, 8)).cast("Q")
        self._seen = 0
        self._silent = 0.0

    def reset(self) -> None:
        """Begin again, for another process; until its first beat it is starting and does not hang."""
        self._count[0] = self._seen = 0
        self._silent = 0.0

    def beat(self) -> None:
        """Count a beat. Call it in the process."""
        self._count[0] += 1

    def silent(self, elapsed: float) -> float:
        """Return for how many seconds there was no beat, `elapsed` seconds after the last call."""
        if self._count[0] != self._seen or not self._seen:
            self._seen, self._silent = self._count[0], 0.0
        else:
            self._silent += min(elapsed, 2 * _LOOK_SECONDS)
        return self._silent


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A supervised process slot. Times are of the monotonic clock, in seconds."""

    number: int
    process: ForkProcess | None = None
    pulse: Pulse = field(default_factory=Pulse)
    hangs: bool = False
    started_at: float = 0.0
    failures: int = 0
    due_at: float = 0.0


class Serve(Protocol):
    """Runs the service in this process."""

    def __call__(
        self,
        settings: Settings,
        opened: DataDir,
        *,
        listener: socket.socket,
        slot: int,
        beat: Callable[[], None],
    ) -> None:
        """Return once it has ended."""


class _Supervisor:
    def __init__(self, settings: Settings, run: Callable[[Settings, _Slot], None]) -> None:
        self._run = run
        self._settings = settings
        self._slots = [_Slot(number=number) for number in range(settings.workers)]

    def run(self) -> int:
        """Keep a process in each slot until a signal to stop."""
        # Blocked signals wait for sigtimedwait, so no handler interrupts anything.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        looked_at = time.monotonic()
        while True:
            now = time.monotonic()
            for slot in self._slots:
                if slot.process is None and slot.due_at <= now:
                    self._start(slot, now)
                self._look(slot, now - looked_at)
            looked_at = now
            due = [slot.due_at for slot in self._slots if slot.process is None]
            wake_at = min([*due, now + _LOOK_SECONDS])
            received = signal.sigtimedwait(_SIGNALS, max(0.0, wake_at - now))
            if received is not None and received.si_signo in _ENDING:
                return self._end(0)
            if any(self._is_hopeless(slot) for slot in self._slots):
                return self._end(1)

    def _start(self, slot: _Slot, now: float) -> None:
        process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(self._settings, slot), name=f"{self._settings.role} {slot.number}"
        )
        slot.pulse.reset()
        slot.hangs = False
        process.start()
        slot.process, slot.started_at = process, now
        self._count()

    def _count(self) -> None:
        """Report how many processes run."""
        from gateway.metrics import PROCESSES  # noqa: PLC0415 - as in `supervise`

        PROCESSES.set(sum(slot.process is not None for slot in self._slots))

    def _look(self, slot: _Slot, elapsed: float) -> None:
        """Let a process that hangs print its stacks, and kill it at the next look."""
        silent = slot.pulse.silent(elapsed)
        if slot.process is None or slot.process.pid is None or silent < self._settings.hang_timeout:
            slot.hangs = False
        elif slot.hangs:
            slot.process.kill()
        else:
            slot.hangs = True
            log.error(
                "process hangs: it is killed and started again",
                process=slot.number,
                pid=slot.process.pid,
                silent_s=round(silent),
                hint="report the stacks that follow; if the machine was only overloaded, raise"
                " PUSHGATE_HANG_TIMEOUT",
            )
            os.kill(slot.process.pid, _DUMP_STACKS)

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
        _report_death(slot)
        slot.process.close()
        slot.process = None
        self._count()
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


def _report_death(slot: _Slot) -> None:
    """Count the death of a process, and remove the gauges that only a live process may report."""
    # Imported only now, see `supervise`.
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    from gateway.metrics import PROCESSES_DIED  # noqa: PLC0415

    PROCESSES_DIED.labels("hung" if slot.hangs else "died").inc()
    mark_process_dead(slot.process and slot.process.pid)  # type: ignore[no-untyped-call]


def _run(serve: Serve, listener: socket.socket, settings: Settings, slot: _Slot) -> None:
    """Run as one of the processes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    faulthandler.register(_DUMP_STACKS)
    structlog.contextvars.bind_contextvars(process=slot.number)
    from gateway.api.exposition import name_process  # noqa: PLC0415 - as in `supervise`

    name_process(str(slot.number))
    try:
        serve(settings, open_data(settings), listener=listener, slot=slot.number, beat=slot.pulse.beat)
    except SettingError as error:
        log.error("process cannot start", reason=str(error))
        sys.exit(_CANNOT_START)
    except PushgateError as error:
        log.error("process cannot start at present", reason=str(error))
        sys.exit(1)
