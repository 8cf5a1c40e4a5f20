"""Connecting a repository and changing a connection in a real browser, with scripts and without."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from testing.browser import visit
from testing.git_host import GitHost
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Project, Service
from tests.dashboard.getting import got, signed_in

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    """Return one git server for all tests of this file."""
    with GitHost(tmp_path_factory.mktemp("git")) as host:
        yield host


def repository(host: GitHost, tmp_path: Path, name: str) -> Project:
    """Return a repository of its own for a test."""
    return Project(host, tmp_path, name)


def connection(shared_service: Service, name: str) -> Any:
    """Return the connection with a name."""
    [found] = shared_service.api.get("/connections", name=name)["items"]
    return {**found, "path": f"/hooks/{found['id']}"}


def button(page: Page, name: str) -> None:
    """Press a button by its whole name."""
    page.get_by_role("button", name=name, exact=True).click()


def shown_secret(page: Page) -> str:
    """Return the secret on the page that shows it once."""
    found = page.locator("dt", has_text="Secret").first.locator("+ dd").locator("code").inner_text()
    assert re.fullmatch(r"[0-9a-f]{64}", found)
    return found


@pytest.mark.parametrize("scripts", [True, False])
def test_a_repository_is_connected_by_hand(
    browser: Browser, shared_service: Service, host: GitHost, tmp_path: Path, *, scripts: bool
) -> None:
    """From its URL to its first delivery, which the page shows by itself, and to a trigger that was tried."""
    project = repository(host, tmp_path, f"hand/with-scripts-{scripts}".lower())
    with visit(browser, shared_service, scripts=scripts) as page:
        page.goto("/connections")
        page.get_by_role("link", name="Connect a repository").click()
        page.get_by_label("Clone URL").fill(project.url)
        button(page, "Continue")
        expect(page.get_by_role("alert")).to_contain_text("Nothing in the URL shows the provider")
        page.get_by_label("Provider").select_option("GitHub")
        button(page, "Continue")
        page.get_by_label("Webhook secret").evaluate("field => field.closest('details').open = true")
        page.get_by_label("Webhook secret").fill("too short")
        button(page, "Connect")
        problems = page.get_by_role("alert")
        expect(problems).to_contain_text("Project: It must not be empty.")
        expect(problems).to_contain_text("Secrets are not sent back")
        expect(page.get_by_label("Clone URL")).to_have_value(project.url)
        expect(page.get_by_label("Webhook secret")).to_have_value("")
        page.get_by_label("Project (required)").fill("digits")
        page.get_by_label("Project (required)").press("Enter")
        expect(page.get_by_role("main")).to_contain_text(
            "The repository can be read; its default branch is main."
        )
        secret = shown_secret(page)
        expect(page.get_by_role("main")).to_contain_text("Settings → Webhooks → Add webhook")
        page.get_by_role("link", name="Wait for the first delivery").click()
        expect(page.get_by_role("main")).to_contain_text("Waiting for the first delivery.")
        assert secret not in page.content()

        # The user leaves; the page of the connection leads back.
        made = connection(shared_service, project.name)
        page.goto(f"/connections/{made['id']}")
        page.get_by_role("link", name="Continue with the setup").click()
        payload = project.payload(None, project.first)
        shared_service.deliver({**made, "secret": "another secret"}, payload)
        expect(page.get_by_role("main")).to_contain_text("A request was refused")
        _, answer = shared_service.deliver({**made, "secret": secret}, payload)
        expect(page.get_by_role("main")).to_contain_text("✓ Received")
        shared_service.settled(answer["delivery"])
        expect(page.get_by_role("link", name="push", exact=True)).to_have_attribute(
            "href", f"/deliveries/{answer['delivery']}"
        )
        page.get_by_role("link", name="Add a trigger").click()
        tried_and_saved(page)
    [trigger] = connection(shared_service, project.name)["triggers"]
    assert (trigger["run"], trigger["branches"]) == ({"step": "train"}, ["main"])
    assert (trigger["parameters"], trigger["on"]) == ({"epochs": 9}, ["push"])


def tried_and_saved(page: Page) -> None:
    """Fill in a trigger: see all problems at once, try it in vain, try it with success, and save it."""
    page.get_by_label("Branches").fill("main\n!")
    button(page, "Save")
    for problem in ("Name: It must not be empty.", "Its name: It must not be empty.", "Branches: "):
        expect(page.get_by_role("alert")).to_contain_text(problem)
    expect(page.get_by_label("Branches")).to_have_value("main\n!")
    page.get_by_label("Name (required)", exact=True).fill("train")
    page.get_by_label("Its name").fill("train")
    page.get_by_label("Branches").fill("dev")
    button(page, "Try on past pushes")
    expect(page.get_by_role("region", name="Dry run")).to_contain_text(
        "this trigger would run for 0, and not for 1"
    )
    expect(page.get_by_role("region", name="These would not run")).to_contain_text(
        "branch main does not match dev"
    )
    page.get_by_label("Branches").fill("main")
    page.locator("summary", has_text="Parameters, inputs and environment").click()
    page.get_by_label("Parameters").fill("epochs: 9")
    button(page, "Try on past pushes")
    expect(page.get_by_role("region", name="These would run")).to_contain_text("branch main matches")
    button(page, "Save")
    expect(page.get_by_text("The trigger train is saved.")).to_be_visible()
    expect(page.get_by_role("table", name="Triggers")).to_contain_text("branches main")


def test_an_identity_registers_the_webhook(
    browser: Browser, shared_service: Service, host: GitHost, tmp_path: Path
) -> None:
    """The identity is added on the way; a rotation sets the new secret there, and the old is revoked."""
    project = repository(host, tmp_path, "acme/registered")
    github = FakeGitHub(tokens={"good": {project.name}})
    with serving(github), visit(browser, shared_service) as page:
        page.goto("/connect")
        page.get_by_label("Clone URL").fill(project.url.replace("://", "://ada:p4ssw0rd@"))
        page.get_by_label("Provider").select_option("GitHub")
        button(page, "Continue")
        expect(page.get_by_role("alert")).to_contain_text("The password was left out of the URL")
        assert "p4ssw0rd" not in page.content()
        page.get_by_label("Project (required)").fill("digits")
        button(page, "Add an identity first")
        page.get_by_label("Name (required)").fill("bot")
        page.get_by_label("Access token").fill("good")
        expect(page.get_by_label("App ID")).to_be_hidden()
        page.locator("summary", has_text="A server of your own").click()
        page.get_by_label("URL of the API").fill(f"{github.url}/api/v3")
        button(page, "Add")
        expect(page.get_by_label("Identity")).to_have_value("bot")
        expect(page.get_by_label("Project (required)")).to_have_value("digits")
        button(page, "Connect")
        expect(page.get_by_text("its webhook is registered at the provider")).to_be_visible()
        expect(page.get_by_role("main")).to_contain_text("✓ Received")
        [hook] = github.hooks[project.name]
        made = connection(shared_service, project.name)

        page.goto(f"/connections/{made['id']}")
        page.get_by_role("link", name="Rotate the secret").click()
        button(page, "Rotate the secret")
        expect(page.get_by_role("main")).to_contain_text("The new secret is set at the provider.")
        secret = shown_secret(page)
        assert hook["config"]["secret"] == secret
        expect(page.get_by_role("main")).to_contain_text("it was last used")
        page.reload()
        expect(page.get_by_text("The secret was rotated meanwhile.")).to_be_visible()
        assert len(connection(shared_service, project.name)["secrets"]) == 2
        button(page, "Revoke the previous secret")
        expect(page.get_by_text("The previous secret is revoked")).to_be_visible()
        assert len(connection(shared_service, project.name)["secrets"]) == 1

        page.goto("/identities")
        page.get_by_role("link", name="bot").click()
        button(page, "Check now")
        expect(page.get_by_text("127.0.0.1 accepts it.")).to_be_visible()
        page.get_by_role("link", name="Delete").click()
        button(page, "Delete the identity bot")
        expect(page.get_by_role("alert")).to_contain_text("bot")
    shared_service.api.send("DELETE", f"/connections/{made['id']}")
    shared_service.api.send("DELETE", "/identities/bot")
    for hidden in ("p4ssw0rd", "too short", secret):
        assert hidden not in str(shared_service.log())


@pytest.mark.parametrize("scripts", [True, False])
def test_a_connection_is_changed_and_deleted(
    browser: Browser, shared_service: Service, host: GitHost, tmp_path: Path, *, scripts: bool
) -> None:
    """Its settings, its credentials and its triggers; a deletion is confirmed, and says what is lost."""
    project = repository(host, tmp_path, f"acme/changed-{scripts}".lower())
    made = shared_service.connect(project.url, "train@main", "other@dev", name=project.name)
    path = f"/connections/{made['id']}"
    renamed = f"renamed-{scripts}"
    with visit(browser, shared_service, scripts=scripts) as page:
        page.goto(path)
        page.get_by_role("link", name="Edit", exact=True).click()
        page.get_by_label("Name (required)").fill(" ")
        page.get_by_label("Branches that count").fill("main\nrelease/*\n[")
        button(page, "Save")
        for problem in ("Name: It must not be empty.", "Branches that count: "):
            expect(page.get_by_role("alert")).to_contain_text(problem)
        page.get_by_label("Name (required)").fill(renamed)
        page.get_by_label("Branches that count").fill("main\nrelease/*")
        button(page, "Save")
        expect(page.get_by_text(f"The settings of {renamed} are changed.")).to_be_visible()
        changed = shared_service.api.get(path)
        assert (changed["name"], changed["follows"]) == (renamed, ["main", "release/*"])
        assert changed["triggers"] == made["triggers"]

        page.get_by_role("link", name="Change", exact=True).click()
        page.get_by_label("User").fill("ada")
        page.get_by_label("Password or token").fill("a p4ssword")
        button(page, "Save")
        expect(page.get_by_role("main")).to_contain_text("user and password or token")
        assert "p4ssword" not in page.content()

        page.get_by_role("link", name="other@dev", exact=True).click()
        page.get_by_label("Name (required)", exact=True).fill("train@main")
        button(page, "Save")
        expect(page.get_by_role("alert")).to_contain_text("two triggers of this name")
        page.goto(path)
        page.get_by_role("link", name="Delete other@dev").click()
        button(page, "Delete the trigger other@dev")
        expect(page.get_by_text("The trigger other@dev is deleted.")).to_be_visible()
        assert [one["name"] for one in shared_service.api.get(path)["triggers"]] == ["train@main"]

        page.get_by_role("link", name="Delete", exact=True).click()
        expect(page.get_by_role("main")).to_contain_text("Remove its webhook at the provider yourself")
        button(page, f"Delete the connection {renamed}")
        expect(page).to_have_url(f"{shared_service.url}/connections")
        expect(page.get_by_text(f"{renamed} is deleted.")).to_be_visible()
    assert got(shared_service.url + path, signed_in(shared_service))[0] == 404
