"""The HTTP server of one process: uvicorn with limits, and signals that shut the service down in order."""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

import structlog
import uvicorn

from gateway.app import Service
from gateway.data_dir import DataDir, locked
from gateway.metrics import HTTP_CONNECTIONS_LIMIT
from gateway.server.http_limits import ClientLimits, allow_open_files, limited
from gateway.server.listener import listen
from gateway.settings import Settings

log = structlog.get_logger()

# How long running requests may take to finish after a SIGTERM, in seconds.
_GRACE = 10
_BEAT_SECONDS = 1.0

# glibc's names for these are M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX; see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BLOCK = 1024 * 1024
_ARENAS = 2


class _Server(uvicorn.Server):
    """uvicorn, with hooks for the start and the shutdown of the service."""

    def __init__(self, config: uvicorn.Config, service: Service, beat: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._service = service
        self._beat = beat

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        await super().startup(list(sockets) if sockets else None)
        if self.should_exit:
            return
        parent = multiprocessing.parent_process()
        if parent is not None:
            asyncio.get_running_loop().add_reader(parent.sentinel, self._end_as_an_orphan, parent.sentinel)
        settings = self._service.settings
        log.info(
            "listening",
            address=f"{settings.host}:{settings.port}",
            hooks=f"{settings.base_url}/hooks/…",
            dashboard=f"{settings.base_url}/",
            data=str(settings.data_dir),
            pid=os.getpid(),
            broker="none: execution requests stay in the store" if settings.amqp_url is None else "RabbitMQ",
        )
        if self._beat is not None:
            self._beat_regularly(self._beat)

    def _beat_regularly(self, beat: Callable[[], None]) -> None:
        """Show the supervisor that the event loop runs."""
        beat()
        asyncio.get_running_loop().call_later(_BEAT_SECONDS, self._beat_regularly, beat)

    def _end_as_an_orphan(self, sentinel: int) -> None:
        """Shut down, because the supervisor was killed."""
        asyncio.get_running_loop().remove_reader(sentinel)
        log.error("supervisor died: this process shuts down")
        self.handle_exit(signal.SIGTERM, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First, because running requests may take long to finish.
        self._service.stop_working()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT by a shutdown; uvicorn itself would raise them again afterwards."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in uvicorn.server.HANDLED_SIGNALS
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Nothing else here: a signal handler may interrupt anything, even the writing of a log line.
        self._service.closing = True
        super().handle_exit(sig, frame)


def serve(
    settings: Settings,
    opened: DataDir,
    *,
    listener: socket.socket | None = None,
    slot: int = 0,
    beat: Callable[[], None] | None = None,
) -> None:
    """Run the service until SIGTERM or SIGINT; open a socket if none is given.

    A supervisor gives a `listener`, holds the data folder itself, and has several processes of different
    `slot` on it; `beat` is called regularly while the event loop runs. Raises `SettingError` if another
    gateway holds the data folder, or the port is in use.
    """
    needs_lock = listener is None and (settings.role != "web" or opened.database.is_embedded)
    # The service closes the database when it ends; this block does so if it never starts.
    with opened, locked(settings) if needs_lock else nullcontext(), listener or listen(settings) as bound:
        # With port 0 the actual port is known only now.
        port = bound.getsockname()[1]
        _serve(Service(settings.model_copy(update={"port": port}), opened, slot=slot), bound, beat)


def _serve(service: Service, listener: socket.socket, beat: Callable[[], None] | None) -> None:
    prepare_interpreter()
    settings = service.settings
    connections = allow_open_files(settings.http_connections)
    if connections < settings.http_connections:
        log.warning(
            "fewer HTTP connections than configured: the limit of open files is too low",
            connections=connections,
        )
    HTTP_CONNECTIONS_LIMIT.set(connections)
    config = uvicorn.Config(
        service.application,
        loop="uvloop",
        http=limited(ClientLimits(connections=connections, keep_alive=settings.http_keep_alive)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=settings.http_keep_alive,
        timeout_graceful_shutdown=_GRACE,
        backlog=2048,
    )
    _Server(config, service, beat).run(sockets=[listener])


def prepare_interpreter() -> None:
    """Tune the interpreter for a process that serves webhooks, once everything is loaded.

    By default the garbage collector would scan all objects of the start again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    _give_memory_back()


def _give_memory_back() -> None:
    """Make the C library return large blocks to the system as soon as they are freed.

    By default glibc adapts its threshold to the largest block that was ever freed, up to 32 MB, and keeps
    smaller blocks; it also keeps several heaps for threads. Other C libraries do neither.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_TRIM_THRESHOLD, _LARGE_BLOCK)
        mallopt(_ARENA_MAX, _ARENAS)
