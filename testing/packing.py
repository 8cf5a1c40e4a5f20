"""Packs commits from real mirrors for tests, and unpacks them with Python's own tar."""

import asyncio
import gzip
import io
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import zstandard

from gateway.fetch.credentials import Remote
from gateway.packages.builder import Format, Packed, Packer
from gateway.packages.submodules import Submodules, submodule_remote
from gateway.packages.tree import Tree, TreeReader
from testing.fetching import Fetching
from testing.git_host import ENVIRONMENT, WorkTree

MAIN = "refs/heads/main"


class Packing:
    """Reads and packs trees, with synchronous methods for tests."""

    def __init__(
        self,
        fetching: Fetching,
        folder: Path,
        *,
        warn_above: int = 10**8,
        most: int = 10**9,
        most_unpacked: int = 10**9,
    ) -> None:
        """Put packages into a folder."""
        self._fetching = fetching
        self._folder = folder
        self._reader = TreeReader(fetching.git, allow_http=True, hosts=())
        self._packer = Packer(git=fetching.git, warn_above=warn_above, most=most, most_unpacked=most_unpacked)

    def tree(self, url: str, commit: str, *, manifest: str | None = None) -> Tree:
        """Fetch a commit, and read its tree."""
        self._fetching.update(url, (MAIN, commit))
        return self.tree_in(self._fetching.mirrors.path("c1"), commit, url=url, manifest=manifest)

    def tree_in(
        self,
        mirror: Path,
        commit: str,
        *,
        url: str = "https://host.example/a/b",
        manifest: str | None = None,
    ) -> Tree:
        """Read the tree of a commit in a mirror."""

        async def remote_of(submodule: str) -> Remote:
            return submodule_remote(Remote(url=url), submodule)

        submodules = Submodules(self._fetching.mirrors, "c1", remote_of)
        return asyncio.run(
            self._reader.read(mirror, commit=commit, url=url, fetch=submodules.fetch, manifest=manifest)
        )

    def pack(self, tree: Tree, package_format: Format = "tar.gz") -> tuple[Packed, bytes]:
        """Pack a tree; return the file's content as well."""
        path = self._folder / "package"
        try:
            packed = self._packer.pack(tree, path, package_format=package_format, stop=threading.Event())
            return packed, path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def unpacked(self, tree: Tree) -> Mapping[str, bytes | None]:
        """Pack a tree, unpack it, and return the content of each file, None for a folder."""
        _, content = self.pack(tree)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            return {
                one.name: found.read() if (found := archive.extractfile(one)) else None for one in archive
            }

    @staticmethod
    def mktree(work: WorkTree, listing: str) -> str:
        """Make a tree that a checkout could not make; return its id."""
        done = subprocess.run(
            ["git", "mktree", "-z"],
            cwd=work.folder,
            env=ENVIRONMENT,
            input=listing,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()


def names(tree: Tree) -> list[str]:
    """Return the paths of a tree."""
    return [entry.path.decode() for entry in tree.entries]


def untarred(content: bytes, package_format: Format) -> bytes:
    """Return the tar in a package, decompressed by a different library than compressed it."""
    if package_format == "tar.gz":
        return gzip.decompress(content)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).readall()


def add_submodule(work: WorkTree, *, path: str, url: str | None, commit: str) -> None:
    """Record a submodule without checking it; without a URL, .gitmodules does not name it."""
    (work.folder / path).mkdir(parents=True, exist_ok=True)
    work.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    if url is not None:
        for name, value in (("path", path), ("url", url)):
            work.git("config", "--file", ".gitmodules", f"submodule.{path}.{name}", value)
