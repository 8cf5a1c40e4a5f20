"""Clients that attack a gateway, as bytes and sockets: floods of headers, silence, bodies that never come.

For tests of the server and for longer drills. All go to one address, and are bounded in number and time.
"""

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

Address = tuple[str, int]

_PIECE = 64 * 1024


def address_of(url: str) -> Address:
    """Return the address behind a gateway's URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


def head(path: str, *lines: str, method: str = "POST", host: str | None = "gateway") -> bytes:
    """Return the request line and headers, without the empty line that ends them."""
    hosts = [] if host is None else [f"Host: {host}"]
    return "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", *hosts, *lines)).encode("latin-1")


def many_headers(path: str, count: int, *, value: str = "x") -> bytes:
    """Return a whole request with so many headers of one name."""
    return head(path, *[f"X-Flood: {value}"] * count, "Content-Length: 0") + b"\r\n"


def endless_headers(path: str, size: int) -> Iterator[bytes]:
    """Yield headers of so many bytes in all, without an end."""
    yield head(path)
    line = b"X-Flood: " + b"x" * 1000 + b"\r\n"
    piece = line * (_PIECE // len(line))
    for _ in range(size // len(piece)):
        yield piece


def endless_header(path: str, size: int) -> Iterator[bytes]:
    """Yield one header of so many bytes."""
    yield head(path) + b"X-Flood: "
    for _ in range(size // _PIECE):
        yield b"x" * _PIECE


def endless_url(size: int) -> Iterator[bytes]:
    """Yield a request line of so many bytes."""
    yield b"POST /"
    for _ in range(size // _PIECE):
        yield b"x" * _PIECE


def endless_line_ends(size: int) -> Iterator[bytes]:
    """Yield empty lines, which may precede a request line, and no request."""
    for _ in range(size // _PIECE):
        yield b"\r\n" * (_PIECE // 2)


def endless_trailers(path: str, size: int) -> Iterator[bytes]:
    """Yield a chunked body of two bytes, and trailers of so many bytes behind it."""
    yield head(path, "Transfer-Encoding: chunked") + b"\r\n2\r\n{}\r\n0\r\n"
    line = b"X-Trailer: " + b"x" * 50 + b"\r\n"
    piece = line * (_PIECE // len(line))
    for _ in range(size // len(piece)):
        yield piece


def endless_extension(path: str, size: int) -> Iterator[bytes]:
    """Yield a chunk whose extension has so many bytes."""
    yield head(path, "Transfer-Encoding: chunked") + b"\r\n2;x="
    for _ in range(size // _PIECE):
        yield b"x" * _PIECE


def tiny_chunks(path: str, size: int) -> Iterator[bytes]:
    """Yield a body of so many bytes in chunks of one."""
    yield head(path, "Transfer-Encoding: chunked") + b"\r\n"
    chunk = b"1\r\nx\r\n"
    for _ in range(size // (_PIECE // len(chunk))):
        yield chunk * (_PIECE // len(chunk))


def pipelined(path: str, count: int) -> bytes:
    """Return so many requests at once."""
    return (head(path, method="GET") + b"\r\n") * count


def announced(path: str, size: int, sent: bytes = b"x" * 100) -> bytes:
    """Return a request that announces a body of so many bytes and begins it."""
    return head(path, f"Content-Length: {size}") + b"\r\n" + sent


def attack(address: Address, pieces: bytes | Iterable[bytes], *, seconds: float = 30.0) -> bytes:
    """Send until the gateway stops reading; return its answer, empty if it only closed the connection.

    Raises `TimeoutError` where it neither answers nor closes within so many seconds.
    """
    deadline = time.monotonic() + seconds
    with socket.create_connection(address, timeout=seconds) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                client.sendall(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError
        with suppress(ConnectionResetError):
            return client.recv(_PIECE)
    return b""


def status_of(answer: bytes) -> int | None:
    """Return an answer's status; None where there was no answer."""
    return int(answer.split(b" ", 2)[1]) if answer else None


@contextmanager
def held_open(address: Address, count: int, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """Hold so many connections open, on each of which only these bytes are sent."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(count)]
        for client in clients:
            with suppress(ConnectionError):
                if begin:
                    client.sendall(begin)
        yield clients


def is_closed(client: socket.socket) -> bool:
    """Return whether the gateway has closed a connection, without waiting."""
    client.setblocking(False)
    try:
        while client.recv(_PIECE):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def dribble(client: socket.socket) -> None:
    """Send one more byte of a header, where the connection is still open."""
    with suppress(OSError):
        client.send(b"x")
