"""A real browser, Debian's Chromium, as people use the dashboard with it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from testing.service import ADMIN_TOKEN, Service

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Give a browser; `tests/require-programs` has seen to it that there is one."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)))
    with sync_playwright() as playwright:
        # It would look for updates and the like at its maker's, behind the test's back.
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, service: Service) -> Iterator[Page]:
    """Give a page of somebody who has signed in. What the browser complains of is an error at the end."""
    with browser.new_context(base_url=service.url) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.extend(_wrong(message.text)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto("/")
        sign_in(page)
        yield page
        assert complaints == []


def sign_in(page: Page, token: str = ADMIN_TOKEN) -> None:
    """Fill in the form that is shown."""
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def _wrong(message: str) -> list[str]:
    # A page that answers 401 or 404, and a gateway that does not answer, are told as well: some ask for it.
    return [] if message.startswith("Failed to load resource") else [message]
