"""The dashboard's pages and sessions, without a browser."""

import http.client
import json
import uuid
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import pytest
from playwright.sync_api import expect
from starlette.requests import Request
from starlette.responses import Response

from gateway.cli.api_client import ApiError, post_webhook
from gateway.dashboard.sessions import VALID, Sessions
from providers import generic
from testing.postgres import Postgres
from testing.service import ADMIN_TOKEN, Project, Service, wait_for
from tests.dashboard.getting import got, signed_in

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
# Only a busy machine needs this long.
expect.set_options(timeout=30_000)


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
    """The links of a page to other pages and files."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found |= {
            value for name, value in attrs if name in {"href", "src"} and value and not value.startswith("#")
        }


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
    token = "github_pat_canary_5d1e"
    service.api.send("POST", "/identities", {"name": "acme-bot", "provider": "github", "token": token})
    source = with_source(service, project)
    slack = {"name": "ml-team", "kind": "slack", "url": f"https://hooks.slack.com/services/{token}"}
    service.api.send("POST", "/notification-channels", slack)
    for number in range(60):
        service.deliver(connection, project.payload(None, pushed, f"refs/heads/branch-{number}"))
    _, last = service.deliver(connection, project.payload(None, pushed, "refs/heads/last"))
    service.settled(last["delivery"])
    kinds = {one["message"]["execution"]["kind"] for one in service.api.get("/executions")["items"]}
    assert kinds == {"step", "pipeline", "task"}
    service.deliver({**connection, "secret": "another secret"}, b"{}")
    service.deliver({**connection, "path": f"/hooks/{'0' * 24}"}, b"{}")
    wait_for(
        lambda: len(service.api.get("/deliveries", verdict="refused")["items"]) == 3, "refusals are recorded"
    )
    cookie, seen, waiting = signed_in(service), set[str](), {f"{service.url}/"}
    _, shown, _ = got(f"{service.url}/connections/{connection['id']}", cookie)
    refused = shown.partition("Refused requests")[2]
    assert "401 to 127.0.0.1: " in refused
    assert "Enter this connection&#39;s secret" in refused
    _, shown, _ = got(f"{service.url}/sources/{source['id']}", cookie)
    assert "no rule matches digits" in shown
    assert "Enter this source&#39;s secret" in shown
    while waiting:
        url = waiting.pop()
        seen.add(url)
        status, text, headers = got(url, cookie)
        assert status == 200, url
        for secret in (connection["secret"], source["secret"], password, token, ADMIN_TOKEN):
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
    sections = {
        "connections",
        "dead-letters",
        "deliveries",
        "executions",
        "identities",
        "notifications",
        "sources",
    }
    assert paths == {"", "connect", "static", "docs", "openapi.json"} | sections
    assert any("cursor=" in url for url in seen)


def with_source(service: Service, project: Project) -> Any:
    """Return a source that ignores a repository, about which its rules have decided twice."""
    where = urlsplit(service.url).netloc
    body = {"provider": "github", "url": project.url.rpartition("/")[0], "rules": [{"match": ["ml-*"]}]}
    source = service.api.send("POST", "/sources", body)

    def ignored() -> Any:
        return service.api.get(f"/sources/{source['id']}/repositories", state="ignored")["items"]

    service.deliver({**source, "path": f"/hooks/{source['id']}"}, project.payload(None, project.first))
    [repository] = wait_for(ignored, "the rules decide")
    path = f"/sources/{source['id']}/decide?repository={repository['id']}"
    form = http.client.HTTPConnection(where)
    form.request("POST", path, headers={"cookie": signed_in(service), "origin": service.url})
    answer = form.getresponse()
    assert (answer.status, answer.headers["location"]) == (303, f"/sources/{source['id']}")
    form.close()
    wait_for(ignored, "the rules decide again")
    service.deliver({**source, "path": f"/hooks/{source['id']}", "secret": "another secret"}, b"{}")
    return source


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


def test_an_identity_that_ends_soon_is_marked(service: Service) -> None:
    """With its host, and the number of connections that use it."""
    soon = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    identity = {"name": "acme-bot", "provider": "gitlab", "token": "t", "expires_at": soon, "rotates": False}
    service.api.send("POST", "/identities", {**identity, "api_url": "https://git.example/api/v4"})
    more = {"provider": "gitlab", "project": "digits", "identity": "acme-bot"}
    service.api.send("POST", "/connections", {**more, "url": "https://git.example/a/b.git"}, wait=0)
    _, text, _ = got(f"{service.url}/identities", signed_in(service))
    row = " ".join(text.partition(">acme-bot</a></td>")[2].partition("</tr>")[0].split())
    assert '<td data-label="Host">git.example</td>' in row
    assert '<span class="state warning">soon</span>' in row
    assert '<td data-label="Used by">1 connection</td>' in row
    _, text, _ = got(f"{service.url}/connections", signed_in(service))
    # The host is looked up meanwhile, and does not exist.
    assert any(f'<span class="state {state}">{state}</span>' in text for state in ("warning", "failing"))


def test_a_notification_channel_is_tested_from_its_page(service: Service) -> None:
    """The page shows the outcome of the test."""
    made = service.api.send(
        "POST", "/notification-channels", {"name": "ops", "kind": "slack", "url": "http://127.0.0.1:9/x"}
    )
    form = http.client.HTTPConnection(urlsplit(service.url).netloc)
    headers = {"cookie": signed_in(service), "origin": service.url}
    form.request("POST", f"/notifications/{made['id']}/test", headers=headers)
    answer = form.getresponse()
    assert (answer.status, answer.headers["location"]) == (303, "/notifications")
    form.close()

    def row() -> str | None:
        _, text, _ = got(f"{service.url}/notifications", signed_in(service))
        found = " ".join(text.partition(">ops</a></td>")[2].partition("</tr>")[0].split())
        return found if "cannot reach 127.0.0.1" in found else None

    assert '<span class="state failing">failing</span>' in wait_for(row, "the page shows the problem")
