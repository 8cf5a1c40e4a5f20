"""Errors as problem details, conditional requests, links, and the methods of every path."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.problems import sections
from testing.in_process import Answer, InProcess
from tests.api.test_openapi import conform, document

API = "/api/v1"
SECRET = "hunter2-is-no-good-token"
NEW = {"provider": "github", "url": "https://github.com/acme/digits.git", "project": "digits"}
IDENTITY = {"name": "bot", "provider": "github", "token": SECRET}
CHANNEL = {"name": "team", "kind": "slack", "url": "https://hooks.slack.com/services/x"}
SOURCE = {"provider": "github", "url": "https://github.com/acme"}
OPERATIONS = [
    (method.upper(), path, operation)
    for path, item in document()["paths"].items()
    for method, operation in item.items()
    if path.startswith(API) and method != "head"
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Start a gateway in this process."""
    with InProcess(tmp_path_factory.mktemp("problems") / "data") as gateway:
        yield gateway


@pytest.fixture
def connection(gateway: InProcess) -> Iterator[Any]:
    """Return a connection."""
    made = gateway.send("POST", f"{API}/connections?wait=0", {**NEW, "force": True}).json
    yield made
    gateway.send("DELETE", f"{API}/connections/{made['id']}")


def problem_in(answer: Answer) -> Any:
    """Return the problem in an answer, after a check of its form."""
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json
    conform(found, {"$ref": "#/components/schemas/Error"}, document())
    assert (found["status"], found["error"]) == (
        answer.status,
        found["title"][:1].lower() + found["title"][1:],
    )
    return found


def test_everything_that_is_wrong_is_reported_at_once(gateway: InProcess) -> None:
    """In the body, in the query and in the URL, each by its place, and never with a value."""
    body = {
        "provider": "github",
        "url": 5,
        "token": SECRET,
        "credentials": {"password": [SECRET], "host_keys": 1},
        "triggers": [{"name": "a", "run": {"step": "s"}, "branches": ["["]}, {"name": "b", "ru/n~": {}}],
    }
    answer = gateway.send("POST", f"{API}/connections?wait=long&limit=5&limit=6", body)
    found = problem_in(answer)
    assert (answer.status, found["type"]) == (422, "/docs/errors#invalid")
    places = [(fault["pointer"] or fault["parameter"]) for fault in found["errors"]]
    assert sorted(places) == [
        "#/credentials/host_keys",
        "#/credentials/password",
        "#/project",
        "#/token",
        "#/triggers/0/branches/0",
        "#/triggers/1/run",
        "#/triggers/1/ru~1n~0",
        "#/url",
        "limit",
        "wait",
    ]
    assert SECRET not in answer.body.decode()
    assert found["detail"] == found["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer"),
    [
        ("POST", "/connections?wait=0", {**NEW, "url": "http://[", "force": True}, "#/url"),
        ("POST", "/connections?wait=0", {**NEW, "provider": "svn"}, "#/provider"),
        ("POST", "/connections?wait=0", b'{"provider": "a", "provider": "b"}', "#/provider"),
        ("POST", "/connections?wait=0", b'{"auth": {"a": "1", "a": "2"}}', "#/auth/a"),
        ("POST", "/identities", {**IDENTITY, "token": "two words"}, "#/token"),
        ("POST", "/sources", {**SOURCE, "rules": [{"match": ["!"]}]}, "#/rules/0/match/0"),
        ("POST", "/executions/none/drop", {"reason": "x"}, "#/reason"),
    ],
)
def test_a_fault_is_located(gateway: InProcess, method: str, path: str, body: Any, pointer: str) -> None:
    """Also one that is found behind the schema, or in a body that should be empty."""
    found = problem_in(gateway.send(method, f"{API}{path}", body))
    assert pointer in [fault["pointer"] for fault in found["errors"]], found


def test_each_kind_of_error_has_its_form(gateway: InProcess, connection: Any) -> None:
    """Also those of the token, of the routing and of a condition."""
    path = f"{API}/connections/{connection['id']}"
    for answer, status, kind in (
        (gateway.send("GET", path, token=None), 401, "/docs/errors#not-signed-in"),
        (gateway.send("GET", f"{API}/connections/none"), 404, "/docs/errors#not-found"),
        (gateway.send("GET", f"{API}/nothing"), 404, "/docs/errors#not-found"),
        (gateway.send("PUT", path), 405, "about:blank"),
        (gateway.send("POST", f"{API}/connections?wait=0", NEW), 409, "/docs/errors#conflict"),
        (gateway.send("PATCH", path, {}, if_match='"0-0"'), 412, "/docs/errors#changed-meanwhile"),
        (gateway.send("PATCH", path, b" " * 1_100_000), 413, "/docs/errors#body-too-large"),
    ):
        assert (problem_in(answer)["type"], answer.status) == (kind, status)
    kinds = {f"/docs/errors#{kind.anchor}" for kind in sections()}
    assert len(kinds) == len(sections())


def test_every_path_names_its_methods(gateway: InProcess) -> None:
    """OPTIONS is answered without a token; each method in Allow exists, and no other."""
    documented: dict[str, set[str]] = {}
    for method, path, _ in OPERATIONS:
        documented.setdefault(path, set()).add(method)
    for path, methods in documented.items():
        plain = re.sub(r"{\w+}", "none", path)
        answer = gateway.send("OPTIONS", plain, token=None)
        allowed = set(answer.headers["allow"].split(", "))
        assert (answer.status, answer.body) == (204, b"")
        assert methods <= allowed, path
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
            refused = gateway.send(method, plain, token=None).status == 405
            assert refused == (method not in allowed), (method, path)
    assert gateway.send("OPTIONS", "/hooks/none", token=None).headers["allow"] == "OPTIONS, POST"


