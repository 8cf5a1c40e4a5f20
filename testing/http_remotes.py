"""HTTP servers for tests, for remotes that misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield the port of a server that passes each connection to `handle`, in a thread, and then closes it.

    All threads have ended when the block ends.
    """
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take(connection: socket.socket) -> None:
            # Git may have closed the connection; this thread must survive that.
            with connection, suppress(OSError):
                handle(connection)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threads.append(threading.Thread(target=take, args=(connection,)))
                    threads[-1].start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Answer each request with the same bytes; yield the port and the received requests."""
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        received.append(connection.recv(65536))
        connection.sendall(answer)

    with serving(handle) as port:
        yield port, received


@contextmanager
def hanging() -> Iterator[int]:
    """Yield the port of a server that reads requests and never answers."""

    def handle(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with serving(handle) as port:
        yield port


def gits_about(port: int, host: str = "127.0.0.1") -> list[str]:
    """Return the command lines of git processes that are connected to the server at this port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # the process has ended
        if f"//{host}:{port}/" in line and "git" in line.split(" ")[0]:
            found.append(line)
    return found
