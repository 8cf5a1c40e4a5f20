"""The forms of sources, their rules, and notification channels, without scripts."""

from playwright.sync_api import Browser, Page, expect

from testing.browser import visit
from testing.service import Service

expect.set_options(timeout=30_000)


def button(page: Page, name: str) -> None:
    """Press a button by its whole name."""
    page.get_by_role("button", name=name, exact=True).click()


def test_a_source_and_its_rules(browser: Browser, shared_service: Service) -> None:
    """Its secret is shown once; the order of the rules counts, so that they can be moved."""
    with visit(browser, shared_service, scripts=False) as page:
        page.goto("/sources")
        page.get_by_role("link", name="Add a source").click()
        button(page, "Add")
        for problem in ("Provider: It is required.", "URL: It must not be empty."):
            expect(page.get_by_role("alert")).to_contain_text(problem)
        page.get_by_label("Provider").select_option("GitHub")
        page.get_by_label("URL (required)").fill("https://github.com/acme")
        button(page, "Add")
        expect(page.get_by_role("heading", name="Shown only once")).to_be_visible()
        for glob in ("ml-*", "research/**"):
            page.get_by_role("link", name="acme", exact=True).click()
            page.get_by_role("link", name="Add a rule").click()
            page.get_by_label("Repositories", exact=True).fill(glob)
            button(page, "Save")
            expect(page.get_by_text("The rule is saved, and decides again.")).to_be_visible()
        page.get_by_role("link", name="Add a trigger").click()
        page.get_by_label("Name (required)", exact=True).fill("train")
        page.get_by_label("Its name").fill("train")
        button(page, "Save")
        expect(page.get_by_role("table", name="Triggers")).to_contain_text("branches main")
        button(page, "Move up")
        [source] = shared_service.api.get("/sources")["items"]
        assert [rule["match"] for rule in source["rules"]] == [["research/**"], ["ml-*"]]
        assert [len(rule["triggers"]) for rule in source["rules"]] == [1, 0]

        page.get_by_role("link", name="research/**").click()
        page.get_by_label("Project").fill("{nope}")
        page.get_by_label("Path of the manifest").fill("../valohai.yaml")
        button(page, "Save")
        for problem in ("Project: ", "Path of the manifest: It must be a path inside the repository"):
            expect(page.get_by_role("alert")).to_contain_text(problem)
        shared_service.api.send("PATCH", f"/sources/{source['id']}", {"name": "renamed"})
        page.get_by_label("Project").fill("{name}")
        page.get_by_label("Path of the manifest").fill("valohai.yaml")
        button(page, "Save")
        expect(page.get_by_role("alert")).to_contain_text("Somebody has changed this")
        page.goto(f"/sources/{source['id']}/rules/2")
        button(page, "Delete the rule")
        expect(page.get_by_text("The rule is deleted.")).to_be_visible()
        page.get_by_role("link", name="Delete", exact=True).click()
        button(page, "Delete the source renamed")
        expect(page.get_by_text("The source renamed is deleted.")).to_be_visible()
    assert shared_service.api.get("/sources")["items"] == []


def test_a_notification_channel(browser: Browser, shared_service: Service) -> None:
    """Its URL is never shown; a generated secret is shown once; a test shows why it fails."""
    with visit(browser, shared_service, scripts=False) as page:
        page.goto("/notifications")
        page.get_by_role("link", name="Add a channel").click()
        page.get_by_label("Name (required)").fill("ops")
        page.get_by_label("Kind").select_option("signed webhook")
        page.get_by_label("URL", exact=True).fill("ftp://127.0.0.1/canary")
        button(page, "Add")
        expect(page.get_by_role("alert")).to_contain_text("URL: ")
        assert "canary" not in page.content()
        page.get_by_label("URL", exact=True).fill("http://127.0.0.1:9/canary")
        button(page, "Add")
        expect(page.get_by_role("main")).to_contain_text("whsec_")
        page.get_by_role("link", name="Done").click()
        button(page, "Test")
        expect(page.get_by_text("The test to ops was not sent: cannot reach 127.0.0.1")).to_be_visible()
        page.get_by_role("link", name="ops", exact=True).click()
        page.get_by_label("dead letters").uncheck()
        page.locator("summary", has_text="Only for some connections").click()
        page.get_by_label("Projects").fill("digits")
        button(page, "Save")
        expect(page.get_by_text("The channel ops is changed.")).to_be_visible()
        [channel] = shared_service.api.get("/notification-channels")["items"]
        assert channel["projects"] == ["digits"]
        assert "dead-letters" not in channel["happenings"]
        page.get_by_role("link", name="Delete ops").click()
        button(page, "Delete the channel ops")
        expect(page.get_by_text("The channel ops is deleted.")).to_be_visible()
    assert shared_service.api.get("/notification-channels")["items"] == []
