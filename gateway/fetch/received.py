"""How many bytes a fetch has received, from git's messages about its progress."""

import re
from types import TracebackType
from typing import Self

from gateway.fetch.credentials import Remote
from gateway.fetch.process import Progress
from gateway.metrics import FETCHED_BYTES, GIT_HOSTS
from providers.clone_urls import host_of

# Git unpacks a small pack at once, and indexes a large one.
_RECEIVED = re.compile(r"(?:receiving|unpacking) objects \d+ %, (?P<size>[\d.]+) (?P<unit>\w+)")
_UNITS = {"bytes": 1, "byte": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Received:
    """Takes the progress of a fetch, passes it on, and counts its bytes at the end of the block."""

    def __init__(self, remote: Remote, progress: Progress | None) -> None:
        """Begin with none."""
        self._host = GIT_HOSTS.label(host_of(remote.url))
        self._progress = progress
        self.bytes = 0

    def __call__(self, text: str) -> None:
        """Take a message. It is called in another thread."""
        found = _RECEIVED.match(text)
        if found is not None:
            self.bytes = round(float(found["size"]) * _UNITS.get(found["unit"], 0))
        if self._progress is not None:
            self._progress(text)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count what was received, also by a fetch that failed."""
        FETCHED_BYTES.labels(self._host).inc(self.bytes)