def test_no_operation_takes_what_it_does_not_know(gateway: InProcess) -> None:
    """Neither an unknown query parameter, nor one twice, nor an unknown or repeated field."""
    foreign = {"/api/v1/connections/{id}/valohai", "/api/v1/executions/{id}/status"}
    for method, path, operation in OPERATIONS:
        plain = re.sub(r"{\w+}", "none", path)
        names = [each["name"] for each in operation["parameters"] if each["in"] == "query"]
        twice = f"{names[0]}=1&{names[0]}=1" if names else ""
        answer = gateway.send(method, f"{plain}?nope=1&{twice}", b"" if method == "GET" else {"nope": 1})
        found = {fault["pointer"] or fault["parameter"] for fault in problem_in(answer)["errors"]}
        wanted = {"nope", *names[:1]}
        wanted |= {"#/nope"} if method != "GET" and path not in foreign else set()
        assert (answer.status, wanted - found) == (422, set()), (method, path)
        if method != "GET":
            answer = gateway.send(method, plain, b'{"twice": 1, "twice": 1}')
            assert answer.status == 422, (method, path)
            if path not in foreign:
                assert "more than once" in json.dumps(answer.json), (method, path)


def test_every_list_has_pages(gateway: InProcess) -> None:
    """With `limit`, `cursor`, and a link to the next page."""
    lists = [
        (path, [each["name"] for each in operation["parameters"]])
        for method, path, operation in OPERATIONS
        if "Page" in json.dumps(operation["responses"].get("200", {})) and method == "GET"
    ]
    assert len(lists) > 8
    assert [path for path, names in lists if not {"limit", "cursor"} <= set(names)] == []
    made = [gateway.send("POST", f"{API}/identities", {**IDENTITY, "name": name}) for name in ("p1", "p2")]
    first = gateway.send("GET", f"{API}/identities?limit=1")
    target = re.fullmatch(r'<(\?.*)>; rel="next"', first.headers["link"])
    assert target is not None
    second = gateway.send("GET", f"{API}/identities{target[1]}")
    assert [page.json["items"][0]["name"] for page in (first, second)] == ["p1", "p2"]
    assert "link" not in second.headers
    for answer in made:
        gateway.send("DELETE", answer.headers["location"])


def test_what_was_made_is_where_location_says(gateway: InProcess, connection: Any) -> None:
    """For each 201, and for a 202 about a resource."""
    made = [
        gateway.send("POST", f"{API}/connections?wait=0", {**NEW, "project": "other"}),
        gateway.send("POST", f"{API}/identities", IDENTITY),
        gateway.send("POST", f"{API}/notification-channels", CHANNEL),
        gateway.send("POST", f"{API}/sources", SOURCE),
    ]
    for answer in made:
        assert answer.status == 201, answer.json
        shown = gateway.send("GET", answer.headers["location"])
        assert shown.json["id"] == answer.json["id"]
        assert gateway.send("DELETE", answer.headers["location"]).status == 204
    fetched = gateway.send("POST", f"{API}/connections/{connection['id']}/fetch")
    assert fetched.headers["location"] == f"{API}/connections/{connection['id']}"
    lacking = [
        (method, path)
        for method, path, operation in OPERATIONS
        for status, described in operation["responses"].items()
        if status == "201" and "Location" not in described.get("headers", {})
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("path", "new", "change"),
    [
        ("/connections", NEW, {"project": "letters"}),
        ("/identities", IDENTITY, {"name": "other"}),
        ("/notification-channels", CHANNEL, {"name": "other"}),
        ("/sources", SOURCE, {"name": "other"}),
    ],
)
def test_no_change_is_lost(gateway: InProcess, path: str, new: Any, change: Any) -> None:
    """With the tag of an earlier version, a change is refused; with that of the present one it is made."""
    made = gateway.send("POST", f"{API}{path}", new)
    place = made.headers["location"]
    first = gateway.send("GET", place).headers["etag"]
    changed = gateway.send("PATCH", place, change, if_match=f'"other", {first}')
    assert changed.status == 200, changed.json
    assert gateway.send("PATCH", place, change, if_match=first).status == 412
    assert gateway.send("DELETE", place, if_match=first).status == 412
    assert gateway.send("DELETE", place, if_match=f"W/{changed.headers['etag']}").status == 412
    assert gateway.send("GET", place).headers["etag"] == changed.headers["etag"]
    assert gateway.send("DELETE", place, if_match=changed.headers["etag"]).status == 204
    assert gateway.send("DELETE", place, if_match="*").status == 404


def test_an_answer_that_the_client_has_is_not_sent_again(gateway: InProcess, connection: Any) -> None:
    """With any of the given tags, also weak ones; HEAD has the headers of GET."""
    path = f"{API}/connections/{connection['id']}"
    shown = gateway.send("GET", path)
    same = gateway.send("GET", path, if_none_match=f'"x", W/{shown.headers["etag"]}')
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", shown.headers["etag"])
    assert gateway.send("GET", path, if_none_match='"x"').status == 200
    head = gateway.send("HEAD", path)
    assert (head.status, head.body, head.headers) == (200, b"", shown.headers)
    assert gateway.send("HEAD", f"{API}/executions/stream").body == b""
