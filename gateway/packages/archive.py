"""Each commit's package: built once and stored."""

import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from gateway.errors import ObjectUnusable, PackageStorageUnavailable, RemoteUnavailable
from gateway.fetch.credentials import Remote
from gateway.fetch.mirror import Mirrors
from gateway.fetch.process import GitFailed, GitTimedOut, LimitReached
from gateway.messages.execution_request import Package, Submodule
from gateway.messages.packages import PlannedPackage
from gateway.packages.builder import FORMATS, Packed, Packer
from gateway.packages.storage import PackageStorage
from gateway.packages.submodules import Submodules
from gateway.packages.tree import Module, Tree, TreeReader
from gateway.store import packages
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.packages import Build, KeptPackage
from gateway.threads import PACKING, to_the_end

log = structlog.get_logger()

RULES = "3"
"""The version of the packing rules. A package that other rules made is not used again."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A stored package, with its submodules and warnings.

    Its URL is a path without a signature: gateway/packages/signing.py replaces it.
    """

    package: Package
    submodules: tuple[Submodule, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Builds packages. `folder` holds unfinished files."""

    database: Database
    storage: PackageStorage
    mirrors: Mirrors
    reader: TreeReader
    packer: Packer
    folder: Path

    async def ready(
        self, connection: Connection, commit: str, remote_of: Callable[[str], Awaitable[Remote]]
    ) -> Ready:
        """Return the package of a commit that the connection's mirror has; build it if it is not stored.

        `remote_of` returns the remote of a submodule by its URL. Raises `ObjectUnusable` if no package is
        possible, `RemoteUnavailable` if a later try may succeed.
        """
        try:
            found = await self._stored(connection, commit)
            kept, build = found or await self._build(connection, commit, remote_of)
        except PackageStorageUnavailable as error:
            raise RemoteUnavailable(f"the package cannot be stored: {error}") from error
        planned = PlannedPackage(id=kept.id, format=kept.format, sha256=kept.sha256, size=kept.size)
        return Ready(
            planned.unsigned("", now=_now()),
            tuple(Submodule(**submodule) for submodule in build.submodules),
            tuple(kept.warnings),
        )

    async def _stored(self, connection: Connection, commit: str) -> tuple[KeptPackage, Build] | None:
        """Return a package that was built before, if its file still exists."""
        found = await self.database.write(
            packages.use,
            connection=connection.id,
            commit=commit,
            package_format=connection.package_format,
            rules=_rules(connection),
            now=_now(),
        )
        if found is None:
            return None
        kept, _ = found
        if await self.storage.size(kept.object) == kept.size:
            return found
        log.warning("package file lost; building it again", package=kept.id, object=kept.object)
        await self.database.write(packages.forget, package_id=kept.id, package_format=kept.format)
        return None

    async def _build(
        self, connection: Connection, commit: str, remote_of: Callable[[str], Awaitable[Remote]]
    ) -> tuple[KeptPackage, Build]:
        started = time.monotonic()
        submodules = Submodules(self.mirrors, connection.id, remote_of)
        path = self.folder / f"{secrets.token_hex(8)}.part"
        try:
            tree = await self.reader.read(
                self.mirrors.path(connection.id),
                commit=commit,
                url=connection.url,
                fetch=submodules.fetch,
                manifest=connection.yaml_path,
            )
            packed = await self._pack(tree, path, connection.package_format)
            kept, build = await self._store(connection, commit, packed, tree.modules, path)
        except GitTimedOut as error:
            raise RemoteUnavailable(f"the package took too long: {error}") from error
        except LimitReached as error:
            raise ObjectUnusable(f"the package cannot be built: {error}") from error
        except GitFailed as error:
            for mirror in (connection.id, *submodules.mirrors_used):
                await self.mirrors.discard(mirror)
            raise RemoteUnavailable(f"a mirror was broken and is fetched again (git: {error})") from error
        finally:
            path.unlink(missing_ok=True)
        log.info(
            "package built",
            connection=connection.id,
            commit=commit,
            package=kept.id,
            size=kept.size,
            files=kept.files,
            submodules=len(tree.modules),
            warnings=list(kept.warnings),
            ms=round((time.monotonic() - started) * 1000),
        )
        return kept, build

    async def _pack(self, tree: Tree, path: Path, package_format: str) -> Packed:
        supported = next((name for name in FORMATS if name == package_format), None)
        if supported is None:
            raise ObjectUnusable(f"unknown package format {package_format}; there are {', '.join(FORMATS)}")
        stop = threading.Event()
        packing = PACKING.run(self.packer.pack, tree, path, package_format=supported, stop=stop)
        return await to_the_end(packing, stop=stop.set)

    async def _store(
        self, connection: Connection, commit: str, packed: Packed, modules: list[Module], path: Path
    ) -> tuple[KeptPackage, Build]:
        """Upload the file and record it only then, so that no reader sees half a package."""
        name = f"{packed.id}/{secrets.token_hex(8)}.{connection.package_format}"
        await self.storage.put(name, path)
        package = _kept(packed, name, connection.package_format)
        build = Build(
            connection=connection.id,
            commit=commit,
            format=connection.package_format,
            rules=_rules(connection),
            submodules=[
                {"path": module.path, "url": module.url, "commit": module.commit} for module in modules
            ],
        )
        kept = await self.database.write(packages.keep, package=package, build=build)
        if kept.object != name:
            await self.storage.delete(name)
        return kept, build


def _kept(packed: Packed, name: str, package_format: str) -> KeptPackage:
    now = _now()
    return KeptPackage(
        id=packed.id,
        format=package_format,
        object=name,
        sha256=packed.sha256,
        size=packed.size,
        tar_size=packed.tar_size,
        files=packed.files,
        warnings=packed.warnings,
        made_at=now,
        last_used_at=now,
    )


def _rules(connection: Connection) -> str:
    """Return what a package depends on besides its commit: the file at `yaml_path` is always part of it."""
    return f"{RULES} {connection.yaml_path}"


def _now() -> datetime:
    return datetime.now(UTC)
