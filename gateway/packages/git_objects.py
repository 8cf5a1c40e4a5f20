"""Reads objects of a mirror in sequence from one running `git cat-file --batch`. For use in a thread.

Objects above a megabyte are streamed, here and in git.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gateway.fetch.git import Git, GitFailed

_CHUNK = 1024 * 1024
# Stream large objects, and map little of a pack at a time, because the gateway shares this memory.
_SMALL_MEMORY = (
    *("-c", "core.bigFileThreshold=1m"),
    *("-c", "core.packedGitWindowSize=4m"),
    *("-c", "core.packedGitLimit=24m"),
)
# Queries are sent in batches, the next one before the answers of the last one end, so that git is never idle.
# Two batches of ids of 64 digits fit into a pipe of 64 KB, so that the two processes cannot deadlock.
_BATCH_SIZE = 250


class Objects:
    """The objects of one mirror."""

    def __init__(self, queries: IO[bytes], answers: IO[bytes]) -> None:
        """Query git over these pipes."""
        self._queries = queries
        self._answers = answers

    def read(self, ids: Sequence[str]) -> Iterator[tuple[int, Iterable[bytes]]]:
        """Yield the size and the content, in parts, of each object. Read each content to its end.

        Raises `GitFailed` if an object is missing.
        """
        for number, object_id in enumerate(ids):
            if number % _BATCH_SIZE == 0:
                ahead = number + _BATCH_SIZE if number else 0
                queries = "".join(f"{query}\n" for query in ids[ahead : number + 2 * _BATCH_SIZE])
                self._queries.write(queries.encode())
                self._queries.flush()
            header = self._answers.readline().split()
            if len(header) != 3:  # noqa: PLR2004 - id, type, size
                raise GitFailed(f"unable to read {object_id}: the mirror lacks it, or git was ended")
            size = int(header[2])
            yield size, self._small(size) if size <= _CHUNK else self._large(size)

    def _small(self, size: int) -> tuple[bytes]:
        content = self._answers.read(size)
        if len(content) < size or not self._answers.read(1):
            raise GitFailed("git was ended in the middle of an object")
        return (content,)

    def _large(self, size: int) -> Iterator[bytes]:
        while size:
            part = self._answers.read(min(size, _CHUNK))
            if not part:
                raise GitFailed("git was ended in the middle of an object")
            size -= len(part)
            yield part
        self._answers.read(1)  # the line feed after the content


@contextmanager
def open_objects(git: Git, mirror: Path) -> Iterator[Objects]:
    """Open a mirror for reading."""
    with git.talk(*_SMALL_MEMORY, "cat-file", "--batch", mirror=mirror) as (queries, answers):
        yield Objects(queries, answers)
