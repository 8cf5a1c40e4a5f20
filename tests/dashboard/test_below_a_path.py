"""The dashboard below a path of its host, and the forms of keys and identities there."""

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from testing.in_process import Answer, InProcess
from tests.dashboard.getting import Browser

PREFIX = "/pushgate"


class Addresses(HTMLParser):
    """The addresses in a page: of links, forms and files."""

    def __init__(self) -> None:
        """Start without any."""
        super().__init__()
        self.links: set[str] = set()
        self.others: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect them."""
        for name, value in attrs:
            if name in {"href", "src", "action", "formaction"} and value and not value.startswith("#"):
                is_page = tag == "a" and not urlsplit(value).netloc
                (self.links if is_page else self.others).add(value)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Return a gateway below a path, with a record of each kind that has a name."""
    url = f"http://ci.example{PREFIX}"
    with InProcess(tmp_path_factory.mktemp("below") / "data", public_url=url) as gateway:
        for path, body in (
            ("connections", {"provider": "github", "url": "git@github.com:acme/digits.git", "project": "d"}),
            ("identities", {"provider": "github", "name": "bot", "token": "secret"}),
            ("sources", {"provider": "github", "url": "https://github.com/acme"}),
            ("notification-channels", {"name": "ml", "kind": "slack", "url": "https://hooks.example/x"}),
        ):
            answer = gateway.send("POST", f"/api/v1/{path}", body)
            assert answer.status == 201, answer.body
        yield gateway


@pytest.fixture(scope="module")
def browser(gateway: InProcess) -> Browser:
    """Return a browser that has signed in."""
    return Browser(gateway)


def private_key() -> str:
    """Return the private key of an App."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    format_, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    return key.private_bytes(encoding, format_, serialization.NoEncryption()).decode()


def target(answer: Answer) -> str:
    """Return the path of a redirect, without the prefix of the gateway."""
    assert answer.status == 303, unescape(answer.body.decode())
    location = answer.headers["location"]
    assert location.startswith(f"{PREFIX}/")
    return location.removeprefix(PREFIX)


def test_every_page_stays_below_the_path(browser: Browser) -> None:
    """Its links lead to pages that are there; so do those of forms and files."""
    unseen, seen, others = {f"{PREFIX}/"}, set[str](), set[str]()
    while unseen:
        link = unseen.pop()
        seen.add(link)
        path = urlsplit(link).path
        assert path.startswith(f"{PREFIX}/"), link
        # What is no page of the dashboard, and the same list by other words.
        if path.startswith((f"{PREFIX}/api/", f"{PREFIX}/docs/")) or "=" in link:
            continue
        found = Addresses()
        found.feed(browser.get(link.removeprefix(PREFIX)))
        others |= found.others
        unseen |= found.links - seen
    assert all(urlsplit(one).netloc or one.startswith(f"{PREFIX}/") for one in others), others
    paths = {re.sub(r"[0-9a-f]{8,}", "ID", urlsplit(link).path.removeprefix(PREFIX)) for link in seen}
    for page in ("", "/edit", "/access", "/secret", "/setup", "/delete", "/triggers/new"):
        assert f"/connections/ID{page}" in paths
    for kind in ("sources", "identities", "notifications"):
        assert {f"/{kind}", f"/{kind}/new", f"/{kind}/ID/edit", f"/{kind}/ID/delete"} <= paths


def test_files_and_messages_stay_there_too(gateway: InProcess, browser: Browser) -> None:
    """The cookie of a message is sent for all paths of the host: the proxy removes the prefix."""
    found = Addresses()
    found.feed(browser.get("/"))
    files = [one for one in found.others if "/static/" in one]
    assert files
    for file in files:
        path = urlsplit(file).path
        assert path.startswith(f"{PREFIX}/static/")
        assert gateway.send("GET", path.removeprefix(PREFIX), token=None).status == 200
    [connection] = gateway.send("GET", "/api/v1/connections").json["items"]
    answer = browser.post(f"/connections/{connection['id']}/fetch", {})
    assert target(answer) == f"/connections/{connection['id']}"
    assert "; Path=/;" in f"{answer.headers['set-cookie']};"


def test_a_deploy_key_is_shown_and_replaced(gateway: InProcess, browser: Browser) -> None:
    """Only its public half; a password is of no use for an ssh URL."""
    [connection] = gateway.send("GET", "/api/v1/connections").json["items"]
    path = f"/connections/{connection['id']}/access"
    old = connection["deploy_key"]
    page = browser.get(path)
    assert old in page
    assert "Generate a new deploy key" in page
    assert target(browser.post(path, {"how": "generate"})) == f"/connections/{connection['id']}"
    [changed] = gateway.send("GET", "/api/v1/connections").json["items"]
    assert changed["deploy_key"] not in {old, None}
    assert changed["deploy_key"] in browser.get(path)
    refused = browser.post(path, {"how": "give", "credentials.private_key": "no key"})
    assert refused.status == 422
    assert "no key" not in refused.body.decode()


def test_the_identity_of_a_github_app(gateway: InProcess, browser: Browser) -> None:
    """A wrong key is named at its field; a right one is never shown again."""
    fields = {"name": "app", "provider": "github", "kind": "github-app", "settings.app_id": "123456"}
    refused = browser.post("/identities/new", {**fields, "private_key": "no key"})
    assert refused.status == 422
    assert 'id="field-private_key-error"' in refused.body.decode()
    path = target(browser.post("/identities/new", {**fields, "private_key": private_key()}))
    assert gateway.send("GET", f"/api/v1{path}").json["settings"]["app_id"] == "123456"
    form = browser.get(f"{path}/edit")
    assert "123456" in form
    assert "BEGIN" not in form
    assert "Microsoft Entra" not in form


def test_the_identity_of_an_application_in_entra(gateway: InProcess, browser: Browser) -> None:
    """Its credential decides what else it needs."""
    fields = {
        "name": "entra",
        "provider": "azure-devops",
        "kind": "entra",
        "settings.credential": "client-secret",
        "settings.tenant": "0d1c2b3a-0000-4000-8000-000000000001",
        "settings.client_id": "0d1c2b3a-0000-4000-8000-000000000002",
    }
    refused = browser.post("/identities/new", fields)
    assert refused.status == 422
    assert "client_secret" in refused.body.decode()
    path = target(browser.post("/identities/new", {**fields, "client_secret": "canary"}))
    shown = gateway.send("GET", f"/api/v1{path}").json
    assert shown["settings"]["credential"] == "client-secret"
    assert "canary" not in browser.get(f"{path}/edit")
