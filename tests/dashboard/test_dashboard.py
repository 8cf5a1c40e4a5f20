"""The dashboard, in a real browser, on the real gateway."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import Browser, expect

from testing.browser import sign_in, visit
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Project, Service, wait_for
from tests.dashboard.getting import got


def test_a_push_is_seen_as_it_comes(browser: Browser, service: Service, project: Project) -> None:
    """On the overview, without a reload; and from there all stages, to the message to the runners."""
    connection = service.connect(project.url, "train@main", "other@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    with visit(browser, service) as page:
        expect(page.get_by_text("No deliveries yet.")).to_be_visible()
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        table = page.get_by_role("region", name="Newest deliveries")
        expect(table).to_contain_text(f"branch main {project.first[:10]} → {pushed[:10]}")
        expect(table.get_by_role("cell", name="ran", exact=True)).to_be_visible()
        expect(page.get_by_role("region", name="Newest executions")).to_contain_text("train step")
        table.get_by_role("link", name="branch main").click()
        expect(page).to_have_url(f"{service.url}/deliveries/{answer['delivery']}")
        way = page.get_by_role("article")
        for expected in (
            "from GitHub: push",
            "with the secret created",
            "1 execution request",
            "trigger train@main: branch main matches",
            "pending: no broker has confirmed it yet",
            "trigger other@dev: branch main does not match dev",
        ):
            expect(way).to_contain_text(expected)
        expect(way.locator(".state").first).to_have_text("ran")
        way.get_by_role("link", name="execution train").click()
        expect(page.get_by_role("main")).to_contain_text("python train.py --epochs=3")
        page.get_by_text("The message that the runners get").click()
        expect(page.get_by_role("group", name="Message")).to_contain_text(
            f'"delivery": "{answer["delivery"]}"'
        )


def test_fetch_now_finds_what_no_webhook_reported(browser: Browser, tmp_path: Path, project: Project) -> None:
    """As the platform's own button does; a webhook is registered, repaired and removed by buttons as well."""
    github = FakeGitHub(tokens={"good": {project.name}})
    with (
        serving(github),
        Service(tmp_path / "data", RECONCILE_GRACE="0") as service,
        visit(browser, service) as page,
    ):
        bot = {"name": "bot", "provider": "github", "token": "good", "api_url": f"{github.url}/api/v3"}
        service.api.send("POST", "/identities", bot)
        connection = service.connect(project.url, "train@main", identity="bot")
        path = f"/connections/{connection['id']}"
        wait_for(lambda: service.api.get(path)["reconciliation"]["reconciled_at"], "the first look has ended")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        page.goto(path)
        main = page.get_by_role("main")
        expect(main).to_contain_text("No webhook has arrived yet.")
        page.get_by_role("button", name="Register").click()
        expect(main).to_contain_text("The test delivery arrived.")
        [hook] = github.hooks[project.name]
        hook["active"] = False
        page.get_by_role("button", name="Check").click()
        repair = f"Run pushgate doctor {connection['id']} --fix, which repairs the webhook."
        expect(main).to_contain_text(f"webhook The webhook is switched off at the provider. {repair}")
        page.get_by_role("button", name="Repair").click()
        expect(main).not_to_contain_text("switched off")
        assert hook["active"]
        page.get_by_role("button", name="Remove").click()
        expect(main).to_contain_text("Not registered by Pushgate yet.")
        assert github.hooks[project.name] == []
        page.get_by_role("button", name="Fetch now").click()
        expect(page).to_have_url(service.url + path)
        table = page.get_by_role("table", name="Newest deliveries")
        expect(table).to_contain_text(f"→ {pushed[:10]}")
        expect(table).to_contain_text("reconciliation")


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
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("alert")).to_contain_text("no delivery contains commit deadbeef")
        expect(page.get_by_role("main")).to_contain_text("Nothing was found.")


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
        other = page.get_by_text("Show the URL for a channel, which is secret", exact=True)
        other.click()
        main, status = page.get_by_role("main"), page.get_by_role("status")
        service.deliver(connection, project.payload(None, project.first, "refs/heads/two"))
        expect(main).to_contain_text("branch two")
        expect(status).to_be_empty()
        assert page.locator("details[open] summary").all_inner_texts() == [other.inner_text()]
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
    body = {"provider": "github", "url": f"https://github.com/{LONG}", "rules": [{"match": [LONG]}]}
    source = service.api.send("POST", "/sources", {**body, "name": f"source-{LONG.replace('/', '-')}"})
    service.deliver({**source, "path": f"/hooks/{source['id']}"}, project.payload(None, project.first))
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
            "/identities",
            "/sources",
            f"/sources/{source['id']}",
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
        expect(when.first).to_be_visible()


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
