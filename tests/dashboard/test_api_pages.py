"""The pages about the API: a form for every operation, and a section for every kind of error."""

import json
import re
from collections.abc import Iterator
from html import unescape

import pytest

from testing.in_process import Answer, InProcess
from testing.service import ADMIN_TOKEN
from tests.dashboard.getting import Browser


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Start a gateway in this process."""
    with InProcess(tmp_path_factory.mktemp("pages") / "data") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def browser(gateway: InProcess) -> Browser:
    """Return a browser that has signed in."""
    return Browser(gateway)


def shown(answer: Answer) -> str:
    """Return the text of an answer's page."""
    return unescape(answer.body.decode())


def test_every_operation_has_a_page(gateway: InProcess, browser: Browser) -> None:
    """With a field for each parameter, and an example that the form sends as it is."""
    listed = browser.get("/docs/api")
    paths = gateway.send("GET", "/openapi.json").json["paths"]
    operations = [
        (path, method, each)
        for path, item in paths.items()
        for method, each in item.items()
        if path.startswith("/api/") and method != "head"
    ]
    for path, method, operation in operations:
        place = f"/docs/api/{operation['operationId']}"
        assert f'href="{place}"' in listed
        page = browser.get(place)
        assert f"<b>{method.upper()}</b> {path}" in page
        fields = set(re.findall(r'name="(?:path|query|header)-([^"]+)"', page))
        if "<form" in page.partition("<h1>")[2]:
            assert fields == {each["name"] for each in operation["parameters"]}, path


def test_a_form_sends_a_request(browser: Browser) -> None:
    """As the user who has signed in; the page shows the answer, and the request as a command."""
    body = json.dumps({"name": "bot", "provider": "github", "token": "secret-token"})
    made = browser.post("/docs/api/create_identity", {"body": body})
    text = shown(made)
    assert "Answer: 201" in text
    assert '"name": "bot"' in text
    assert "Bearer $PUSHGATE_ADMIN_TOKEN" in text
    assert ADMIN_TOKEN not in text
    found = shown(browser.post("/docs/api/get_identity", {"path-id": "bot", "header-If-None-Match": "*"}))
    assert "Answer: 304" in found
    listed = shown(browser.post("/docs/api/list_identities", {"query-limit": "1"}))
    assert "/api/v1/identities?limit=1" in listed
    assert "Answer: 204" in shown(browser.post("/docs/api/delete_identity", {"path-id": "bot"}))


def test_errors_are_shown_as_answers(browser: Browser) -> None:
    """With everything that is wrong, and nothing of it interpreted as HTML."""
    text = browser.post("/docs/api/create_connection", {"body": "{", "query-wait": "<b>"}).body.decode()
    assert "Answer: 422" in text
    assert "/docs/errors#invalid" in text
    assert "<b>&" not in text
    assert "Answer: 404" in shown(browser.post("/docs/api/get_delivery", {"path-id": "../../sign-in"}))


def test_only_a_user_of_the_dashboard_can_send(gateway: InProcess, browser: Browser) -> None:
    """Neither a client without a session nor the page of another site; and no unknown operation."""
    refused = gateway.send("POST", "/docs/api/list_identities", b"", token=None)
    assert (refused.status, b"Sign in" in refused.body) == (401, True)
    foreign = browser.post("/docs/api/list_identities", {}, sec_fetch_site="cross-site")
    assert foreign.status == 403
    assert browser.post("/docs/api/nothing", {}).status == 404


def test_the_type_of_each_error_is_a_section(gateway: InProcess) -> None:
    """The page needs no session."""
    page = gateway.send("GET", "/docs/errors", token=None).body.decode()
    for path in ("/api/v1/nothing", "/api/v1/connections?limit=0"):
        place, _, anchor = gateway.send("GET", path).json["type"].partition("#")
        assert place == "/docs/errors"
        assert f'id="{anchor}"' in page
