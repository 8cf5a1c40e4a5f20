"""Every page of the dashboard in a real browser: accessible, as wide as the screen, in light and dark.

The pages are those of all routes, so a new page is walked without a change here. Screenshots of them are in
build/screenshots.
"""

import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from testing.browser import sign_in
from testing.npm import installed
from testing.service import Service
from tests.dashboard.getting import signed_in
from tests.dashboard.walk import LONG, busy_gateway, crawled, page_routes
from tests.text.test_relative import NOW, RELATIVE_TIMES

AXE = "axe-core@4.11.1"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
# GitHub and the address bar lead to these, and they lead on to another page.
NOT_LINKED = {"/sign-in", "/sources/{id}/app/created"}
# Only a busy machine needs this long.
expect.set_options(timeout=30_000)
# Width and height.
SCREENS = {"phone": (390, 844), "wide": (1800, 1100), "desktop": (1280, 850)}
# The colour schemes, with the rules of axe that are checked in them; None stands for all.
SCHEMES: tuple[tuple[Literal["dark", "light"], list[str] | None], ...] = (
    ("dark", ["color-contrast"]),
    ("light", None),
)
MORE_PAGES = {
    "not-found": f"/{LONG}",
    "unprocessable": f"/deliveries?connection={LONG}&limit=none",
    "no-such-record": f"/explain?what={LONG}-that-is-not-there",
    "no-match": f"/deliveries?outcome=superseded&branch={LONG}&since=2026-01-01T00:00",
    "nothing-found": f"/search?q={LONG}-that-is-not-there",
    "by-health": "/connections?health=failing",
}
"""Pages besides the first of each route, by the names of their screenshots."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway with records of every kind."""
    with busy_gateway(tmp_path_factory.mktemp("busy")) as service:
        yield service


@pytest.fixture
def signed_in_page(browser: Browser, service: Service) -> Iterator[Page]:
    """Return a page of a signed-in user."""
    # Transitions would still show the colours of the other scheme.
    with browser.new_context(base_url=service.url, reduced_motion="reduce") as context:
        yield _signed_in(context)


def _signed_in(context: BrowserContext) -> Page:
    page = context.new_page()
    page.goto("/")
    sign_in(page)
    return page


def test_every_page_is_accessible_and_fits_every_screen(
    signed_in_page: Page, service: Service, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the longest names, with open details: no finding of axe, and nothing wider than a phone."""
    routes = page_routes(tmp_path / "data")
    found, files = crawled(service, routes, signed_in(service))
    newest = service.api.get("/deliveries")["items"][0]["id"]
    found |= {"/explain": [f"/explain?what={newest}"], "/search": [f"/search?q={LONG}"]}
    assert set(found) == {route.path for route in routes} - NOT_LINKED
    axe = (installed(request.config.cache, AXE) / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    pages = {_name(path): urls[0] for path, urls in found.items() if path not in files} | MORE_PAGES
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    findings = [
        finding for name, url in pages.items() for finding in _looked_at(signed_in_page, name, url, axe)
    ]
    assert findings == []


def test_everything_works_without_scripts(browser: Browser, service: Service) -> None:
    """Signing in, a filter, the search, and signing out."""
    with browser.new_context(base_url=service.url, java_script_enabled=False) as context:
        page = _signed_in(context)
        page.get_by_role("link", name="Deliveries", exact=True).click()
        page.get_by_role("link", name="failed", exact=True).click()
        page.get_by_text("Filter", exact=True).click()
        page.get_by_label("Branch or tag").fill("missing")
        page.get_by_role("button", name="Apply").click()
        expect(page).to_have_url(f"{service.url}/deliveries?branch=missing&outcome=failed")
        expect(page.get_by_role("table", name="Deliveries").get_by_role("row")).to_have_count(2)
        page.get_by_role("link", name="Remove the filter branch").click()
        expect(page).to_have_url(f"{service.url}/deliveries?outcome=failed")
        page.get_by_role("searchbox", name="Search names").fill("missing")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("heading", name="Search for “missing”")).to_be_visible()
        expect(page.get_by_role("table", name="Deliveries")).to_contain_text("branch missing")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()


def test_the_keyboard_reaches_the_content_first(signed_in_page: Page) -> None:
    """The first tab stop leads past the navigation."""
    signed_in_page.goto("/deliveries")
    signed_in_page.keyboard.press("Tab")
    expect(signed_in_page.get_by_role("link", name="Skip to the content")).to_be_focused()
    signed_in_page.keyboard.press("Enter")
    expect(signed_in_page.get_by_role("main")).to_be_focused()


def test_the_script_has_the_rules_of_relative_times(signed_in_page: Page) -> None:
    """Otherwise a time would change its words when the page refreshes it."""
    now = NOW.timestamp() * 1000
    for seconds, text in RELATIVE_TIMES:
        shown = signed_in_page.evaluate(
            "([instant, now]) => relative(instant, now)", [now - seconds * 1000, now]
        )
        assert shown == text, seconds


def _looked_at(page: Page, name: str, url: str, axe: str) -> Iterator[str]:
    """Take screenshots of a page, and yield what is wrong with it."""
    answer = page.goto(url)
    assert answer is not None
    assert answer.status < HTTPStatus.INTERNAL_SERVER_ERROR, url
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
    page.evaluate(axe)
    for scheme, rules in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        yield from (f"{name} ({scheme}): {finding}" for finding in _violations(page, rules))
        page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", full_page=True)
    for screen in ("phone", "wide", "desktop"):
        width, height = SCREENS[screen]
        page.set_viewport_size({"width": width, "height": height})
        if screen != "desktop":
            page.screenshot(path=SCREENSHOTS / f"{name}-{screen}.png", full_page=True)
        if (scrolled := page.evaluate("document.documentElement.scrollWidth")) > width:
            yield f"{name} ({screen}): {scrolled} pixels wide"


def _violations(page: Page, rules: list[str] | None) -> list[str]:
    """Return what axe finds, of all rules or of these."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules is not None:
        options["runOnly"] = {"type": "rule", "values": rules}
    violations = page.evaluate("options => axe.run(document, options).then(all => all.violations)", options)
    return [
        f"{violation['id']}: {node['html'][:200]} ({node['failureSummary']})"
        for violation in violations
        for node in violation["nodes"][:3]
    ]


def _name(path: str) -> str:
    """Return the name of a route's screenshot."""
    return re.sub(r"\W+", "-", path).strip("-") or "overview"
