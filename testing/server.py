"""What the server programs of tests have in common: they run within a `with` block, and leave nothing."""

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self


class Server(ABC):
    """A server. As a context manager it runs from the beginning to the end of the block."""

    NAME: ClassVar[str]
    START_SECONDS: ClassVar[float]

    @abstractmethod
    def start(self) -> None:
        """Start with the present data, and return once the server answers."""

    @abstractmethod
    def close(self) -> None:
        """End, and remove the files."""

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and remove the files."""
        self.close()

    def wait_for_start(
        self, process: subprocess.Popen[bytes], answers: Callable[[], bool], output: Path
    ) -> None:
        """Return once the process answers; raise `RuntimeError` with its last output if it does not."""
        deadline = time.monotonic() + self.START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                last = output.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise RuntimeError(f"{self.NAME} did not start:\n{last}")
            time.sleep(0.02)


def find_program(name: str, pattern: str) -> str:
    """Return the path of the newest program that matches a pattern below /usr/lib, or of `name` on PATH."""
    found = sorted(Path("/usr/lib").glob(pattern))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is missing; tests/require-programs names what to install")
    return path
