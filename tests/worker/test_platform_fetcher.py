"""Platforms fetch the repository after each push."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.service import Project, Service, wait_for

PROJECT = "0185b1a5-7e6b-4ba5-8e1a-3f6f3f1b7c11"


class FakePlatform(ThreadingHTTPServer):
    """Answers as the platform's API documents; gives `answers` in turn, and then repeats the last."""

    def __init__(self) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str]] = []
        self.answers: list[tuple[int, Any]] = [(201, {"commits": [{"identifier": "a"}], "errors": []})]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakePlatform

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers["authorization"]))
        answers = self.server.answers
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    """Return a platform."""
    with FakePlatform() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def connect(service: Service, project: Project, platform: FakePlatform) -> Any:
    """Connect a repository that its platform fetches."""
    named = {"url": platform.url, "project": PROJECT, "token": "t0ken-of-the-platform"}
    return service.connect(project.url, platform=named)


def shown(service: Service, connection: Any) -> Any:
    """Return the state of the platform's fetches."""
    return service.api.get(f"/connections/{connection['id']}")["platform"]


def test_a_push_has_the_platform_fetch(service: Service, project: Project, platform: FakePlatform) -> None:
    """It is called once, with its token, which is shown nowhere."""
    connection = connect(service, project, platform)
    service.deliver(connection, project.payload(None, project.first))
    wait_for(lambda: shown(service, connection)["fetched_at"], "the platform has fetched")
    assert platform.asked == [(f"/api/v0/projects/{PROJECT}/fetch/", "Token t0ken-of-the-platform")]
    assert "t0ken-of" not in json.dumps(service.api.get("/connections")) + json.dumps(service.log())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((201, {"commits": [], "errors": ["no access to the repository"]}), "no access to the repository"),
        ((503, {}), "answers 503"),
        ((302, {}), "answers 302"),
        ((201, "text"), "has an unknown format"),
    ],
)
def test_what_fails_there_is_reported_and_tried_again(
    service: Service, project: Project, platform: FakePlatform, answer: tuple[int, Any], expected: str
) -> None:
    """Errors count even on a 201."""
    platform.answers.insert(0, answer)
    connection = connect(service, project, platform)
    service.deliver(connection, project.payload(None, project.first))
    wait_for(lambda: expected in str(shown(service, connection)["reason"]), "the reason is shown")
    wait_for(lambda: shown(service, connection)["fetched_at"], "the platform has fetched")
    assert shown(service, connection)["reason"] is None
    assert len(platform.asked) == 2


def test_a_platform_needs_a_token_and_https(service: Service, project: Project) -> None:
    """One sentence names what is missing."""
    with pytest.raises(ApiError, match="a token is needed"):
        service.connect(project.url, platform={"url": "https://app.example", "project": PROJECT})
    with pytest.raises(ApiError, match="must begin with https"):
        service.connect(project.url, platform={"url": "ftp://app.example", "project": PROJECT, "token": "x"})


def test_a_token_goes_to_its_own_address_only(
    service: Service, project: Project, platform: FakePlatform
) -> None:
    """Another project of the platform keeps the token; another address needs a new token."""
    connection = connect(service, project, platform)
    path = f"/connections/{connection['id']}"
    other = {"url": platform.url, "project": "another"}
    assert service.api.send("PATCH", path, {"platform": other})["platform"]["project"] == "another"
    with pytest.raises(ApiError, match="its own address only"):
        service.api.send("PATCH", path, {"platform": {**other, "url": "http://127.0.0.1:9"}})


def test_a_token_that_no_header_can_hold_is_reported_and_not_shown(
    service: Service, project: Project, platform: FakePlatform
) -> None:
    """Neither in the reason nor in the log."""
    named = {"url": platform.url, "project": PROJECT, "token": "t0ken\nof ☃"}
    connection = service.connect(project.url, platform=named)
    service.deliver(connection, project.payload(None, project.first))
    wait_for(
        lambda: "no HTTP header may have" in str(shown(service, connection)["reason"]), "the reason is shown"
    )
    line, *_ = [line for line in service.log() if line["event"] == "platform fetch failed"]
    assert datetime.fromisoformat(line["next_try_at"]).tzinfo is not None
    assert "t0ken" not in json.dumps(service.api.get("/connections")) + json.dumps(service.log())


def test_a_platform_can_be_forgotten(service: Service, project: Project, platform: FakePlatform) -> None:
    """The platform gets no further requests."""
    connection = connect(service, project, platform)
    service.api.send("PATCH", f"/connections/{connection['id']}", {"platform": None})
    _, answer = service.deliver(connection, project.payload(None, project.first))
    service.settled(answer["delivery"])
    assert (shown(service, connection), platform.asked) == (None, [])
