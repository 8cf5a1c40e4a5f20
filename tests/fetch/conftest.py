"""Fixtures: mirrors, and a repository on a real git server."""

from pathlib import Path

import pytest

from testing.fetching import Fetching, make_fetching
from testing.git_host import GitHost, WorkTree


@pytest.fixture
def fetching(tmp_path: Path) -> Fetching:
    """Return mirrors."""
    return make_fetching(tmp_path)


@pytest.fixture
def tree(githost: GitHost, tmp_path: Path) -> WorkTree:
    """Return a developer's clone of an empty repository."""
    return WorkTree(tmp_path / "clone", githost.create("acme/digits.git"))


@pytest.fixture
def url(githost: GitHost) -> str:
    """Return that repository's URL."""
    return githost.url("acme/digits.git")
