"""A real browser, Debian's Chromium, for the tests of the dashboard."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from testing.service import ADMIN_TOKEN, Service

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Return a browser; `tests/require-programs` checks that it is installed."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)))
    with sync_playwright() as playwright:
        # Otherwise it would connect to its maker's servers, for updates and the like.
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, service: Service, *, scripts: bool = True) -> Iterator[Page]:
    """Yield a page of a signed-in user. Errors in the browser's console fail the test."""
    with browser.new_context(base_url=service.url, java_script_enabled=scripts) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.extend(_wrong(message.text)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto("/")
        sign_in(page)
        page.get_by_role("button", name="Sign out").wait_for()
        page.wait_for_load_state()
        yield page
        assert complaints == []


def sign_in(page: Page, token: str = ADMIN_TOKEN) -> None:
    """Fill in the form that is shown."""
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def _wrong(message: str) -> list[str]:
    # The browser also reports answers 401 and 404, and failed connections: some tests cause them.
    return [] if message.startswith("Failed to load resource") else [message]
