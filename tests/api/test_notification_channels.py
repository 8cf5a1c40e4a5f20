"""Notification channels over the REST API and by commands, with a worker that sends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.provider_apis.fake import serving
from testing.receivers import FakeSlack
from testing.service import Service, run_pushgate

CHANNELS = "/notification-channels"
MAIL = {"host": "smtp.example", "sender": "pushgate@example.org", "recipients": ["ops@example.org"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway with a worker."""
    with Service(tmp_path_factory.mktemp("notifications") / "data") as service:
        yield service


def refusal(service: Service, body: Any, method: str = "POST", path: str = CHANNELS) -> str:
    """Return the sentence with which the API refuses a request."""
    with pytest.raises(ApiError) as refused:
        service.api.send(method, path, body)
    return str(refused.value)


def test_a_channel_from_the_command_to_the_message(service: Service, tmp_path: Path) -> None:
    """Its URL is in no answer and no log. A test shows at once why nothing arrives."""
    url = tmp_path / "url"
    slack = FakeSlack()
    with serving(slack):
        url.write_text(f"{slack.webhook}\n")
        options = ("--kind", "slack", "--url-file", str(url), "--on", "run-failed", "--connection", "acme/*")
        added = run_pushgate("notify", "add", "ml-team", *options, service=service)
        assert added.returncode == 0, added.stderr
        assert "pushgate notify test ml-team" in added.stdout
        tested = run_pushgate("notify", "test", "ml-team", service=service)
        assert (tested.returncode, tested.stdout) == (0, "Sent.\n"), tested.stderr
        assert "A test of the notification channel ml-team" in slack.messages[0]["text"]
        slack.is_archived = True
        tested = run_pushgate("notify", "test", "ml-team", service=service)
        assert tested.returncode == 1
        assert "answered 410 (channel_is_archived)" in tested.stderr
    listed = run_pushgate("notify", "list", "--json", service=service)
    [channel] = json.loads(listed.stdout)["items"]
    assert (channel["host"], channel["happenings"]) == ("127.0.0.1", ["run-failed"])
    assert (channel["connections"], channel["projects"]) == (["acme/*"], [])
    assert "channel_is_archived" in channel["problem"]
    changed = service.api.send("PATCH", f"{CHANNELS}/ml-team", {"name": "people", "projects": ["digits"]})
    assert (changed["name"], changed["projects"], changed["problem"]) == (
        "people",
        ["digits"],
        channel["problem"],
    )
    assert "xoxsecretslack" not in json.dumps([channel, changed]) + json.dumps(service.log())
    assert b"xoxsecretslack" not in service.stored()
    removed = run_pushgate("notify", "remove", "people", service=service)
    assert removed.returncode == 0, removed.stderr
    assert service.api.get(CHANNELS)["items"] == []


def test_a_signed_webhook_gets_a_secret_that_is_shown_once(service: Service) -> None:
    """Unless one is given, which must be as the scheme wants it."""
    made = service.api.send(
        "POST", CHANNELS, {"name": "hook", "kind": "webhook", "url": "https://example.org/x?a=b"}
    )
    assert made["secret"].startswith("whsec_")
    assert "secret" not in service.api.get(f"{CHANNELS}/hook")
    assert made["happenings"] == [
        "run-failed",
        "run-recovered",
        "webhook-silent",
        "remote-refuses",
        "dead-letters",
    ]
    weak = {"name": "weak", "kind": "webhook", "url": "https://example.org/", "secret": "whsec_AAAA"}
    assert "24 to 64 random bytes" in refusal(service, weak)
    assert "the name hook is taken" in refusal(service, {**weak, "name": "hook", "secret": made["secret"]})
    service.api.send("DELETE", f"{CHANNELS}/hook")


def test_mail_has_a_server_a_sender_and_recipients(service: Service) -> None:
    """A stored password is for one server."""
    body = {"name": "mail", "kind": "smtp", "mail": {**MAIL, "user": "bot"}, "password": "canary"}
    made = service.api.send("POST", CHANNELS, body)
    assert (made["host"], made["mail"]["port"], made["mail"]["security"]) == ("smtp.example", 587, "starttls")
    assert "canary" not in json.dumps(made)
    other = {"mail": {**MAIL, "user": "bot", "host": "evil.example"}}
    path = f"{CHANNELS}/mail"
    assert "the stored password is for another server" in refusal(service, other, "PATCH", path)
    assert service.api.send("PATCH", path, {**other, "password": "new"})["host"] == "evil.example"
    assert "or neither" in refusal(service, {"mail": {**MAIL, "host": "evil.example"}}, "PATCH", path)
    service.api.send("DELETE", path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "url: it is required for the kind slack"),
        ({"url": "ssh://git@example.org/x"}, "url: it must be https://"),
        ({"url": "file:///etc/passwd"}, "url: it must be https://"),
        ({"url": "https://user:word@example.org/x"}, "remove the user name"),
        ({"url": "https://"}, "no valid host"),
        ({"url": "https://[x/"}, "cannot be parsed"),
        ({"url": "https://example.org/x", "mail": MAIL}, "mail: a channel of the kind slack has none"),
        ({"url": "https://example.org/x", "password": "x"}, "password: a channel of the kind slack has none"),
        ({"url": "https://example.org/x", "secret": "x"}, "secret: a channel of the kind slack has none"),
        ({"url": "https://example.org/x", "happenings": ["all"]}, "happenings"),
        ({"url": "https://example.org/x", "connections": [""]}, "connections"),
        ({"kind": "smtp"}, "mail: it is required"),
        ({"kind": "smtp", "mail": {**MAIL, "recipients": ["a\r\nBcc: b@c.d"]}}, "mail.recipients"),
        ({"kind": "smtp", "mail": {**MAIL, "user": "bot"}}, "password: give it together"),
        ({"kind": "smtp", "mail": MAIL, "url": "https://example.org/x"}, "url: a channel of the kind smtp"),
    ],
)
def test_a_channel_that_cannot_work_is_refused(service: Service, changes: Any, words: str) -> None:
    """With one sentence about the field."""
    assert words in refusal(service, {"name": "new", "kind": "slack", **changes})
