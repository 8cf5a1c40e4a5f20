"""Sources over the REST API, while no worker runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.github import REPOSITORY_ID, push_payload
from testing.records import A, B
from testing.service import Service

IDENTITY = {"name": "acme-bot", "provider": "github", "token": "github_pat_canary_93a1"}
ACME = {
    "provider": "github",
    "url": "https://github.com/acme",
    "identity": "acme-bot",
    "rules": [{"match": ["ml-*"], "triggers": [{"name": "train", "run": {"step": "train"}}]}],
}
PUSH = push_payload(
    url="https://github.com/acme/digits.git",
    full_name="acme/digits",
    ref="refs/heads/main",
    before=A,
    after=B,
)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Service]:
    """Start a gateway without a worker, which has an identity."""
    with Service(tmp_path / "data", ROLE="web") as service:
        service.api.send("POST", "/identities", IDENTITY)
        yield service


def refusal(web: Service, method: str, path: str, body: Any = None) -> str:
    """Return the sentence with which the API refuses a request."""
    with pytest.raises(ApiError) as refused:
        web.api.send(method, path, body)
    return str(refused.value)


def test_a_source_has_a_webhook_rules_and_repositories(web: Service) -> None:
    """A delivery about an unknown repository waits for the rules; a deleted source leaves it readable."""
    made = web.api.send("POST", "/sources", ACME)
    named = ("name", "scope", "identity", "repositories", "listed_at", "reason")
    assert [made[field] for field in named] == ["acme", "owner", "acme-bot", {}, None, None]
    assert made["rules"][0]["project"] == "{name}"
    assert refusal(web, "GET", f"/connections/{made['id']}") == f"no connection has the id {made['id']}"
    assert web.api.get("/connections")["items"] == []

    path = f"/hooks/{made['id']}"
    status, answer = web.deliver({**made, "path": path}, PUSH)
    assert (status, answer["verdict"]) == (202, "ignored")
    [delivery] = web.api.get("/deliveries", connection="acme")["items"]
    assert "acme/digits" in delivery["reason"]
    [found] = web.api.get("/sources/acme/repositories", state="due")["items"]
    assert (found["id"], found["full_name"], found["state"]) == (str(REPOSITORY_ID), "acme/digits", "due")
    decide = f"/sources/acme/repositories/{found['id']}/decide"
    assert web.api.send("POST", decide)["state"] == "due"
    assert "no repository with the id 1" in refusal(web, "POST", "/sources/acme/repositories/1/decide")

    not_yet = "no worker has done it yet: it goes on, if a worker runs"
    assert web.api.send("POST", "/sources/acme/list", wait=0)["reason"] == not_yet
    assert web.api.send("POST", "/sources/acme/webhook", wait=0)["reason"] == not_yet
    assert web.api.get("/sources/acme/webhook")["checked_at"] is None

    changed = web.api.send("PATCH", "/sources/acme", {"name": "research", "rules": [], "identity": None})
    assert (changed["rules"], changed["identity"], changed["repositories"]) == ([], None, {"due": 1})
    assert "research has no identity" in refusal(web, "POST", "/sources/research/list")
    rotated = web.api.send("POST", "/sources/research/rotate-secret")
    assert web.deliver({**rotated, "path": path}, PUSH)[0] == 202

    web.api.send("DELETE", "/sources/research")
    assert web.api.get("/sources")["items"] == []
    assert web.deliver({**rotated, "path": path}, PUSH)[0] == 404
    gone = web.api.get(f"/deliveries/{delivery['id']}")
    assert (gone["reason"], gone["is_orphan"]) == (
        "the source was deleted before its rules had decided about the repository",
        True,
    )


def test_what_cannot_be_a_source_is_one_sentence(web: Service) -> None:
    """It says what is wrong, and what to do."""
    made = web.api.send("POST", "/sources", ACME)
    assert refusal(web, "POST", "/sources", {**ACME, "url": "https://github.com/orgs/Acme/people"}) == (
        f"https://github.com/orgs/Acme/people is a source already, acme ({made['id']}): change that, in place"
        " of a second"
    )
    refused: list[tuple[dict[str, Any], str]] = [
        ({"provider": "svn"}, "provider: unknown provider 'svn'; choose "),
        (
            {"provider": "gogs"},
            "provider: gogs has no webhook for many repositories: connect each of them by",
        ),
        ({"provider": "generic"}, "provider: generic has no webhook for many repositories"),
        ({"url": "https://github.com"}, "url: github has no webhook for a whole server: give that of an org"),
        (
            {"provider": "gitlab", "url": "https://gitlab.com/"},
            "url: gitlab has no webhook for a whole server at gitlab.com: give that of an organisation",
        ),
        (
            {"provider": "azure-devops", "url": "https://dev.azure.com/acme"},
            "url: the URL names no project: it has the form https://dev.azure.com/organisation/project",
        ),
        ({"url": "git@github.com:acme"}, "url: it must be the address of a web page, such as https://"),
        ({"url": "https://ada:secret@github.com/acme"}, "url: remove the user name and the password from it"),
        ({"name": "acme"}, "the name acme is taken, by connection"),
        ({"identity": "nobody"}, "identity: no identity has the id or the name nobody"),
        ({"provider": "gitea", "url": "https://git.example"}, "identity: acme-bot is for github, but"),
        ({"url": "https://github.example/acme"}, "identity: acme-bot is for github.com, but"),
        (
            {"identity": None, "rules": [{"manifest": True}]},
            "rules: a rule with `manifest` needs an identity",
        ),
        ({"rules": [{}, {"colour": 1}]}, "rule 2: colour: there is no such field"),
        ({"rules": [{"project": "{owner}"}]}, "rule 1: project: "),
        ({"secret": "short"}, "a secret must have at least 16 bytes"),
    ]
    for changes, sentence in refused:
        body = {**ACME, "url": "https://github.com/other"} | changes
        assert refusal(web, "POST", "/sources", body).startswith(sentence)
    needs = {"rules": [{"manifest": True}], "identity": None}
    assert "needs an identity" in refusal(web, "PATCH", "/sources/acme", needs)
