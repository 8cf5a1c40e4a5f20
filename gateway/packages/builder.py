"""Packs a tree into a compressed tar in one pass, in parts: it never holds the whole in memory.

The bytes of the tar depend on the tree alone. The compressed bytes also depend on the compressor: another
version of its library, or another kind of processor, may give other bytes.
"""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Literal, Protocol, get_args

import zstandard
from isal import isal_zlib

from gateway.errors import ObjectUnusable
from gateway.fetch.git import Git
from gateway.fetch.process import GitFailed
from gateway.fetch.trees import GITLINK, LINK
from gateway.packages import tar
from gateway.packages.symlinks import check_links
from gateway.packages.tree import Entry, Tree, shown

Format = Literal["tar.gz", "tar.zst"]
FORMATS: tuple[Format, ...] = get_args(Format)

_PART = 512 * 1024
_MAX_LINK_TARGET_BYTES = 4096
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024
_MAX_NAMED_PATHS = 10
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3
# RFC 1952: deflate, no flags, no time, an unknown system.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A package in a file. `id` is the SHA-256 of the tar, `sha256` that of the file; sizes are in bytes."""

    id: str
    sha256: str
    size: int
    tar_size: int
    files: int
    warnings: tuple[str, ...]


class Stopped(Exception):
    """The packing was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packer:
    """Packs trees. Refuses packages of more than `most` bytes; warns above `warn_above` bytes.

    Also refuses tars of more than `most_unpacked` bytes: a few compressed megabytes of zeros would fill a
    runner's disk.
    """

    git: Git
    warn_above: int
    most: int
    most_unpacked: int

    def pack(self, tree: Tree, path: Path, *, package_format: Format, stop: threading.Event) -> Packed:
        """Write the package of a tree into a file. Slow: call it in a thread, and set `stop` to cancel it.

        Raises `ObjectUnusable` if the tree cannot be a package, `GitFailed` if a mirror is broken, `Stopped`
        if it was cancelled.
        """
        targets = self._targets(tree)
        check_links(targets)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            sink = _Sink(file, package_format, self.most, self.most_unpacked, stop)
            pointers = self._write(tree, targets, sink)
            packed = sink.end(files=len(tree.entries))
        warnings = list(tree.warnings)
        if pointers:
            warnings.append(_pointer_warning(pointers))
        if packed.size > self.warn_above:
            warnings.append(
                f"the package has {packed.size} bytes, more than {self.warn_above}: runners will be slow to"
                " fetch it; list the files that they do not need in .vhignore"
            )
        return replace(packed, warnings=tuple(warnings))

    def _targets(self, tree: Tree) -> dict[bytes, bytes]:
        """Return the target of each symbolic link."""
        targets: dict[bytes, bytes] = {}
        for source, path in enumerate(tree.sources):
            links = [entry for entry in tree.entries if entry.source == source and entry.mode == LINK]
            if not links:
                continue
            with self.git.open(path) as objects:
                contents = objects.read([entry.id for entry in links])
                for entry, (size, content) in zip(links, contents, strict=True):
                    if size > _MAX_LINK_TARGET_BYTES:
                        raise ObjectUnusable(
                            f"the target of the link {shown(entry.path)} is too long ({size} bytes)"
                        )
                    targets[entry.path] = b"".join(content)
        return targets

    def _write(self, tree: Tree, targets: dict[bytes, bytes], sink: "_Sink") -> list[bytes]:
        """Write all entries in order; return the paths of the LFS pointers."""
        pointers: list[bytes] = []
        # Entries of one mirror are mostly adjacent: one git starts for each submodule, not for each file.
        for source, entries in groupby(tree.entries, key=lambda entry: entry.source):
            self._write_from(tree.sources[source], list(entries), targets, sink, pointers)
        sink.write(tar.END)
        return pointers

    def _write_from(
        self,
        mirror: Path,
        entries: list[Entry],
        targets: dict[bytes, bytes],
        sink: "_Sink",
        pointers: list[bytes],
    ) -> None:
        with self.git.open(mirror) as objects:
            blobs = objects.read([entry.id for entry in entries if entry.mode not in {LINK, GITLINK}])
            for entry in entries:
                if entry.mode == LINK:
                    sink.write(tar.header(entry.path, kind="link", mode=0o777, target=targets[entry.path]))
                elif entry.mode == GITLINK:
                    sink.write(tar.header(entry.path, kind="folder", mode=0o755))
                else:
                    _write_file(entry, next(blobs), sink, pointers)
            # Reading past the last object verifies that there is nothing more.
            if next(blobs, None) is not None:
                raise GitFailed("the mirror returned more objects than requested")


def _write_file(
    entry: Entry, blob: tuple[int, Iterable[bytes]], sink: "_Sink", pointers: list[bytes]
) -> None:
    size, content = blob
    mode = 0o755 if entry.is_executable else 0o644
    sink.write(tar.header(entry.path, kind="file", mode=mode, size=size))
    for part in content:
        sink.write(part)
        if size < _MAX_POINTER_BYTES and part.startswith(_POINTER):
            pointers.append(entry.path)
    sink.write(tar.padding(size))


def _pointer_warning(pointers: list[bytes]) -> str:
    names = ", ".join(shown(path) for path in pointers[:_MAX_NAMED_PATHS])
    more = f", and {len(pointers) - _MAX_NAMED_PATHS} more" if len(pointers) > _MAX_NAMED_PATHS else ""
    return f"the package has Git LFS pointers in place of these files: {names}{more}"


class _Compressor(Protocol):
    def compress(self, data: bytes | bytearray, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Sink:
    """Accepts the tar in small parts; hashes, compresses and writes it in large ones."""

    def __init__(
        self,
        file: IO[bytes],
        package_format: Format,
        most: int,
        most_unpacked: int,
        stop: threading.Event,
    ) -> None:
        self._file = file
        self._most = most
        self._most_unpacked = most_unpacked
        self._stop = stop
        self._buffer = bytearray()
        self._tar_hash = hashlib.sha256()
        self._file_hash = hashlib.sha256()
        self._crc = 0
        self._tar_size = 0
        self._size = 0
        self._is_gzip = package_format == "tar.gz"
        self._compressor: _Compressor
        if self._is_gzip:
            self._compressor = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, -15)
            self._put(_GZIP_HEADER)
        else:
            self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()

    def write(self, data: bytes) -> None:
        """Append to the tar. Raises `ObjectUnusable` if the package is too large, `Stopped` if cancelled."""
        self._buffer += data
        if len(self._buffer) >= _PART:
            self._flush()

    def end(self, *, files: int) -> Packed:
        """Finish the package. The file is complete and flushed, but not synced to the disk."""
        self._flush()
        self._put(self._compressor.flush())
        if self._is_gzip:
            self._put(self._crc.to_bytes(4, "little") + (self._tar_size % 2**32).to_bytes(4, "little"))
        self._file.flush()
        return Packed(
            id=self._tar_hash.hexdigest(),
            sha256=self._file_hash.hexdigest(),
            size=self._size,
            tar_size=self._tar_size,
            files=files,
            warnings=(),
        )

    def _flush(self) -> None:
        if self._stop.is_set():
            raise Stopped
        self._tar_hash.update(self._buffer)
        self._tar_size += len(self._buffer)
        if self._tar_size > self._most_unpacked:
            raise _too_large("unpacked, the package", self._most_unpacked)
        if self._is_gzip:
            self._crc = isal_zlib.crc32(self._buffer, self._crc)
        self._put(self._compressor.compress(self._buffer))
        self._buffer.clear()

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most:
            raise _too_large("the package", self._most)
        self._file_hash.update(data)
        self._file.write(data)


def _too_large(what: str, most: int) -> ObjectUnusable:
    return ObjectUnusable(
        f"{what} would have more than {most} bytes, which is the limit: list the files that runners do not"
        " need in .vhignore, or keep them in a data store"
    )
