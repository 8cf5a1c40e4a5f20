"""Providers other than GitHub, through the real webhook endpoint."""

import base64
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.api_client import ApiError, post_webhook
from gateway.data_dir import open_data
from gateway.settings import Settings
from gateway.store import connections
from providers import PROVIDERS
from testing.corpus import Case, cases
from testing.git_host import GitHost
from testing.service import Project, Service, run_pushgate, wait_for

TRIGGER = {"name": "train", "branches": ["main"], "run": {"step": "train"}}


def azure_push(url: str, before: str, after: str) -> bytes:
    """Return Azure DevOps' payload of a push to main."""
    resource = {
        "refUpdates": [{"name": "refs/heads/main", "oldObjectId": before, "newObjectId": after}],
        "repository": {"id": "d3d1760b", "name": "digits", "remoteUrl": url},
    }
    numbers = {"subscriptionId": str(uuid.uuid4()), "notificationId": 1, "id": str(uuid.uuid4())}
    return json.dumps({**numbers, "eventType": "git.push", "resource": resource}).encode()


def deliver(
    service: Service, connection: Any, provider: str, body: bytes, event: str = "push"
) -> tuple[int, Any]:
    """Sign an event as the provider would, and post it."""
    secret = connection["secret"].encode()
    headers = PROVIDERS[provider].sign(
        event=event, body=body, secret=secret, delivery=str(uuid.uuid4()), now=datetime.now(UTC)
    )
    return post_webhook(service.url + connection["path"], body, headers)


def test_refs_with_odd_names_cost_no_push(service: Service, project: Project, githost: GitHost) -> None:
    """One that is not UTF-8 and one with a line separator: pushes and reconciliations still work."""
    packed = b"".join(
        project.first.encode() + b" refs/heads/" + name + b"\n"
        for name in sorted([b"gr\xf6\xdfe", "a\u2028b".encode()])
    )
    (githost.folder / f"{project.name}.git" / "packed-refs").write_bytes(packed)
    connection = service.connect(project.url, provider="azure-devops", triggers=[TRIGGER])
    assert service.fetched(connection) == []
    second = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = deliver(service, connection, "azure-devops", azure_push(project.url, project.first, second))
    assert service.settled(answer["delivery"])["updates"][0]["state"] == "planned"
    third = project.push("Third", {"train.py": "print(3)\n"})
    project.tree.push("main:refs/heads/a\u2028b")
    assert {update["name"]: update["after"] for update in service.fetched(connection)} == {
        "main": third,
        "a\u2028b": third,
    }


def test_an_unsigned_delivery_runs_what_the_remote_bears_out(service: Service, project: Project) -> None:
    """Azure DevOps signs no body: a commit that the branch does not contain is not executed."""
    connection = service.connect(project.url, provider="azure-devops", triggers=[TRIGGER])
    second = project.push("Second", {"train.py": "print(2)\n"})
    aside = project.tree.commit("Aside", {"train.py": "print(3)\n"})
    project.tree.push("HEAD:refs/heads/aside")

    _, honest = deliver(service, connection, "azure-devops", azure_push(project.url, project.first, second))
    assert service.settled(honest["delivery"])["updates"][0]["state"] == "planned"
    _, forged = deliver(service, connection, "azure-devops", azure_push(project.url, second, aside))
    [update] = service.settled(forged["delivery"])["updates"]
    assert update["state"] == "gone"
    assert "does not contain" in update["reason"]
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["commit"]["id"] == second


def test_a_git_server_of_ones_own_reports_pushes_by_its_hook(
    service: Service, project: Project, githost: GitHost
) -> None:
    """`pushgate hook-script`, put into a bare repository: the next push is an execution request."""
    connection = service.connect(project.url, provider="generic", triggers=[TRIGGER])
    bare = githost.folder / f"{project.name}.git"
    secret = bare / "pushgate-secret"
    secret.write_text(connection["secret"])
    secret.chmod(0o600)
    url = service.url + connection["path"]
    done = run_pushgate("hook-script", "--url", url, "--secret-file", str(secret))
    assert done.returncode == 0, done.stderr
    hook = bare / "hooks" / "post-receive"
    hook.write_text(done.stdout)
    hook.chmod(0o755)
    pushed = project.push("By itself", {"train.py": "print(2)\n"})
    [execution] = wait_for(lambda: service.api.get("/executions")["items"], "the request is there")
    assert execution["message"]["commit"]["id"] == pushed


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_every_delivery_of_the_corpus_gets_its_answer(service: Service, provider: str) -> None:
    """Signed deliveries are recorded. With another secret: 401, and nothing is stored."""
    connection = service.connect("https://example.org/acme/digits.git", provider=provider)
    # Signed again, as JSON: the corpus' forms and its one empty ping are tested where they are verified.
    own: list[Case] = [
        case for case in cases() if case.provider_name == provider and case.body.startswith(b"{")
    ]
    assert len(own) >= 8
    for case in own:
        status, answer = deliver(service, connection, provider, case.body, case.event)
        assert (status in {200, 202}, "delivery" in answer) == (True, True), (case, status, answer)
    stranger = {**connection, "secret": "whsec_" + "AAAA" * 8}
    assert deliver(service, stranger, provider, own[0].body)[0] == 401


