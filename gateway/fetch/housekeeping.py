"""Keeps mirrors fast and within their disk budget: repacks them, and removes unused ones."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.errors import FetchError
from gateway.fetch.git import Git
from gateway.fetch.mirror import Mirrors
from gateway.threads import FILES

log = structlog.get_logger()

_EVERY_SECONDS = 300.0
# A task may still be reading from a mirror that was fetched just now.
_IDLE_SECONDS = 600.0
_MAX_PACKS = 20
# Git spreads loose objects evenly over 256 folders, so one folder is enough for an estimate.
_MAX_IN_ONE_FOLDER = 8
# Git keeps writing to a pack while it receives one, so an older file belongs to a fetch that died.
_HALF_FETCHED_SECONDS = 3600.0
# With less free space most fetches would fail.
_LEAST_ROOM = 16 * 1024 * 1024
_TASKS = (
    ("repack", "-d", "-q", "--geometric=2", "--no-write-bitmap-index"),
    ("prune-packed", "-q"),
    ("pack-refs", "--all", "--prune"),
    ("commit-graph", "write", "--reachable", "--no-progress"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Housekeeper:
    """Tidies mirrors. `budget` is their total size in bytes; those used in the last `idle` seconds stay."""

    git: Git
    mirrors: Mirrors
    budget: int
    idle: float = _IDLE_SECONDS

    async def run(self) -> None:
        """Tidy up every five minutes until cancelled."""
        while True:
            try:
                await self.tidy()
            except OSError as error:
                log.warning("mirrors cannot be tidied up", reason=str(error))
            await asyncio.sleep(_EVERY_SECONDS)

    async def tidy(self) -> None:
        """Remove leftovers of killed processes, repack where needed, and evict until the budget fits."""
        for connection in self.mirrors.connections():
            await self._tend(connection)
        await self._evict()

    async def _tend(self, connection: str) -> None:
        mirror = self.mirrors.path(connection)
        leftovers = [*mirror.parent.glob(f"{mirror.name}.*.new"), *await FILES.run(_half_fetched, mirror)]
        if not leftovers and not await FILES.run(_needs_packing, mirror):
            return
        async with self.mirrors.locked(connection):
            # Nothing fetches while we hold the lock: unfinished files belong to processes that died.
            for leftover in leftovers:
                await FILES.run(_remove, leftover)
            if not await FILES.run(_needs_packing, mirror):
                return
            started = time.monotonic()
            try:
                for task in _TASKS:
                    await self.git.run(*task, mirror=mirror)
            except FetchError as error:
                log.warning("mirror cannot be packed", connection=connection, reason=str(error))
                return
        log.info("mirror packed", connection=connection, seconds=round(time.monotonic() - started, 1))

    async def _evict(self) -> None:
        """Remove the least recently used mirrors until the others fit into the budget."""
        sizes = await FILES.run(self._sizes)
        held = sum(sizes.values())
        for connection in sorted(sizes, key=self.mirrors.used_at):
            if held <= self.budget:
                return
            if time.time() - self.mirrors.used_at(connection) < self.idle:
                break
            await self.mirrors.discard(connection)
            held -= sizes[connection]
            log.info("mirror evicted", connection=connection, bytes=sizes[connection], budget=self.budget)
        if held > self.budget:
            log.warning("mirrors in use are larger than their budget", bytes=held, budget=self.budget)

    def _sizes(self) -> dict[str, int]:
        return {connection: _size(self.mirrors.path(connection)) for connection in self.mirrors.connections()}


def disk_trouble(folder: Path) -> str | None:
    """Return why nothing can be fetched into a folder (disk full, quota, no permission), or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, _LEAST_ROOM)
    except OSError as error:
        return f"nothing can be fetched: {error.strerror} ({folder})"
    return None


def _half_fetched(mirror: Path) -> list[Path]:
    """Return git's unfinished files that are too old to belong to a running fetch."""
    before = time.time() - _HALF_FETCHED_SECONDS
    found = []
    for path in (mirror / "objects").glob("**/tmp_*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                found.append(path)
    return found


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _needs_packing(mirror: Path) -> bool:
    packs = sum(1 for _ in (mirror / "objects" / "pack").glob("*.pack"))
    loose = sum(1 for _ in (mirror / "objects" / "17").glob("*"))
    return packs > _MAX_PACKS or loose > _MAX_IN_ONE_FOLDER


def _size(folder: Path) -> int:
    """Return how many bytes of the disk a folder uses; ignore files that vanish meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512  # noqa: PTH118 - twice as fast
            except FileNotFoundError:
                continue
    return total
