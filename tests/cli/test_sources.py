"""`pushgate source`, and sources in a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.connections_file import compare, read_file
from gateway.errors import Invalid
from testing.github import REPOSITORY_ID, push_payload
from testing.records import A, B
from testing.service import Service, run_pushgate, wait_for

FILE = """\
sources:
  - name: acme
    provider: gitea
    url: https://git.example/acme/
    secret: {env: ACME_SECRET}
    rules:
      - match: [ml-*]
        triggers:
          - {name: train, on: [push], branches: [main], run: {step: train}}
"""
SECRET = {"ACME_SECRET": "a secret that the provider knows"}
RULES = "- match: [ml-*, '!ml-old']\n  project: research\n- match: [tools/**]\n"
URL = "https://github.com/acme/digits.git"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Service]:
    """Start a gateway without a worker."""
    with Service(tmp_path / "data", ROLE="web") as service:
        yield service


def run(web: Service, *arguments: str, status: int = 0, width: int = 200) -> str:
    """Run a command; return what it prints, or the error."""
    variables = {**SECRET, "COLUMNS": str(width)}
    done = run_pushgate(*arguments, service=web, variables=variables)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_a_source_by_commands(web: Service, tmp_path: Path) -> None:
    """From its webhook URL and the steps at the provider to its deletion."""
    rule = ("--match", "ml-*", "--match", "!ml-old", "--trigger", "train@main", "--project", "ml-{name}")
    added = run(web, "source", "add", "github", "--org", "acme", *rule)
    assert "ml-*, !ml-old → project ml-{name}: train" in added
    assert "1. The organization's Settings → Webhooks → Add webhook" in added
    [source] = web.api.get("/sources")["items"]
    assert source["hook_url"] in added

    made = json.loads(run(web, "source", "add", "gitea", "--url", "https://git.example", "--json"))
    assert (made["name"], made["scope"], made["rules"]) == ("git.example", "server", [])
    assert "none: no repository is connected" in run(web, "source", "show", "git.example")
    assert "give either --org NAME" in run(web, "source", "add", "github", status=1)
    assert "give --url" in run(web, "source", "add", "gitea", "--org", "acme", status=1)

    secret = web.api.send("POST", "/sources/acme/rotate-secret")["secret"]
    payload = push_payload(url=URL, full_name="acme/digits", ref="refs/heads/main", before=A, after=B)
    web.deliver({"path": f"/hooks/{source['id']}", "secret": secret}, payload)
    assert "1 due" in run(web, "source", "list")
    [found] = json.loads(run(web, "source", "repositories", "acme", "--state", "due", "--json"))["items"]
    assert found["id"] == str(REPOSITORY_ID)
    assert run(web, "source", "decide", "acme", "Acme/Digits").startswith(
        "The rules decide about acme/digits"
    )
    unknown = run(web, "source", "decide", "acme", "acme/unknown", status=1)
    assert "the source acme has no repository acme/unknown" in unknown
    assert "acme has no identity" in run(web, "source", "list-now", "acme", status=1)

    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    assert "rule 2        tools/** → project {name}" in run(
        web, "source", "rules", "acme", "-f", str(file), width=80
    )
    file.write_text(run(web, "source", "rules", "acme"))
    run(web, "source", "rules", "acme", "-f", str(file))
    assert [one["project"] for one in web.api.get("/sources/acme")["rules"]] == ["research", "{name}"]
    assert "research" in run(web, "source", "edit", "acme", "--name", "research", "--json")
    assert "Deleted" in run(web, "source", "delete", "research")
    assert [one["name"] for one in web.api.get("/sources")["items"]] == ["git.example"]


def test_what_a_source_ignores_is_explained(service: Service) -> None:
    """By the delivery, and by the address of the repository."""
    run(service, "source", "add", "github", "--org", "acme", "--match", "ml-*")
    [source] = service.api.get("/sources")["items"]
    secret = service.api.send("POST", "/sources/acme/rotate-secret")["secret"]
    payload = push_payload(url=URL, full_name="acme/digits", ref="refs/heads/main", before=A, after=B)
    _, answer = service.deliver({"path": f"/hooks/{source['id']}", "secret": secret}, payload)
    wait_for(
        lambda: service.api.get("/sources/acme/repositories", state="ignored")["items"], "the rules decide"
    )
    explained = run(service, "explain", answer["delivery"])
    assert "the source acme ignored it: no rule matches digits" in explained
    assert run(service, "explain", URL) == explained
    assert "no rule matches digits" in run(service, "source", "repositories", "acme")


def test_a_file_makes_sources_and_then_nothing_more(web: Service, tmp_path: Path) -> None:
    """Only a file with sources prunes sources, and never a connection that a source has made."""
    file = tmp_path / "connections.yaml"

    def apply(text: str, *options: str) -> Any:
        file.write_text(text)
        changes = json.loads(run(web, "apply", "-f", str(file), "--json", *options))["changes"]
        return [(change["action"], change["kind"], change["name"]) for change in changes]

    assert apply(FILE, "--dry-run") == apply(FILE) == [("create", "source", "acme")]
    assert apply(FILE) == [("keep", "source", "acme")]
    made = web.api.get("/sources/acme")
    assert (made["url"], made["rules"][0]["match"]) == ("https://git.example/acme", ["ml-*"])
    file.write_text(FILE.replace("ml-*", "ml-**"))
    assert run(web, "apply", "-f", str(file)).startswith("~ source acme\n    rules: ")
    assert web.api.get("/sources/acme")["rules"][0]["match"] == ["ml-**"]
    assert apply("connections: []\n", "--prune") == []
    assert apply("sources: []\n", "--prune") == [("delete", "source", "acme")]


def test_pruning_leaves_the_connections_of_sources_alone() -> None:
    """Their rules make and keep them."""
    present: list[dict[str, Any]] = [
        {"name": "acme/digits", "id": "1", "source": {"id": "5", "name": "acme"}},
        {"name": "letters", "id": "2", "source": None},
    ]
    assert [change.name for change in compare([], present, prune=True)] == ["letters"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FILE.replace("provider", "provder"), "sources.0.provder: there is no such field"),
        (FILE.replace("acme\n", "a/b\n", 1), "sources.0.name"),
        (FILE + FILE.removeprefix("sources:\n"), "two sources have the name 'acme'"),
        (FILE.replace("{step: train}", "{}"), "acme: rule 1: "),
    ],
)
def test_a_wrong_source_in_a_file_is_one_sentence(text: str, expected: str) -> None:
    """It names the place."""
    with pytest.raises(Invalid, match=expected):
        read_file(text.encode())
