"""Expiry: removes packages that are no longer used."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from gateway.packages.storage import PackageStorage
from gateway.store import packages
from gateway.store.database import Database
from gateway.threads import FILES

log = structlog.get_logger()

# An unfinished file or upload that is older than this belongs to a process that died.
_ABANDONED_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """Removes packages that no execution has used for `keep`, and the leftovers of processes that died."""

    database: Database
    storage: PackageStorage
    folder: Path
    keep: timedelta

    async def run(self, now: datetime) -> None:
        """Remove what has expired by `now`."""
        # The record goes first: a later request for the package builds it under another object name.
        expired = await self.database.write(packages.expire, before=now - self.keep)
        for package in expired:
            await self.storage.delete(package.object)
            log.info(
                "package expired",
                package=package.id,
                size=package.size,
                last_used_at=package.last_used_at.isoformat(),
            )
        abandoned_before = now - _ABANDONED_AFTER
        names = await self.storage.names(before=abandoned_before)
        known = await self.database.read(packages.objects)
        for name in names:
            if name not in known and packages.is_object(name):
                await self.storage.delete(name)
        await self.storage.discard_unfinished(before=abandoned_before)
        await FILES.run(_remove_parts, self.folder, abandoned_before.timestamp())


def _remove_parts(folder: Path, before: float) -> None:
    for path in folder.glob("*.part"):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
        except FileNotFoundError:
            continue  # another process has removed it