@pytest.mark.parametrize(
    ("provider", "more", "expected"),
    [
        ("github", {"auth": {"user": "x"}}, "github has no option user"),
        ("azure-devops", {"auth": {"header": "X-Secret"}}, "give a custom header as"),
        ("gitlab", {"auth": {"signing_token": "plain"}}, "must begin with whsec_"),
        ("gitlab", {"auth": {"signing_token": "whsec_%%%"}}, "must continue in base64"),
        ("gitlab", {"secret": "whsec_%%%"}, "must continue in base64"),
        ("generic", {"secret": "whsec_"}, "must continue in base64"),
        ("gitlab", {"auth": {"token": ""}}, "must not be empty"),
        ("github", {"secret": "x"}, "at least 16 bytes"),
        ("github", {"secret": " "}, "at least 16 bytes"),
        ("gitea", {"secret": "fifteen bytes !"}, "at least 16 bytes"),
        ("generic", {"secret": "whsec_AAAA"}, "at least 16 bytes"),
        ("gitlab", {"auth": {"signing_token": "whsec_" + "AAAA" * 5}}, "at least 16 bytes"),
        ("gitlab", {"auth": {"token": "plain"}}, "at least 16 bytes"),
        ("azure-devops", {"auth": {"header": "X-Secret", "value": "x"}}, "at least 16 bytes"),
        ("github", {"secret": ""}, "secret"),
    ],
)
def test_a_scheme_that_proves_nothing_is_refused(
    service: Service, provider: str, more: dict[str, Any], expected: str
) -> None:
    """A connection needs a complete secret."""
    with pytest.raises(ApiError, match=expected):
        service.connect("https://example.org/a/b.git", provider=provider, **more)


def test_gitlab_gets_a_signing_token_and_keeps_a_plain_one_plain(service: Service) -> None:
    """During the rotation of a plain token both tokens are accepted, until GitLab has the new one."""
    body = b'{"object_kind": "note"}'
    made = service.connect("https://example.org/acme/digits.git", provider="gitlab")
    assert len(base64.b64decode(made["secret"].removeprefix("whsec_"), validate=True)) == 32
    assert made["secret"].startswith("whsec_")
    rotated = service.api.send("POST", f"/connections/{made['id']}/rotate-secret")
    assert rotated["secret"].startswith("whsec_")
    old = "a plain token of an older GitLab"
    plain = service.connect("https://example.org/acme/letters.git", provider="gitlab", secret=old)
    newer = service.api.send("POST", f"/connections/{plain['id']}/rotate-secret")["secret"]
    assert not newer.startswith("whsec_")
    for secret in (old, newer):
        assert deliver(service, {**plain, "secret": secret}, "gitlab", body)[0] == 202


def test_a_weak_secret_from_before_goes_on(tmp_path: Path) -> None:
    """It stays valid, with a warning in the log, and can be set again; a new one must be strong."""
    with Service(tmp_path / "data", CONCURRENCY="1") as service:
        connection = service.connect("https://example.org/acme/digits.git", secret="s" * 16)
        path = f"/connections/{connection['id']}/rotate-secret"
        with pytest.raises(ApiError, match="at least 16 bytes"):
            service.api.send("POST", path, {"secret": "short"})
    opened = open_data(Settings(data_dir=tmp_path / "data"))
    with opened.database.writing() as conn:
        connections.add_secret(conn, opened.keyring, connection["id"], b"short", now=datetime.now(UTC))
    opened.database.close()
    with service:
        assert service.deliver({**connection, "secret": "short"}, b"{}", event="ping")[0] == 200
        assert service.api.send("POST", path, {"secret": "short"})["secret"] == "short"
        [line] = [line for line in service.log() if "can be guessed" in line["event"]]
        assert (line["connection"], "short" in str(line)) == (connection["id"], False)


def test_gitlab_with_token_and_signing_token_needs_the_signature(service: Service) -> None:
    """With a signing token, the plain token alone is refused."""
    signing = "whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q="
    token = "a plain token of GitLab"
    auth = {"token": token, "signing_token": signing}
    connection = service.connect("https://example.org/acme/digits.git", provider="gitlab", auth=auth)
    body = b'{"object_kind": "note"}'
    plain = {"x-gitlab-token": token, "x-gitlab-event": "Note Hook", "content-type": "application/json"}
    url = service.url + connection["path"]
    assert post_webhook(url, body, plain)[0] == 401
    assert deliver(service, {**connection, "secret": signing}, "gitlab", body)[0] == 202
    assert token not in json.dumps(service.api.get("/connections"))


@pytest.mark.parametrize(
    ("case", "detail"),
    [("pull-request-opened", "pull_request"), ("repository-renamed", "change")],
)
def test_what_is_no_push_is_kept_as_what_it_is(service: Service, case: str, detail: str) -> None:
    """Pull requests and renames are shown with their data, and run nothing."""
    [found] = [one for one in cases() if (one.provider_name, one.name) == ("github", case)]
    connection = service.connect("https://github.example/octo-org/octo-repo.git")
    _, answer = deliver(service, connection, "github", found.body, found.event)
    kept = service.api.get(f"/deliveries/{answer['delivery']}")
    assert kept["detail"] == {detail: found.expected[detail]}
