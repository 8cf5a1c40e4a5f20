"""Reads objects of a mirror, one behind the other, from one warm `git cat-file --batch`. For use in a thread.

An object is never whole in memory here, nor, above a megabyte, in git.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gateway.fetch.git import Git, GitFailed

_CHUNK = 1024 * 1024
# Large objects are streamed, and little of a pack is mapped at a time: the memory is the whole gateway's.
_SMALL = (
    *("-c", "core.bigFileThreshold=1m"),
    *("-c", "core.packedGitWindowSize=4m"),
    *("-c", "core.packedGitLimit=24m"),
)
# So many are asked at a time, and once more before the answers end, so that git is never idle. Two times as
# many, of 64 digits, fit into a pipe of 64 KB: nobody ever waits for somebody who waits.
_BATCH_SIZE = 250


class Objects:
    """The objects of one mirror."""

    def __init__(self, questions: IO[bytes], answers: IO[bytes]) -> None:
        """Ask over these pipes."""
        self._questions = questions
        self._answers = answers

    def read(self, ids: Sequence[str]) -> Iterator[tuple[int, Iterable[bytes]]]:
        """Give the size and the content, in parts, of each object in turn; each is to be read to its end.

        Raises `GitFailed` where there is no such object.
        """
        for number, one in enumerate(ids):
            if number % _BATCH_SIZE == 0:
                ahead = number + _BATCH_SIZE if number else 0
                asked = "".join(f"{each}\n" for each in ids[ahead : number + 2 * _BATCH_SIZE])
                self._questions.write(asked.encode())
                self._questions.flush()
            told = self._answers.readline().split()
            if len(told) != 3:  # noqa: PLR2004 - id, type, size
                raise GitFailed(f"the mirror does not give {one}, or git was ended: unable to read it")
            size = int(told[2])
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
        self._answers.read(1)  # the line feed behind the content


@contextmanager
def open_objects(git: Git, mirror: Path) -> Iterator[Objects]:
    """Open a mirror for reading."""
    with git.talk(*_SMALL, "cat-file", "--batch", mirror=mirror) as (asked, told):
        yield Objects(asked, told)
