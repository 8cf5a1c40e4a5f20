"""Reads objects of mirrors from running `git cat-file --batch-command` processes. For use in threads.

Objects above a megabyte are streamed, here and in git. A session is one such process. It belongs to the
folder that it was started in, also when that is renamed: a mirror that replaces another gets a new session.
Within `Sessions.keep`, sessions are used again; otherwise each ends with its first use. A running session
finds what was fetched meanwhile: git looks again for packs and loose objects when one is missing.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.fetch.process import Conversation, GitFailed, OutputTooLarge

COMMAND = (
    # Stream large objects, and map little of a pack at a time, because the gateway shares this memory.
    *("-c", "core.bigFileThreshold=1m"),
    *("-c", "core.packedGitWindowSize=4m"),
    *("-c", "core.packedGitLimit=24m"),
    *("cat-file", "--batch-command", "--buffer"),
)
_CHUNK = 1024 * 1024
# Queries are sent in batches, the next one before the answers of the last one end, so that git is never idle.
# Two batches of names of 82 bytes fit into a pipe of 64 KB, so that the two processes cannot deadlock.
_BATCH_SIZE = 250
# For each owner. A push may have a hundred submodules.
_MAX_IDLE = 4


@dataclass(frozen=True, slots=True)
class Header:
    """The id, the kind and the size of an object."""

    id: str
    kind: str
    size: int


class Objects:
    """The objects of one mirror. They are named by their ids, perhaps with `^{commit}` or `^{tree}`."""

    def __init__(self, conversation: Conversation) -> None:
        """Query this git."""
        self._git = conversation
        self._unread = 0

    @property
    def is_idle(self) -> bool:
        """Return whether every answer was read to its end and git can answer more queries."""
        return not self._unread and self._git.is_alive()

    def headers(self, names: Sequence[str]) -> list[Header | None]:
        """Return the header of each object, None if it is missing."""
        return [self._header() for _ in self._queried("info", names)]

    def read(self, names: Sequence[str], *, kind: str | None = None) -> Iterator[tuple[int, Iterable[bytes]]]:
        """Yield the size and the content, in parts, of each object. Read each content to its end.

        Raises `GitFailed` if an object is missing, or is of another kind than `kind`.
        """
        for name in self._queried("contents", names):
            header = self._header()
            if header is None:
                raise GitFailed(f"unable to read {name}: the mirror lacks it")
            if kind is not None and header.kind != kind:
                raise GitFailed(f"bad object {name}: it is a {header.kind}, not a {kind}")
            yield header.size, self._small(header.size) if header.size <= _CHUNK else self._large(header.size)

    def content(self, name: str, *, limit: int, kind: str | None = None) -> bytes:
        """Return the content of an object. Raises `OutputTooLarge`, or `GitFailed` as `read` does."""
        content = b""
        for size, parts in self.read([name], kind=kind):
            if size > limit:
                raise OutputTooLarge(f"the object {name} has more than {limit} bytes")
            content = b"".join(parts)
        return content

    def end(self) -> None:
        """End git, and whoever reads. May be called from any thread."""
        self._git.end()

    def close(self) -> None:
        """End git, and release its pipes."""
        self._git.close()

    def allow(self, seconds: float) -> None:
        """Limit the time until the next call."""
        self._git.allow(seconds)

    def shorten(self, seconds: float) -> None:
        """Lower the limit of the time."""
        self._git.shorten(seconds)

    def _queried(self, command: str, names: Sequence[str]) -> Iterator[str]:
        """Send queries, and yield each name when its answer is the next one."""
        for number, name in enumerate(names):
            if number % _BATCH_SIZE == 0:
                ahead = number + _BATCH_SIZE if number else 0
                batch = names[ahead : number + 2 * _BATCH_SIZE]
                self._unread += len(batch)
                if batch:
                    self._git.query(
                        "".join([*(f"{command} {query}\n" for query in batch), "flush\n"]).encode()
                    )
            yield name
            self._unread -= 1

    def _header(self) -> Header | None:
        line = self._git.answers.readline()
        if not line.endswith(b"\n"):
            raise self._git.failure()
        if line.endswith(b" missing\n"):
            return None
        object_id, kind, size = line.decode().split()
        return Header(object_id, kind, int(size))

    def _small(self, size: int) -> tuple[bytes]:
        content = self._git.answers.read(size)
        if len(content) < size or not self._git.answers.read(1):
            raise self._git.failure()
        return (content,)

    def _large(self, size: int) -> Iterator[bytes]:
        while size:
            part = self._git.answers.read(min(size, _CHUNK))
            if not part:
                raise self._git.failure()
            size -= len(part)
            yield part
        self._git.answers.read(1)  # the line feed after the content


class Stop:
    """Stops a reading from another thread."""

    def __init__(self) -> None:
        """Stop nothing yet."""
        self._lock = threading.Lock()
        self._is_set = False
        self._objects: Objects | None = None

    def set(self) -> None:
        """End the reading that has begun, or that will begin."""
        with self._lock:
            self._is_set = True
            if self._objects is not None:
                self._objects.end()

    def attach(self, objects: Objects | None) -> None:
        """Set what is being read. Raises `GitFailed` if the reading was stopped."""
        with self._lock:
            self._objects = objects
            if self._is_set and objects is not None:
                raise GitFailed("stopped")


class Sessions:
    """The sessions of all mirrors; a session is used by one thread at a time."""

    def __init__(self, start: Callable[[Path], Conversation]) -> None:
        """Begin without sessions; `start` starts git in a mirror."""
        self._start = start
        self._lock = threading.Lock()
        self._owners: set[str] = set()
        self._idle: dict[tuple[int, int], tuple[str, Objects]] = {}

    def keep(self, owner: Path) -> None:
        """Keep sessions for further use: those of mirrors whose paths begin with `owner`."""
        with self._lock:
            self._owners.add(str(owner))

    def end(self, owner: Path) -> None:
        """Keep them no longer; end those that are not in use."""
        with self._lock:
            self._owners.discard(str(owner))
            ended = [key for key, (of, _) in self._idle.items() if of == str(owner)]
            sessions = [self._idle.pop(key)[1] for key in ended]
        for session in sessions:
            session.close()

    @contextmanager
    def open(self, mirror: Path, *, seconds: float, stop: Stop | None = None) -> Iterator[Objects]:
        """Open a mirror for reading within the block, for at most so many seconds."""
        try:
            status = mirror.stat()
        except OSError as error:
            raise GitFailed(f"not a git repository: {mirror} ({error.strerror})") from error
        key = (status.st_dev, status.st_ino)
        with self._lock:
            _, objects = self._idle.pop(key, ("", None))
        if objects is not None and not objects.is_idle:
            objects.close()
            objects = None
        if objects is None:
            objects = Objects(self._start(mirror))
        objects.allow(seconds)
        try:
            if stop is not None:
                stop.attach(objects)
            yield objects
        finally:
            if stop is not None:
                stop.attach(None)
            self._give_back(objects, key, str(mirror))

    def _give_back(self, objects: Objects, key: tuple[int, int], mirror: str) -> None:
        surplus = [objects]
        with self._lock:
            owner = next(
                (owner for owner in self._owners if mirror.startswith((f"{owner}.", f"{owner}-"))), None
            )
            if owner is not None and key not in self._idle and objects.is_idle:
                self._idle[key] = (owner, objects)
                oldest = [key for key, (of, _) in self._idle.items() if of == owner][:-_MAX_IDLE]
                surplus = [self._idle.pop(key)[1] for key in oldest]
        for session in surplus:
            session.close()
