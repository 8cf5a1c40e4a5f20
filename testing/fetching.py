"""Mirrors of real repositories, fetched over HTTP from a real git server."""

import asyncio
import subprocess
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gateway.fetch.commit import Base, Commit, CommitReader
from gateway.fetch.credentials import Remote
from gateway.fetch.git import Git
from gateway.fetch.limits import GitLimits
from gateway.fetch.mirror import Mirrors, Wanted
from gateway.fetch.process import Progress
from testing.git_host import ENVIRONMENT, WorkTree

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetching:
    """Mirrors and a reader of their commits, with synchronous methods for tests."""

    git: Git
    mirrors: Mirrors
    reader: CommitReader

    def update(
        self,
        url: str,
        *wanted: tuple[str, str],
        connection: str = "c1",
        progress: Progress | None = None,
    ) -> None:
        """Fetch objects into the mirror; raise the first error of a single object."""
        objects = [Wanted(ref=ref, id=object_id) for ref, object_id in wanted]
        failed = self.run(
            self.mirrors.update(
                connection=connection, remote=Remote(url=url), wanted=objects, progress=progress
            )
        )
        for error in failed.values():
            raise error

    def read(
        self,
        object_id: str,
        *,
        before: str | None = None,
        default: str | None = None,
        path: str = "valohai.yaml",
    ) -> Commit:
        """Read a commit from the mirror."""
        return self.run(
            self.reader.read(
                self.mirrors.path("c1"),
                object_id=object_id,
                yaml_path=path,
                paths_since=Base(before=before, default_branch=default),
            )
        )

    def has(self, object_id: str) -> bool:
        """Return whether the mirror has an object."""
        return not self.run(self.mirrors.missing(self.mirrors.path("c1"), [object_id]))

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return asyncio.run(work)


def make_fetching(folder: Path, *, timeout: float = 30, **limits: int) -> Fetching:
    """Return mirrors in a folder."""
    git = Git(home=folder / "home", allow_http=True, timeout=timeout, limits=GitLimits(**limits))
    return Fetching(git, Mirrors(git, folder / "mirrors"), CommitReader(git, manifest_limit=1000))


def mktree(tree: WorkTree, *entries: str) -> str:
    """Write a folder with these entries, as `git ls-tree` shows them; return its id."""
    lines = "".join(f"{entry}\n" for entry in entries)
    done = subprocess.run(
        ["git", "mktree"],
        input=lines,
        cwd=tree.folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
