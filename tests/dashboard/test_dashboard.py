"""The dashboard, in a real browser, on the real gateway."""

import http.client
import http.server
import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, expect
from starlette.requests import Request
from starlette.responses import Response

from gateway.cli.api_client import ApiError, post_webhook
from gateway.dashboard.sessions import VALID, Sessions
from providers import generic
from testing.browser import running_browser, sign_in, visit
from testing.postgres import Postgres
from testing.service import ADMIN_TOKEN, Project, Service, wait_for

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
# Only a busy machine needs this long.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser; each test has its own profile in it. Its event loop ends with this module."""
    with running_browser() as browser:
        yield browser


def test_a_push_is_seen_as_it_comes(browser: Browser, service: Service, project: Project) -> None:
    """On the overview, without a reload; and from there all stages, to the message to the runners."""
    connection = service.connect(project.url, "train@main", "other@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    with visit(browser, service) as page:
        expect(page.get_by_text("No deliveries yet.")).to_be_visible()
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        table = page.get_by_role("region", name="Newest deliveries")
        expect(table).to_contain_text(f"branch main {project.first[:10]} → {pushed[:10]} planned")
        expect(page.get_by_role("region", name="Newest executions")).to_contain_text("step train")
        expect(page.get_by_role("list", name="Pending work")).to_contain_text("1 not confirmed by a broker")
        table.locator("time").click()
        expect(page).to_have_url(f"{service.url}/deliveries/{answer['delivery']}")
        way = page.get_by_role("article")
        for expected in (
            "from github: push, for connection acme/digits, pushed by ada",
            "verified with the secret created",
            "accepted",
            "1 execution request",
            "trigger train@main: branch main matches",
            "pending: no broker has confirmed it yet",
            "trigger other@dev: branch main does not match dev",
        ):
            expect(way).to_contain_text(expected)
        way.get_by_role("link", name="execution train").click()
        expect(page.get_by_role("main")).to_contain_text("python train.py --epochs=3")
        page.get_by_text("The message that the runners get").click()
        expect(page.get_by_role("group")).to_contain_text(f'"delivery": "{answer["delivery"]}"')


def test_fetch_now_finds_what_no_webhook_reported(browser: Browser, tmp_path: Path, project: Project) -> None:
    """As the platform's own button does."""
    with Service(tmp_path / "data", RECONCILE_GRACE="0") as service, visit(browser, service) as page:
        connection = service.connect(project.url, "train@main")
        path = f"/connections/{connection['id']}"
        wait_for(lambda: service.api.get(path)["reconciliation"]["reconciled_at"], "the first look has ended")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        page.goto(path)
        page.get_by_role("button", name="Fetch now").click()
        expect(page).to_have_url(service.url + path)
        expect(page.get_by_role("main")).to_contain_text("found by reconciliation")
        expect(page.get_by_role("table")).to_contain_text(f"→ {pushed[:10]} planned")


def test_a_delivery_is_replayed(browser: Browser, service: Service, project: Project) -> None:
    """After a trigger was fixed: its new request is shown once it is planned."""
    connection = service.connect(project.url, "other@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    with visit(browser, service) as page:
        page.goto(f"/deliveries/{answer['delivery']}")
        expect(page.get_by_role("article")).to_contain_text("no request: valohai.yaml has no step other")
        mended = [{"name": "mended", "branches": ["main"], "run": {"step": "train"}}]
        service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": mended})
        page.get_by_role("button", name="Replay").click()
        expect(page.get_by_role("article")).to_contain_text("trigger mended: branch main matches")
        expect(page.get_by_role("link", name="execution train")).to_be_visible()


def test_why_it_did_not_run_is_asked_by_the_commit(
    browser: Browser, service: Service, project: Project
) -> None:
    """From any page; and an unknown commit is reported as unknown."""
    connection = service.connect(project.url, "train@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    with visit(browser, service) as page:
        page.get_by_role("searchbox").fill(pushed[:9])
        page.get_by_role("searchbox").press("Enter")
        expect(page.get_by_role("article")).to_contain_text(
            "trigger train@dev: branch main does not match dev"
        )
        page.get_by_role("searchbox").fill("deadbeef")
        page.get_by_role("button", name="Explain").click()
        expect(page.get_by_role("alert")).to_contain_text("no delivery contains commit deadbeef")


def test_an_outage_is_shown_until_it_ends(browser: Browser, service: Service, project: Project) -> None:
    """An open page shows that it is outdated; a restart needs no new sign-in."""
    with visit(browser, service) as page:
        port = urlsplit(service.url).port
        assert port is not None
        service.kill()
        status = page.get_by_role("status")
        expect(status).to_contain_text("This page may be outdated")
        service.start(port)
        expect(status).to_be_empty()
        service.deliver(service.connect(project.url), project.payload(None, project.first))
        expect(page.get_by_role("main")).to_contain_text("branch main")


def test_only_the_admin_token_opens_it(browser: Browser, service: Service) -> None:
    """Sign-in leads on to the requested page, and lasts until the sign-out."""
    with browser.new_context(base_url=service.url) as context:
        page = context.new_page()
        answer = page.goto("/executions?state=published")
        assert answer is not None
        assert answer.status == 401
        sign_in(page, "a guess")
        expect(page.get_by_role("alert")).to_have_text("That is not the admin token.")
        assert context.cookies() == []
        sign_in(page)
        expect(page).to_have_url(f"{service.url}/executions?state=published")
        [cookie] = context.cookies()
        assert (cookie.get("httpOnly"), cookie.get("sameSite"), cookie.get("secure")) == (True, "Lax", False)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()
        assert context.cookies() == []
    [line] = [line for line in service.log() if line["event"] == "wrong admin token refused"]
    assert (line["client"], line["path"]) == ("127.0.0.1", "/sign-in")
    assert "a guess" not in str(line)


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """A site that sends its visitors on, with a form, to the address in its query."""

    def do_GET(self) -> None:
        body = (
            f'<form method="post" action="{urlsplit(self.path).query}"></form>'
            "<script>document.forms[0].submit()</script>"
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        pass


@contextmanager
def elsewhere() -> Iterator[str]:
    """Yield the address of another site on this host: browsers send our cookies to it too."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def test_another_site_can_do_nothing_in_somebodys_name(
    browser: Browser, service: Service, project: Project
) -> None:
    """Its form comes with the cookie if both are on one host, and is refused."""
    connection = service.connect(project.url)
    path = f"/connections/{connection['id']}"
    due = wait_for(
        lambda: (found := service.api.get(path)["reconciliation"])["reconciled_at"] and found["due_at"],
        "reconciled",
    )
    with visit(browser, service) as page, elsewhere() as other:
        page.goto(f"{other}/?{service.url}{path}/fetch")
        expect(page.get_by_role("alert")).to_contain_text("another site sent this form")
    assert service.api.get(path)["reconciliation"]["due_at"] == due


def test_what_somebody_reads_is_not_taken_away(browser: Browser, service: Service, project: Project) -> None:
    """Open details stay open during updates; during a selection updates pause, which the page shows."""
    connection = service.connect(project.url, "train@*", "other@*")
    service.deliver(connection, project.payload(None, project.first, "refs/heads/one"))
    with visit(browser, service) as page:
        page.goto(f"/connections/{connection['id']}")
        other = page.get_by_text("other@*", exact=True)
        other.click()
        main, status = page.get_by_role("main"), page.get_by_role("status")
        service.deliver(connection, project.payload(None, project.first, "refs/heads/two"))
        expect(main).to_contain_text("branch two")
        expect(status).to_be_empty()
        assert page.locator("details[open] summary").all_inner_texts() == ["other@*"]
        expect(other).to_be_focused()
        main.evaluate("main => getSelection().selectAllChildren(main)")
        service.deliver(connection, project.payload(None, project.first, "refs/heads/three"))
        expect(status).to_contain_text("Newer content is available")
        expect(status).to_be_in_viewport()
        expect(main).not_to_contain_text("branch three")
        main.evaluate("() => getSelection().removeAllRanges()")
        expect(main).to_contain_text("branch three")
        expect(status).to_be_empty()
        page.get_by_role("searchbox").fill("abc")
        page.context.clear_cookies()
        expect(status).to_contain_text("you are signed out")
        expect(page.get_by_role("searchbox")).to_have_value("abc")


LONG = "an-unbroken-name-" + "x" * 120


def test_nothing_is_wider_than_a_telephone(browser: Browser, service: Service, project: Project) -> None:
    """Ids, names and reasons without spaces wrap at the edge of the screen."""
    connection = service.connect(project.url, "train@**", f"{LONG}@**", name=LONG)
    _, answer = service.deliver(connection, project.payload(None, project.first, f"refs/heads/{LONG}"))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    service.deliver(connection, b"{}", event="repository_vulnerability_alert_" + "x" * 60)
    with visit(browser, service) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        for path in (
            "/",
            "/connections",
            f"/connections/{connection['id']}",
            "/deliveries",
            f"/deliveries?connection={LONG}",
            f"/deliveries/{answer['delivery']}",
            "/executions",
            f"/executions/{execution['id']}",
            f"/explain?what={LONG}-that-is-not-there",
            f"/{LONG}",
        ):
            page.goto(path)
            page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_a_replay_shows_how_it_had_ended_before(browser: Browser, service: Service, project: Project) -> None:
    """The first attempt keeps its time and its reason."""
    connection = service.connect(project.url, "missing@main")
    _, answer = service.deliver(connection, project.payload(None, project.first))
    [first] = service.settled(answer["delivery"])["updates"]
    service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": []})
    with visit(browser, service) as page:
        page.goto(f"/deliveries/{answer['delivery']}")
        page.get_by_role("button", name="Replay").click()
        article = page.get_by_role("article")
        expect(article).to_contain_text("the connection has no triggers")
        expect(article).to_contain_text("before the replay")
        expect(article).to_contain_text(first["reason"])
        when = article.locator(f"time[datetime='{datetime.fromisoformat(first['settled_at']).isoformat()}']")
        expect(when).to_be_visible()


def test_an_address_that_leads_nowhere_is_a_page_for_browsers(browser: Browser, service: Service) -> None:
    """And JSON for programs, and below the API's address."""
    with visit(browser, service) as page:
        page.goto("/nope")
        expect(page.get_by_role("alert")).to_have_text("No page exists at this URL.")
    html = {"accept": "text/html,application/xhtml+xml"}
    for path, headers in (("/nope", {}), ("/api/v1/nope", html), ("/hooks/nope/nope", html)):
        status, text, _ = got(service.url + path, "", **headers)
        assert (status, json.loads(text)["error"]) == (404, "not found"), path


HOSTILE = "<img/src=x/onerror=alert(1)>"


def test_what_was_pushed_is_text_and_nothing_else(
    browser: Browser, service: Service, project: Project
) -> None:
    """Also with markup in names of branches, messages, steps and search terms."""
    connection = service.connect(project.url, name=HOSTILE)
    manifest = f"- step:\n    name: '{HOSTILE}'\n    image: '{HOSTILE}'\n    command: '{HOSTILE}'\n"
    triggers = [{"name": HOSTILE, "branches": ["**"], "run": {"step": HOSTILE}}]
    service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": triggers})
    pushed = project.push(HOSTILE, {"valohai.yaml": manifest})
    project.tree.push(f"HEAD:refs/heads/{HOSTILE}")
    _, answer = service.deliver(connection, project.payload(None, pushed, f"refs/heads/{HOSTILE}"))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    with visit(browser, service) as page:
        for path in (
            "/",
            "/connections",
            f"/connections/{connection['id']}",
            "/deliveries",
            f"/deliveries/{answer['delivery']}",
            "/executions",
            f"/executions/{execution['id']}",
            f"/explain?{urlencode({'what': HOSTILE})}",
        ):
            page.goto(path)
            expect(page.get_by_role("main")).to_contain_text(HOSTILE)
            assert page.locator("main img").count() == 0, path


EVERY_KIND = """\
- step:
    name: train
    image: docker.io/library/python:3.12
    command: python train.py {parameters}
    parameters:
      - {name: epochs, type: integer, default: 3}
- pipeline:
    name: nightly
    nodes:
      - {name: first, type: execution, step: train}
      - {name: second, type: execution, step: train}
    edges: []
- task:
    name: sweep
    step: train
    type: grid_search
    parameters:
      - {name: epochs, style: multiple, rules: {items: [1, 2]}}
"""


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found |= {value for name, value in attrs if name in {"href", "src"} and value}


def signed_in(service: Service) -> str:
    """Return the cookie of a signed-in user."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc)
    connection.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN}))
    answer = connection.getresponse()
    assert answer.status == 303
    connection.close()
    return str(answer.headers["set-cookie"]).partition(";")[0]


def got(url: str, cookie: str, **more: str) -> tuple[int, str, dict[str, str]]:
    """Get an address as a signed-in browser does; return status, text and headers."""
    request = urllib.request.Request(url, headers={"cookie": cookie, **more})  # noqa: S310 - our own gateway
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the same
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def test_every_link_leads_somewhere_and_no_page_has_a_secret(service: Service, project: Project) -> None:
    """Without scripts: from the overview, each reachable page and file."""
    everything = [
        {"name": name, "branches": ["*"], "tags": ["*"], "run": {kind: name}}
        for kind, name in (
            ("step", "train"),
            ("pipeline", "nightly"),
            ("task", "sweep"),
            ("step", "missing"),
        )
    ]
    connection = service.connect(project.url, triggers=everything)
    pushed = project.push("Every kind of execution", {"valohai.yaml": EVERY_KIND})
    service.deliver(connection, project.payload(None, project.push_tag("v1"), "refs/tags/v1"))
    service.deliver(connection, project.payload(pushed, None, "refs/heads/old"))
    deleted = service.connect(f"{project.url}/3", "train@*")
    service.deliver(deleted, project.payload(None, project.first))
    service.api.send("DELETE", f"/connections/{deleted['id']}")
    password = "the password of the repository"
    more = {"url": f"{project.url}/2", "credentials": {"user": "ada", "password": password}}
    service.api.send("POST", "/connections", {"provider": "github", "project": "digits", **more})
    for number in range(60):
        service.deliver(connection, project.payload(None, pushed, f"refs/heads/branch-{number}"))
    _, last = service.deliver(connection, project.payload(None, pushed, "refs/heads/last"))
    service.settled(last["delivery"])
    kinds = {one["message"]["execution"]["kind"] for one in service.api.get("/executions")["items"]}
    assert kinds == {"step", "pipeline", "task"}
    cookie, seen, waiting = signed_in(service), set[str](), {f"{service.url}/"}
    while waiting:
        url = waiting.pop()
        seen.add(url)
        status, text, headers = got(url, cookie)
        assert status == 200, url
        for secret in (connection["secret"], password, ADMIN_TOKEN):
            assert secret not in text
        if headers["content-type"].startswith("text/html"):
            assert headers["content-security-policy"].startswith(
                "default-src 'none'; style-src 'self'; script-src 'self'"
            )
            links = _Links()
            links.feed(text)
            there = {urljoin(url, link) for link in links.found}
            waiting |= {one for one in there if one.startswith(f"{service.url}/")} - seen
    paths = {urlsplit(url).path.split("/")[1] for url in seen}
    assert paths == {"", "connections", "deliveries", "executions", "static"}
    assert any("cursor=" in url for url in seen)


def test_below_another_address_links_stay_below_it(tmp_path: Path) -> None:
    """If a proxy serves Pushgate below a path; with HTTPS the cookie is bound to the host."""
    with Service(tmp_path / "data", PUBLIC_URL="https://ci.example/pushgate") as service:
        _, text, _ = got(service.url, "", host="10.0.0.1:8080")
        assert "Browsers keep no session for this address over HTTP" in text
        for host in ("ci.example", "localhost:8080"):
            assert "Browsers keep no session" not in got(service.url, "", host=host)[1]
        links = _Links()
        links.feed(text)
        assert links.found
        assert all(urlsplit(link).path.startswith("/pushgate/") for link in links.found)
        connection = http.client.HTTPConnection(urlsplit(service.url).netloc)
        connection.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN, "next": "/deliveries"}))
        headers = connection.getresponse().headers
        connection.close()
        assert headers["location"] == "/pushgate/deliveries"
        assert headers["set-cookie"].startswith("__Host-pushgate-")
        assert "; Secure" in headers["set-cookie"]


def test_signing_in_leads_nowhere_else(service: Service) -> None:
    """Whatever the address of the sign-in contains."""
    for wanted in (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:1",
        "/a\nb",
        "//[",
        "",
    ):
        connection = http.client.HTTPConnection(urlsplit(service.url).netloc)
        connection.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN, "next": wanted}))
        assert connection.getresponse().headers["location"] == "/", wanted
        connection.close()


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://ci.example"}, True),
        ({"origin": "http://10.0.0.1:8080", "host": "10.0.0.1:8080"}, True),
        ({"origin": "http://evil.example", "host": "ci.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "https://ci.example", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_what_is_sent_says_where_it_comes_from(headers: dict[str, str], *, is_ours: bool) -> None:
    """As browsers send it, by HTTPS and by HTTP; other programs send nothing."""
    sessions = Sessions(b"k" * 32, token="t", base_url="https://ci.example/pushgate")
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert sessions.comes_from_here(Request({"type": "http", "headers": raw})) is is_ours


def bearing(sessions: Sessions) -> Request:
    """Return a request of a signed-in browser."""
    answer = Response()
    sessions.begin(answer, now=NOW)
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})


def test_a_session_ends_with_its_time_its_token_and_its_key() -> None:
    """Each alone suffices."""
    sessions = Sessions(b"k" * 32, token="t", base_url="http://127.0.0.1:8080")
    request = bearing(sessions)
    assert sessions.holds(request, now=NOW + VALID - timedelta(seconds=1))
    assert not sessions.holds(request, now=NOW + VALID)
    for key, token in ((b"k" * 32, "another"), (b"x" * 32, "t")):
        others = Sessions(key, token=token, base_url="http://127.0.0.1:8080")
        assert not others.holds(request, now=NOW)
        assert others.holds(bearing(others), now=NOW)
    [(_, cookie)] = request.headers.raw
    forged = cookie.partition(b"=")[0] + "=9999999999.\xfc".encode("latin-1")
    assert not sessions.holds(Request({"type": "http", "headers": [(b"cookie", forged)]}), now=NOW)


def test_a_form_of_ours_has_few_fields(service: Service) -> None:
    """A form with many fields, or a large one, is refused before it is decoded."""
    for count, status in ((3_000, 422), (10_000, 413)):
        connection = http.client.HTTPConnection(urlsplit(service.url).netloc)
        connection.request("POST", "/sign-in", "&".join(f"f{number}=1" for number in range(count)))
        assert connection.getresponse().status == status
        connection.close()


def test_a_worker_has_no_dashboard(tmp_path: Path) -> None:
    """It serves probes only."""
    with Service(tmp_path / "data", ROLE="worker") as service:
        assert got(service.url, "")[0] == 404


def test_a_delivery_of_many_updates_is_shown_in_part(service: Service, project: Project) -> None:
    """A page of thousands would delay other requests; the number of hidden ones is shown."""
    made = service.api.send(
        "POST", "/connections", {"provider": "generic", "url": project.url, "project": "digits"}
    )
    moves = [{"ref": f"refs/heads/b-{n:03}", "before": None, "after": project.first} for n in range(130)]
    body = json.dumps({"updates": moves}).encode()
    headers = generic.sign(
        event="push",
        body=body,
        secret=made["secret"].encode(),
        delivery=str(uuid.uuid4()),
        now=datetime.now(UTC),
    )
    status, answer = post_webhook(f"{service.url}/hooks/{made['id']}", body, headers)
    assert status == 202
    cookie = signed_in(service)
    _, whole, _ = got(f"{service.url}/deliveries/{answer['delivery']}", cookie)
    assert ("b-099" in whole, "b-100" in whole, "and 30 more ref updates" in whole) == (True, False, True)
    _, table, _ = got(f"{service.url}/deliveries", cookie)
    assert ("b-004" in table, "b-005" in table, "and 125 more" in table) == (True, False, True)


def test_what_was_delivered_to_a_deleted_connection_stays_as_it_is(
    service: Service, project: Project
) -> None:
    """Its page says so, and a replay, which could only overwrite the results, is refused."""
    connection = service.connect(project.url, "train@main")
    _, answer = service.deliver(connection, project.payload(None, project.first))
    path = f"/deliveries/{answer['delivery']}"
    before = service.settled(answer["delivery"])
    service.api.send("DELETE", f"/connections/{connection['id']}")
    with pytest.raises(ApiError, match="the connection of this delivery was deleted"):
        service.api.send("POST", f"{path}/replay")
    assert service.api.get(path) == {**before, "is_orphan": True, "secret_made_at": None}
    _, text, _ = got(service.url + path, signed_in(service))
    assert "acme/digits (deleted)" in text
    assert "Replay" not in text


def test_what_was_nothing_new_cannot_be_replayed(service: Service, project: Project) -> None:
    """A duplicate or unreadable delivery: a replay is refused, and its button is missing."""
    connection = service.connect(project.url)
    body = project.payload(None, project.first)
    service.deliver(connection, body)
    for answer in (service.deliver(connection, body)[1], service.deliver(connection, b'{"ref": 1}')[1]):
        with pytest.raises(ApiError, match="none of its ref updates was new"):
            service.api.send("POST", f"/deliveries/{answer['delivery']}/replay")
        _, text, _ = got(f"{service.url}/deliveries/{answer['delivery']}", signed_in(service))
        assert "Replay" not in text


def test_filters_hold_for_the_next_page_too(service: Service, project: Project) -> None:
    """All those in the address, except the position in the list."""
    connection = service.connect(project.url)
    for number in range(3):
        service.deliver(connection, project.payload(None, project.first, f"refs/heads/{number}"))
    query = {"commit": project.first[:9], "connection": connection["id"], "limit": "1"}
    links = _Links()
    links.feed(got(f"{service.url}/deliveries?{urlencode(query)}", signed_in(service))[1])
    [older] = [link for link in links.found if "cursor=" in link]
    assert {**dict(parse_qsl(urlsplit(older).query)), "cursor": ""} == {**query, "cursor": ""}


def test_odd_addresses_are_refused(tmp_path: Path, postgres: Postgres) -> None:
    """On PostgreSQL, which refuses NUL in a search: by pages and by the API."""
    settings = {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32}
    with Service(tmp_path / "data", **settings) as service:
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        cookie = signed_in(service)
        for path in (
            "/connections/%00",
            "/deliveries?connection=%00",
            "/deliveries?cursor=%00",
            "/executions?state=%00",
            "/executions/%00",
            "/deliveries?limit=000200",
            "/deliveries?limit=201",
            "/executions?limit=" + "1" * 5000,
            "/explain?what=%20",
            "/deliveries?verdict=nope",
            "/deliveries?cursor=zzz",
            "/deliveries?cursor=",
            "/executions?state=nope",
            "/executions?cursor=zzz",
        ):
            assert got(service.url + path, cookie)[0] == 422, path
            assert got(f"{service.url}/api/v1{path}", "", **headers)[0] == 422, path
