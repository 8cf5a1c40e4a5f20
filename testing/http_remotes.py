"""A server of the tests' own, for remotes that do not behave as git's do."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Give the port of a server that hands each connection to `handle`, in a thread, and then closes it.

    All of them have ended when the block has.
    """
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take(connection: socket.socket) -> None:
            # Git may have left by then, of which this thread must not die.
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
    """Answer each request with the same bytes; give the port, and what was asked."""
    heard: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(answer)

    with serving(handle) as port:
        yield port, heard


@contextmanager
def hanging() -> Iterator[int]:
    """Give the port of a server that listens to whatever is asked, and never answers."""

    def handle(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with serving(handle) as port:
        yield port


def gits_about(port: int, host: str = "127.0.0.1") -> list[str]:
    """Return the command lines of git's processes that ask the server at this port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended meanwhile
        if f"//{host}:{port}/" in line and "git" in line.split(" ")[0]:
            found.append(line)
    return found
