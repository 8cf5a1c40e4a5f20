"""The HTTP server of one process: uvicorn with limits, and signals that end the service in order."""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

import structlog
import uvicorn

from gateway.app import Service
from gateway.data_dir import DataDir, locked
from gateway.server.http_limits import ClientLimits, allow_open_files, limited
from gateway.server.listener import listen
from gateway.settings import Settings

log = structlog.get_logger()

# How long requests that are under way may take to end after a SIGTERM, in seconds.
_GRACE = 10

# glibc's names for these are M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX; see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BLOCK = 1024 * 1024
_ARENAS = 2


class _Server(uvicorn.Server):
    """uvicorn, which tells the service when it has begun to listen and when it is asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

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
            broker="none: requests stay in the store" if settings.amqp_url is None else "RabbitMQ",
        )

    def _end_as_an_orphan(self, sentinel: int) -> None:
        """End in order, because the supervisor that would have asked for it was killed."""
        asyncio.get_running_loop().remove_reader(sentinel)
        log.error("the supervisor of this process is gone: it ends as well")
        self.handle_exit(signal.SIGTERM, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # At once: requests under way may take their time to end.
        self._service.stop_working()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a wish to end in order; uvicorn itself would then die of them."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in uvicorn.server.HANDLED_SIGNALS
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Nothing else here: a handler runs in the middle of anything, a log line included.
        self._service.closing = True
        super().handle_exit(sig, frame)


def serve(settings: Settings, opened: DataDir, *, listener: socket.socket | None = None) -> None:
    """Run the service until SIGTERM or SIGINT; on a socket of its own, if none is given.

    Raises `SettingError` where another process works on the data folder, or the port is taken.
    """
    works_here = settings.role != "web" or opened.database.is_embedded
    # The service closes the database when it ends, but not where it never begins.
    with opened, locked(settings) if works_here else nullcontext(), listener or listen(settings) as bound:
        # Where any free port was asked for, it is known only now.
        port = bound.getsockname()[1]
        _serve(Service(settings.model_copy(update={"port": port}), opened), bound)


def _serve(service: Service, listener: socket.socket) -> None:
    prepare_interpreter()
    settings = service.settings
    connections = allow_open_files(settings.http_connections)
    if connections < settings.http_connections:
        log.warning("fewer HTTP connections than configured: few files may be open", connections=connections)
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
    _Server(config, service).run(sockets=[listener])


def prepare_interpreter() -> None:
    """Set the interpreter up for a process that serves the door, once everything is loaded.

    By itself it would look for garbage among all that was loaded at the start, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    _give_memory_back()


def _give_memory_back() -> None:
    """Have the C library return large blocks to the system as soon as they are free.

    By itself glibc takes the largest block that was ever freed, up to 32 MB, for the usual size, and keeps
    what is smaller; and it keeps a heap for each of several threads. Other C libraries do neither.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_TRIM_THRESHOLD, _LARGE_BLOCK)
        mallopt(_ARENA_MAX, _ARENAS)
