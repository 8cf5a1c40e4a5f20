"""Stored packages, the commits they were built from, and when an execution was last planned with each.

Packages are a cache: an unused package expires, and is built again when an execution needs its commit.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Executable, Row, and_, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.errors import NotFound
from gateway.store.rows import from_row
from gateway.store.tables import package_builds, packages

_OBJECT = re.compile(r"[0-9a-f]{64}/[0-9a-f]{16}\.tar\.(gz|zst)")

# Built once: building one takes longer than running it.
_OF_COMMIT = (
    package_builds.c.connection == bindparam("of"),
    package_builds.c.commit == bindparam("at"),
    package_builds.c.format == bindparam("as"),
)
_BUILD = select(package_builds).where(*_OF_COMMIT, package_builds.c.rules == bindparam("by"))
_FORGET_BUILD = delete(package_builds).where(*_OF_COMMIT)
_ADD_BUILD = insert(package_builds)
_GET = select(packages).where(packages.c.id == bindparam("of"), packages.c.format == bindparam("as"))


def _keep(dialect: Any) -> Executable:
    new = dialect.insert(packages)
    used = {"last_used_at": new.excluded.last_used_at}
    statement: Executable = new.on_conflict_do_update(index_elements=["id", "format"], set_=used)
    return statement


_KEEP = {"sqlite": _keep(sqlite), "postgresql": _keep(postgresql)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPackage:
    """A stored package. `id` is the SHA-256 of the tar, `sha256` that of the compressed file.

    `size` and `tar_size` are bytes; `object` is its name in the storage. `last_used_at` is when an execution
    was last planned with it.
    """

    id: str
    format: str
    object: str
    sha256: str
    size: int
    tar_size: int
    files: int
    warnings: Sequence[str]
    made_at: datetime
    last_used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The source of a package: a commit of a connection, packed by the `rules` of a version of Pushgate.

    `submodules` are the included submodules: path, url and commit of each.
    """

    connection: str
    commit: str
    format: str
    rules: str
    submodules: Sequence[Mapping[str, str]] = ()


def subject(package_id: str, package_format: str) -> str:
    """Return the subject of the signed token in the URL of a package."""
    return f"{package_id}\n{package_format}"


def use(
    conn: sqlalchemy.Connection,
    *,
    connection: str,
    commit: str,
    package_format: str,
    rules: str,
    now: datetime,
) -> tuple[KeptPackage, Build] | None:
    """Return the package of a commit and record its use; None if no package is stored."""
    key = {"of": connection, "at": commit, "as": package_format, "by": rules}
    row = conn.execute(_BUILD, key).one_or_none()
    if row is None:
        return None
    is_it = _is(row.package, row.format)
    # A package that expires at this moment is gone when the update returns.
    if not conn.execute(update(packages).where(is_it).values(last_used_at=now)).rowcount:
        return None
    build = from_row(Build, row, submodules=tuple(row.submodules))
    return _record(conn.execute(select(packages).where(is_it)).one()), build


def keep(conn: sqlalchemy.Connection, package: KeptPackage, build: Build) -> KeptPackage:
    """Record a package and what it was built from.

    Return the stored package: that of another build, with its own object, if that was faster.
    """
    conn.execute(_KEEP[conn.dialect.name], asdict(package))
    conn.execute(_FORGET_BUILD, {"of": build.connection, "at": build.commit, "as": build.format})
    submodules = [dict(submodule) for submodule in build.submodules]
    conn.execute(_ADD_BUILD, {**asdict(build), "submodules": submodules, "package": package.id})
    return get(conn, package.id, package.format)


def get(conn: sqlalchemy.Connection, package_id: str, package_format: str) -> KeptPackage:
    """Return a package. Raise `NotFound`."""
    row = conn.execute(_GET, {"of": package_id, "as": package_format}).one_or_none()
    if row is None:
        raise NotFound(
            f"there is no package {package_id} as {package_format}: packages expire some time after the last"
            " execution that was asked for with them"
        )
    return _record(row)


def find(
    conn: sqlalchemy.Connection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], KeptPackage]:
    """Return those of these packages that are stored, by their ids and formats."""
    if not keys:
        return {}
    rows = conn.execute(select(packages).where(packages.c.id.in_({package_id for package_id, _ in keys})))
    return {(row.id, row.format): _record(row) for row in rows}


def built_from(
    conn: sqlalchemy.Connection, *, connection: str, commit: str, package_format: str
) -> KeptPackage | None:
    """Return the stored package of a commit, by whichever rules it was built."""
    build = package_builds.c.package == packages.c.id, package_builds.c.format == packages.c.format
    its_commit = (
        package_builds.c.connection == connection,
        package_builds.c.commit == commit,
        package_builds.c.format == package_format,
    )
    row = conn.execute(select(packages).where(*build, *its_commit)).one_or_none()
    return None if row is None else _record(row)


def touch(conn: sqlalchemy.Connection, package_id: str, package_format: str, *, now: datetime) -> KeptPackage:
    """Record the use of a package, which restarts its time until it expires. Raise `NotFound`."""
    conn.execute(update(packages).where(_is(package_id, package_format)).values(last_used_at=now))
    return get(conn, package_id, package_format)


def forget(conn: sqlalchemy.Connection, package_id: str, package_format: str) -> None:
    """Delete the records of a package and its build."""
    conn.execute(
        delete(package_builds).where(
            package_builds.c.package == package_id, package_builds.c.format == package_format
        )
    )
    conn.execute(delete(packages).where(_is(package_id, package_format)))


def expire(conn: sqlalchemy.Connection, *, before: datetime) -> list[KeptPackage]:
    """Delete the records of packages that were last used before `before`, and return them."""
    rows = conn.execute(select(packages).where(packages.c.last_used_at < before).with_for_update()).all()
    for row in rows:
        forget(conn, row.id, row.format)
    return [_record(row) for row in rows]


def objects(conn: sqlalchemy.Connection) -> set[str]:
    """Return the objects of all packages, by their names in the storage."""
    return set(conn.execute(select(packages.c.object)).scalars())


def is_object(name: str) -> bool:
    """Return whether an object of the storage has the name of a package. Other objects are left alone."""
    return _OBJECT.fullmatch(name) is not None


def _is(package_id: str, package_format: str) -> Any:
    return and_(packages.c.id == package_id, packages.c.format == package_format)


def _record(row: Row[Any]) -> KeptPackage:
    return from_row(KeptPackage, row, warnings=tuple(row.warnings))
