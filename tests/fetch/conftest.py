"""Mirrors of real repositories, fetched over HTTP from a real git server."""

import asyncio
import subprocess
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.fetch.commit import Base, Commit, CommitReader
from gateway.fetch.credentials import Remote
from gateway.fetch.git import Git, Progress
from gateway.fetch.limits import GitLimits
from gateway.fetch.mirror import Mirrors, Wanted
from testing.git_host import ENVIRONMENT, GitHost, WorkTree

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetching:
    """Mirrors, and a reader of their commits, called from tests that know nothing of event loops."""

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
        """Bring objects into the mirror; raise what keeps one of them from it."""
        asked = [Wanted(ref=ref, id=one) for ref, one in wanted]
        failed = self.run(
            self.mirrors.update(
                connection=connection, remote=Remote(url=url), wanted=asked, progress=progress
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
        """Say whether the mirror has an object."""
        return not self.run(self.mirrors.missing(self.mirrors.path("c1"), [object_id]))

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run to the end."""
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


@pytest.fixture
def fetching(tmp_path: Path) -> Fetching:
    """Give mirrors."""
    return make_fetching(tmp_path)


@pytest.fixture
def tree(githost: GitHost, tmp_path: Path) -> WorkTree:
    """Give a developer's clone of an empty repository."""
    return WorkTree(tmp_path / "clone", githost.create("acme/digits.git"))


@pytest.fixture
def url(githost: GitHost) -> str:
    """Give that repository's URL."""
    return githost.url("acme/digits.git")
