"""The commands that show one record, and change or remove what has a name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.service import Project, Service
from testing.service import run_pushgate as run

URL = "https://github.example/acme/digits.git"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway without a worker, with one record of each kind that has a name."""
    with Service(tmp_path_factory.mktemp("gateway") / "data", ROLE="web") as service:
        service.connect(URL, "train@main", name="acme/digits", networks=["192.0.2.0/24"])
        identity = {"name": "acme-bot", "provider": "github", "token": "canary-token"}
        service.api.send("POST", "/identities", identity)
        service.api.send("POST", "/sources", {"provider": "github", "url": "https://github.com/acme"})
        channel = {"name": "ml-team", "kind": "slack", "url": "https://hooks.example/canary-url"}
        service.api.send("POST", "/notification-channels", channel)
        yield service


def answer(service: Service, *arguments: str | Path) -> Any:
    """Run a command with --json, and return its output."""
    done = run(*arguments, "--json", service=service)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        (
            "acme/digits",
            "connection",
            ["health", "train@main: step train on push; branches main", "192.0.2.0/24"],
        ),
        ("acme-bot", "identity", ["github at github.com", "never, or unknown", "0 connections"]),
        ("acme", "source", ["https://github.com/acme", "none: no repository is connected"]),
        ("ml-team", "channel", ["slack", "hooks.example", "run-failed"]),
    ],
)
def test_what_is_shown_is_found_out(web: Service, name: str, kind: str, expected: list[str]) -> None:
    """By its name or its id."""
    by_name = answer(web, "show", name)
    assert (by_name["kind"], by_name[kind]["name"]) == (kind, name)
    assert answer(web, "show", by_name[kind]["id"]) == by_name
    done = run("show", name, service=web)
    assert done.returncode == 0, done.stderr
    assert f"  {kind} " in done.stdout
    for text in expected:
        assert text in done.stdout
    assert "canary" not in done.stdout


def test_an_ambiguous_name_is_an_error_that_names_the_choices(web: Service) -> None:
    """`--kind` chooses one; of two connections, the id does."""
    made = web.connect(URL, name="acme-bot")
    done = run("show", "acme-bot", service=web)
    assert done.returncode == 1
    assert "give --kind connection or --kind identity" in done.stderr
    assert answer(web, "show", "acme-bot", "--kind=identity")["kind"] == "identity"
    web.api.send("DELETE", f"/connections/{made['id']}")
    for name, expected in (
        ("nothing", "nothing has the name or the id nothing"),
        ("acme/nothing", "nothing has the name or the id acme/nothing"),
        ("0199f3a2-7c1e-7a3b-9d2f-3b1c0e5f6a7b", "nothing has the name or the id 0199f3a2"),
    ):
        done = run("show", name, service=web)
        assert (done.returncode, done.stdout) == (1, "")
        assert expected in done.stderr
    assert "choose connection, source" in run("show", "acme", "--kind=thing", service=web).stderr
    assert "nothing has the id 'acme/digits'" in run("request", "acme/digits", service=web).stderr


def test_records_with_a_name_are_changed_and_removed_by_it(web: Service, tmp_path: Path) -> None:
    """Deleted ones are printed as they were."""
    token = tmp_path / "token"
    token.write_text("a-token\n")
    add = ("identity", "add", "ci", "--provider=gitlab", f"--token-file={token}")
    made = answer(web, *add)
    assert answer(web, "identity", "edit", "ci", "--name=ci-bot", "--no-rotate")["rotates"] is False
    assert answer(web, "identity", "delete", "ci-bot")["id"] == made["id"]
    url = tmp_path / "url"
    url.write_text("https://hooks.example/other\n")
    answer(web, "notify", "add", "ops", "--kind=slack", f"--url-file={url}")
    changed = answer(web, "notify", "edit", "ops", "--on=run-failed", "--connection=acme/*")
    assert (changed["happenings"], changed["connections"]) == (["run-failed"], ["acme/*"])
    assert answer(web, "notify", "remove", "ops")["name"] == "ops"
    for group in ("notify", "identity"):
        assert "give what to change" in run(group, "edit", "ops", service=web).stderr

    secrets = web.api.get("/sources/acme")["secrets"]
    rotated = run("source", "rotate-secret", "acme", service=web)
    assert "(shown only once)" in rotated.stdout
    assert len(web.api.get("/sources/acme")["secrets"]) == len(secrets) + 1
    assert len(answer(web, "source", "revoke-secret", "acme")["secrets"]) == 1
    assert answer(web, "refs", "acme/digits") == {"items": [], "next": None}
    assert "no webhook was registered" in run("webhook", "show", "acme/digits", service=web).stderr


def test_deliveries_and_executions_are_shown_in_full(service: Service, project: Project) -> None:
    """Also the stored request, byte for byte."""
    connection = service.connect(project.url, "train@main", name="digits")
    body = project.payload(None, project.first) + b" \n"
    _, sent = service.deliver(connection, body, x_github_delivery="guid")
    service.settled(sent["delivery"])
    [execution] = service.api.get("/executions")["items"]
    assert answer(service, "show", sent["delivery"])["delivery"]["provider_delivery_id"] == "guid"
    delivery = run("show", sent["delivery"], service=service).stdout
    for text in ("outcome", "ran", f"{len(body)} bytes of application/json", "trigger train@main: branch"):
        assert text in delivery
    shown = run("show", execution["id"], service=service).stdout
    for text in ("python train.py --epochs=3", project.first, "The first model", "step"):
        assert text in shown
    assert run("executions", execution["id"], service=service).stdout == shown
    request = run("request", sent["delivery"], service=service).stdout
    assert "x-github-delivery: guid" in request
    assert "x-hub-signature-256: •••• (71 characters)" in request
    assert run("request", sent["delivery"], "--body", service=service).stdout.encode() == body
    refs = run("refs", "digits", service=service).stdout
    assert f"refs/heads/main  {project.first}" in refs
