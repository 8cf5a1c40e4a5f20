"""The fixtures of `tests/fetch`, for the tests of packages."""

from tests.fetch.conftest import fetching, tree, url

__all__ = ["fetching", "tree", "url"]
