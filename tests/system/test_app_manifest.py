"""A GitHub App is made of a manifest: from the page to the listed repositories."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from threading import Thread
from typing import Any

import httpx2
import pytest

from gateway.cli.source_app import wait_for_app
from testing.provider_apis.fake import serving
from testing.provider_apis.github_app import Installation
from testing.provider_apis.github_manifest import FakeGitHubMakingApps
from testing.service import Service, run_pushgate, wait_for
from tests.dashboard.getting import signed_in

INSTALLED = {"contents": "read", "metadata": "read"}


class Forms(HTMLParser):
    """The forms of a page that have a manifest: where each is sent, and the manifest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action, self.found = "", list[tuple[str, str]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the address of a form, and its manifest."""
        given = dict(attrs)
        if tag == "form":
            self.action = given.get("action") or ""
        if tag == "input" and given.get("name") == "manifest":
            self.found.append((self.action, given.get("value") or ""))


@pytest.fixture
def fake() -> Iterator[FakeGitHubMakingApps]:
    """Serve GitHub without an App."""
    fake = FakeGitHubMakingApps()
    with serving(fake):
        yield fake


@pytest.fixture
def browser(service: Service) -> Iterator[httpx2.Client]:
    """Return a browser without scripts, whose user has signed in."""
    name, _, value = signed_in(service).partition("=")
    with httpx2.Client(follow_redirects=True, headers={"accept": "text/html"}) as client:
        client.cookies.set(name, value, domain="127.0.0.1")
        yield client


def app_of(service: Service) -> Any:
    """Return how far the App is."""
    return service.api.get("/sources/acme")["app"]


def test_an_app_is_made_installed_and_used(
    service: Service,
    fake: FakeGitHubMakingApps,
    browser: httpx2.Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its secrets come from GitHub, and are in no answer, log or file."""
    add = ("source", "add", "github", "--url", f"{fake.url}/acme")
    added = run_pushgate(*add, service=service, variables={"COLUMNS": "300"})
    page = app_of(service)["page"]
    assert (added.returncode, page in added.stdout, "Or, without an App:" in added.stdout) == (0, True, True)
    shown = browser.get(page)
    assert f"form-action 'self' {fake.url};" in shown.headers["content-security-policy"]
    arguments = {"client": service.api, "source": service.api.get("/sources/acme"), "opens_browser": False}
    waiting = Thread(target=wait_for_app, kwargs=arguments)
    waiting.start()
    [(address, manifest), _] = Forms(shown.text).found
    wanted = json.loads(manifest)
    assert (wanted["name"], wanted["public"]) == ("Pushgate acme", False)
    assert wanted["hook_attributes"]["url"] == service.api.get("/sources/acme")["hook_url"]

    after = browser.post(address, data={"manifest": manifest})
    assert str(after.url) == page
    wait_for(lambda: app_of(service)["state"] == "created", "the key is there")
    made = app_of(service)
    assert made["install_url"] == f"{fake.url}/github-apps/pushgate-acme/installations/new"
    wait_for(lambda: "is not installed on acme" in (app_of(service)["reason"] or ""), "nothing is listed")
    assert made["install_url"] in browser.get(page).text
    assert "not installed yet" in run_pushgate("source", "show", "acme", service=service).stdout
    line = f"App: not installed yet: install it at {made['install_url']}\n"
    wait_for(lambda: line in capsys.readouterr().out, "the command shows it")
    fake.installations.append(Installation(7, "acme", ["acme/digits"], {**INSTALLED}))
    assert str(browser.get(page, params={"installation_id": "7", "setup_action": "install"}).url) == page
    wait_for(lambda: app_of(service)["state"] == "installed", "the repositories are listed")
    assert "✓ It is installed. Repositories: 1 " in browser.get(page).text
    waiting.join()
    assert capsys.readouterr().out == "App: installed\n"
    source = service.api.get("/sources/acme")
    assert source["identity"] == "pushgate-acme"
    [identity] = service.api.get("/identities")["items"]
    assert identity["settings"] == {"app_id": "4711", "client_id": fake.client_id, "slug": "pushgate-acme"}
    hook = {"secret": fake.hook_config["secret"], "path": f"/hooks/{source['id']}"}
    assert service.deliver(hook, b'{"zen": "Design for failure."}', event="ping")[0] == 200
    checked = run_pushgate("doctor", "acme", "--json", service=service)
    assert (checked.returncode, json.loads(checked.stdout)["items"][0]["differences"]) == (0, [])
    assert fake.hook_config["content_type"] == "json"

    fake.events.remove("merge_group")
    fake.hook_config["url"] = "http://127.0.0.1:9/elsewhere"
    refused = service.api.send("POST", "/sources/acme/webhook", wait=15)["reason"]
    assert "and an App has only one" in refused
    assert "and an App has only one" in browser.get(source_page := page.removesuffix("/app")).text
    fake.hook_config["url"] = source["hook_url"]
    told = run_pushgate("doctor", "acme", "--fix", service=service, variables={"COLUMNS": "300"}).stdout
    assert "Add the event merge_group to the GitHub App pushgate-acme" in told
    assert "Add the event merge_group" in browser.get(source_page).text
    no_secret_is_in(json.dumps([service.log(), identity, source]) + added.stdout + told, service, fake)


def no_secret_is_in(text: str, service: Service, fake: FakeGitHubMakingApps) -> None:
    """Fail if what GitHub has given is in a text, or in a file of the gateway."""
    [answered] = [one for one in fake.requests if one.path.endswith("/conversions")]
    assert answered.status == 201
    code, kept = answered.path.split("/")[-2], service.stored()
    for secret in (fake.hook_config["secret"], fake.pem.splitlines()[5], "canary-client-secret", code):
        assert secret not in text
        assert secret.encode() not in kept
