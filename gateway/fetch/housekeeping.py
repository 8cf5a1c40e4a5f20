"""Keeps mirrors fast and within their disk budget: repacks them, and removes unused ones."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from gateway.errors import FetchError
from gateway.fetch.git import Git
from gateway.fetch.mirror import Mirrors
from gateway.metrics import EVICTED_BYTES, MIRROR_BUDGET, MIRROR_BYTES, MIRRORS, MIRRORS_EVICTED
from gateway.threads import FILES

log = structlog.get_logger()

_EVERY_SECONDS = 300.0
# A task may still be reading from a mirror that was fetched just now.
_IDLE_SECONDS = 600.0
_MAX_PACKS = 20
# Git spreads loose objects evenly over 256 folders, so one folder is enough for an estimate.
_ONE_FOLDER = "17"
_MAX_IN_ONE_FOLDER = 8
# Git keeps writing to a pack while it receives one, so an older file belongs to a fetch that died.
_HALF_FETCHED_SECONDS = 3600.0
_UNFINISHED = "tmp_"
# A clone may take hours, and must not delay the other mirrors for so long.
_PATIENCE_SECONDS = 30.0
# How many mirrors are surveyed in a thread before it can be cancelled.
_AT_ONCE = 100
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
    """Tidies mirrors. `budget` is their total size in bytes; those used in the last `idle` seconds stay.

    A mirror that is in use for more than `patience` seconds is left to the next round.
    """

    git: Git
    mirrors: Mirrors
    budget: int
    idle: float = _IDLE_SECONDS
    patience: float = _PATIENCE_SECONDS

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
        clones = await FILES.run(self.mirrors.clones)
        sizes: dict[str, int] = {}
        names = sorted(clones)
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            surveys = await FILES.run(self._survey, part)
            for connection, survey in zip(part, surveys, strict=True):
                sizes[connection] = await self._tend(connection, survey, clones[connection])
        held = await self._evict(sizes)
        MIRRORS.set(len(sizes))
        MIRROR_BYTES.set(held)
        MIRROR_BUDGET.set(self.budget)

    def _survey(self, connections: Sequence[str]) -> list["_Survey"]:
        return [_survey(self.mirrors.path(connection)) for connection in connections]

    async def _tend(self, connection: str, survey: "_Survey", clones: Sequence[Path]) -> int:
        """Remove the leftovers of a mirror, among them unfinished clones, and repack it; return its size."""
        leftovers = [*clones, *survey.half_fetched]
        if not leftovers and not survey.needs_packing:
            return survey.size
        mirror = self.mirrors.path(connection)
        async with self._unused(connection) as is_unused:
            if not is_unused:
                return survey.size
            # Nothing fetches while we hold the lock: unfinished files belong to processes that died.
            for leftover in leftovers:
                await FILES.run(_remove, leftover)
            if (await FILES.run(_survey, mirror)).needs_packing:
                await self._pack(connection, mirror)
            return (await FILES.run(_survey, mirror)).size

    async def _pack(self, connection: str, mirror: Path) -> None:
        started = time.monotonic()
        try:
            for task in _TASKS:
                await self.git.run(*task, mirror=mirror)
        except FetchError as error:
            log.warning("mirror cannot be packed", connection=connection, reason=str(error))
        else:
            log.info("mirror packed", connection=connection, seconds=round(time.monotonic() - started, 1))

    @asynccontextmanager
    async def _unused(self, connection: str) -> AsyncIterator[bool]:
        """Hold the lock of a mirror; yield False without it if a long fetch delays all other mirrors."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.patience):
                    await stack.enter_async_context(self.mirrors.locked(connection))
            except TimeoutError:
                yield False
            else:
                yield True

    async def _evict(self, sizes: dict[str, int]) -> int:
        """Remove the least recently used mirrors until the others fit into the budget; return their size."""
        held = sum(sizes.values())
        if held <= self.budget:
            return held
        used_at = await FILES.run(self._used_at, list(sizes))
        for connection in sorted(sizes, key=used_at.__getitem__):
            if held <= self.budget:
                return held
            if time.time() - self.mirrors.used_at(connection) < self.idle:
                break
            async with self._unused(connection) as is_unused:
                if not is_unused:
                    continue
                await FILES.run(shutil.rmtree, self.mirrors.path(connection), ignore_errors=True)
            size = sizes.pop(connection)
            held -= size
            MIRRORS_EVICTED.inc()
            EVICTED_BYTES.inc(size)
            log.info("mirror evicted", connection=connection, bytes=size, budget=self.budget)
        if held > self.budget:
            log.warning("mirrors in use are larger than their budget", bytes=held, budget=self.budget)
        return held

    def _used_at(self, connections: Sequence[str]) -> dict[str, float]:
        return {connection: self.mirrors.used_at(connection) for connection in connections}


def disk_trouble(folder: Path) -> str | None:
    """Return why nothing can be fetched into a folder (disk full, quota, no permission), or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, _LEAST_ROOM)
    except OSError as error:
        return f"nothing can be fetched: {error.strerror} ({folder})"
    return None


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


@dataclass(slots=True)
class _Survey:
    """What a mirror has on the disk. `half_fetched` are old unfinished files of git."""

    size: int = 0
    packs: int = 0
    loose_in_one_folder: int = 0
    half_fetched: list[Path] = field(default_factory=list)

    @property
    def needs_packing(self) -> bool:
        return self.packs > _MAX_PACKS or self.loose_in_one_folder > _MAX_IN_ONE_FOLDER


def _survey(mirror: Path) -> _Survey:
    """Walk through a mirror once; ignore files that vanish meanwhile."""
    found = _Survey()
    before = time.time() - _HALF_FETCHED_SECONDS
    objects = mirror / "objects"
    for path, folders, names in os.walk(mirror):
        is_of_objects = path.startswith(str(objects))
        unfinished = [name for name in folders if name.startswith(_UNFINISHED)] if is_of_objects else []
        for name in (*names, *unfinished):
            try:
                status = os.lstat(f"{path}/{name}")
            except FileNotFoundError:
                continue
            found.size += status.st_blocks * 512
            if is_of_objects and name.startswith(_UNFINISHED) and status.st_mtime < before:
                found.half_fetched.append(Path(path, name))
        if path == str(objects / "pack"):
            found.packs = sum(name.endswith(".pack") for name in names)
        elif path == str(objects / _ONE_FOLDER):
            found.loose_in_one_folder = len(names)
    return found
