"""Fixtures of the dashboard's tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from testing.browser import running_browser
from testing.service import Service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser; each test has its own profile in it. Its event loop ends with the module."""
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return one gateway for all tests of a file."""
    with Service(tmp_path_factory.mktemp("shared") / "data") as service:
        yield service
