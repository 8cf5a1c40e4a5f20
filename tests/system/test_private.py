"""Private repositories, from `pushgate connect` to the execution request."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.cli.api_client import ApiError
from testing.git_host import GitHost
from testing.processes import may_leave_core_files, started_with
from testing.service import Project, Service, run_pushgate, wait_for
from testing.ssh import SshHost
from tests.dashboard.getting import got, signed_in

_ENTRA = {"credential": "client-secret", "tenant": "acme.example", "client_id": "71"}


def _private_key() -> str:
    """Return a key as GitHub gives it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


@pytest.fixture
def ssh(githost: GitHost) -> Iterator[SshHost]:
    """Start an SSH server for the same repositories, which has no authorized key yet."""
    with SshHost(githost.folder, []) as host:
        yield host


def test_a_deploy_key_that_is_pasted_at_the_provider_opens_the_repository(
    service: Service, project: Project, ssh: SshHost
) -> None:
    """`connect` prints it; until it is there the delivery waits, with the reason."""
    done = run_pushgate(
        "connect", ssh.url("acme/digits.git"), "--provider", "github", "--project", "p",
        "--trigger", "train@main", "--json", service=service,
    )  # fmt: skip
    made = {**json.loads(done.stdout)}
    made["path"] = "/hooks/" + made["id"]
    assert made["access"] == "ssh key"
    assert made["deploy_key"].startswith("ssh-ed25519 ")
    assert made["remote"]["readable"] is False
    assert "access was denied" in made["remote"]["reason"]
    assert "add the connection's deploy key to the repository" in made["remote"]["repair"]
    body = project.payload(None, project.first)
    _, answer = service.deliver(made, body)
    which = answer["delivery"]
    wait_for(
        lambda: "access was denied" in str(service.api.get(f"/deliveries/{which}")["updates"][0]["reason"]),
        "the reason is shown",
    )
    ssh.authorize(made["deploy_key"])
    remote = service.api.send("POST", f"/connections/{made['id']}/check", {}, wait=15)["remote"]
    assert (remote["readable"], remote["default_branch"]) == (True, "main")
    assert service.settled(which)["updates"][0]["state"] == "planned"
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["commit"]["id"] == project.first


def test_a_password_in_the_url_is_taken_out_of_it(tmp_path: Path, service: Service) -> None:
    """It is used to fetch, and appears nowhere: not in the API, the log or the database."""
    with GitHost(tmp_path / "closed", credentials="ada:s3cret-of-ada") as host:
        url = host.create("acme/closed.git")
        connection = service.connect(url.replace("http://", "http://ada:s3cret-of-ada@"))
        assert (connection["url"], connection["access"]) == (url, "login")
        path = f"/connections/{connection['id']}"
        wait_for(lambda: service.api.get(path)["reconciliation"]["reconciled_at"], "the remote was looked at")
        service.api.send("PATCH", path, {"credentials": None})
        wait_for(lambda: service.api.get(path)["reconciliation"]["reason"], "the remote refuses us")
        shown = json.dumps(service.api.get("/connections")) + json.dumps(service.log())
        kept = service.stored()
    assert "s3cret-of-ada" not in shown
    assert b"s3cret-of-ada" not in kept


def test_connections_share_the_token_of_an_identity(tmp_path: Path, service: Service) -> None:
    """It is used to fetch and stands nowhere, nor does another secret; an own password goes before it."""
    token, secret, password = (f"c4nary-of-the-{use}" for use in ("identity", "webhook", "login"))
    with GitHost(tmp_path / "closed", credentials=f"oauth2:{token}") as host:
        urls = [host.create(f"acme/{name}.git") for name in ("digits", "letters")]
        file = tmp_path / "token"
        file.write_text(f" {token}\n")
        done = run_pushgate(
            "identity", "add", "bot", "--provider", "gitlab", "--api-url", urls[0], "--expires", "2099-12-31",
            "--token-file", file, "--json", service=service,
        )  # fmt: skip
        bot = json.loads(done.stdout)
        assert (bot["expires_at"], bot["rotates"]) == ("2099-12-31T00:00:00Z", True)
        key = _private_key()
        for other in (
            {"kind": "entra", "provider": "azure-devops", "settings": _ENTRA, "client_secret": "c4nary"},
            {"kind": "github-app", "provider": "github", "settings": {"app_id": "7"}, "private_key": key},
        ):
            service.api.send("POST", "/identities", {"name": other["kind"], **other})
        host.answers.clear()
        shared = [service.connect(url, provider="gitlab", identity="bot", secret=secret) for url in urls]
        wait_for(lambda: host.visits, "git runs")
        assert started_with("c4nary") == []
        leaves = may_leave_core_files(service.pid)
        assert (len(leaves) > 1, set(leaves.values())) == (True, {False})
        host.answers.set()
        assert [(made["access"], made["identity"]) for made in shared] == [("identity", "bot")] * 2
        paths = [f"/connections/{made['id']}" for made in shared]
        for path in paths:
            wait_for(lambda: service.api.get(path)["reconciliation"]["reconciled_at"], "it is used")  # noqa: B023
        own = {"credentials": {"user": "oauth2", "password": password}}
        assert service.api.send("PATCH", paths[0], own)["access"] == "login"
        wait_for(lambda: service.api.get(paths[0])["reconciliation"]["reason"], "the password is used")
        file.write_text("another")
        renewed = ("identity", "renew", "bot", "--token-file", file, "--expires", "2099-06-15")
        assert run_pushgate(*renewed, service=service).returncode == 0
        listed = run_pushgate("identity", "list", service=service).stdout
        assert "2099-06-1" in listed
        service.api.send("POST", f"{paths[1]}/fetch")
        wait_for(lambda: service.api.get(paths[1])["reconciliation"]["reason"], "the new token is used")
        shown = listed + json.dumps([bot, service.api.get("/identities"), service.api.get("/connections")])
        shown += json.dumps(service.log())
        cookie = signed_in(service)
        shown += "".join(got(service.url + path, cookie)[1] for path in ("/", "/metrics", *paths))
        with pytest.raises(ApiError, match="used by"):
            service.api.send("DELETE", "/identities/bot")
        for path in paths:
            assert service.api.send("PATCH", path, {"identity": None})["identity"] is None
        assert run_pushgate("identity", "delete", "bot", service=service).returncode == 0
        kept = service.stored()
    # A line in the middle of a private key.
    for canary in ("c4nary", key.splitlines()[5]):
        assert canary not in shown
        assert canary.encode() not in kept


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"provider": "generic"}, "provider: it has no API"),
        ({"provider": "gitea"}, "api_url: gitea runs on many servers"),
        ({"provider": "bitbucket", "token": "ATATT3x"}, "requires the mail address"),
        ({"rotates": True}, "rotates: Pushgate can rotate only access tokens of GitLab"),
        ({"token": "two words"}, "token: it must be one word"),
        ({"api_url": "git@git.example:a"}, "api_url: it must be https"),
        ({"api_url": "https://a:b@git.example/"}, "api_url: remove the user name"),
        ({"api_url": "ftp://git.example"}, "api_url: it must be https"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at: it must be in the future"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at: .*timezone"),
        ({"name": "a/b"}, "name: "),
    ],
)
def test_identities_that_cannot_work_are_refused(
    service: Service, change: dict[str, object], expected: str
) -> None:
    """With one sentence."""
    wanted = {"name": "bot", "provider": "github", "token": "c4nary", **change}
    with pytest.raises(ApiError, match=expected) as refused:
        service.api.send("POST", "/identities", wanted)
    assert "c4nary" not in str(refused.value)


def test_a_token_is_sent_to_no_other_server(service: Service) -> None:
    """A user who may change URLs must not learn it."""
    wanted = {"name": "bot", "provider": "gitea", "token": "t", "api_url": "https://git.example/api/v1"}
    service.api.send("POST", "/identities", wanted)
    made = service.connect("https://git.example/a/b.git", provider="gitea", identity="bot")
    for path, change, expected in (
        (f"/connections/{made['id']}", {"url": "https://evil.example/a/b.git"}, "is at evil.example"),
        ("/identities/bot", {"api_url": "https://evil.example"}, "give its token, too"),
        ("/identities/bot", {"api_url": "https://evil.example", "token": "t"}, "is at git.example"),
        ("/identities/bot", {"api_url": None, "token": "t"}, "runs on many servers"),
        (f"/connections/{made['id']}", {"identity": "nobody"}, "no identity has the id or the name nobody"),
    ):
        with pytest.raises(ApiError, match=expected):
            service.api.send("PATCH", path, change)
    options = ("--provider", "azure-devops", "--workload-identity", "--json")
    done = run_pushgate("identity", "add", "entra", *options, service=service)
    assert json.loads(done.stdout)["settings"] == {"credential": "workload-identity"}
    done = run_pushgate("identity", "renew", "entra", service=service)
    assert "entra has no secret to renew: it signs in with a workload-identity" in done.stderr
    changed = service.api.send("PATCH", "/identities/entra", {"settings": {"credential": "managed-identity"}})
    assert changed["settings"] == {"credential": "managed-identity"}
    with pytest.raises(ApiError, match="client_secret: it is required"):
        service.api.send("PATCH", "/identities/entra", {"settings": {"credential": "client-secret"}})
    changed = service.api.send("PATCH", "/identities/bot", {"name": "robot", "user": "ada"})
    assert (changed["name"], changed["user"], changed["api_url"]) == ("robot", "ada", wanted["api_url"])
    assert service.api.get(f"/connections/{made['id']}")["identity"] == "robot"
    file = service.data.parent / "connections.yaml"
    for identity, fields in ((", identity: robot", {}), ("", {"identity": {"from": "robot", "to": None}})):
        file.write_text(
            f"connections: [{{name: {made['name']}, provider: gitea, project: {made['project']}{identity},"
            " url: https://git.example/a/b.git}]"
        )
        done = run_pushgate("apply", "-f", file, "--dry-run", "--json", service=service)
        assert json.loads(done.stdout)["changes"][0]["fields"] == fields


@pytest.mark.parametrize(
    ("url", "credentials", "expected"),
    [
        ("https://git.example/a/b.git", {"private_key": "x"}, "a key is for ssh URLs"),
        ("git@git.example:a/b.git", {"user": "a", "password": "b"}, "are for https"),
        ("git@git.example:a/b.git", {"private_key": "x"}, "private_key: it is not a private key"),
        ("https://a:b@git.example/a/b.git", {"password": "b"}, "not both"),
        ("https://git.example/a/b.git", {"user": "a"}, "a user requires a password"),
    ],
)
def test_credentials_that_do_not_fit_are_refused(
    service: Service, url: str, credentials: dict[str, str], expected: str
) -> None:
    """The connection is refused with one sentence."""
    with pytest.raises(ApiError, match=expected):
        service.connect(url, credentials=credentials)


def test_after_a_new_secret_key_everything_is_sealed_under_it(tmp_path: Path, project: Project) -> None:
    """The webhook secret and the deploy key are unchanged; the old key decrypts nothing any more."""
    service = Service(tmp_path / "data")
    with service:
        made = service.connect("git@git.example:acme/digits.git")
        service.api.send("POST", "/identities", {"name": "bot", "provider": "github", "token": "t"})
    old = (service.data / "secret.key").read_text()
    done = run_pushgate("keys", "rotate", "--data", service.data, "--json")
    assert json.loads(done.stdout) == {"secrets": 3}
    assert (service.data / "secret.key").read_text() != old
    assert not (service.data / "secret.key.previous").exists()
    with service:
        assert service.deliver(made, b"{}", event="ping")[0] == 200
        assert service.api.get(f"/connections/{made['id']}")["deploy_key"] == made["deploy_key"]
    (service.data / "secret.key").write_text(old)
    with service:
        assert service.deliver(made, project.payload(None, project.first))[0] == 503


def test_a_password_is_sent_to_no_other_host(service: Service, tmp_path: Path) -> None:
    """A user who may change the URL must not learn it; another repository on the same host is fine."""
    with GitHost(tmp_path / "closed", credentials="ada:s3cret-of-ada") as host:
        url = host.create("acme/closed.git")
        path = f"/connections/{service.connect(url, credentials={'user': 'ada', 'password': 's'})['id']}"
    for other in ("https://git.example/a/b.git", "http://127.0.0.1:9/acme/closed.git"):
        with pytest.raises(ApiError, match="the stored password is for another host"):
            service.api.send("PATCH", path, {"url": other})
    assert service.api.get(path)["url"] == url
    moved = service.api.send("PATCH", path, {"url": url.replace("closed.git", "moved.git")})
    assert moved["access"] == "login"
    elsewhere = {"url": "https://git.example/a/b.git", "credentials": {"password": "t0ken"}}
    assert service.api.send("PATCH", path, elsewhere)["access"] == "login"
    forgotten = service.api.send("PATCH", path, {"url": "https://other.example/a/b", "credentials": None})
    assert forgotten["access"] == "none"


def test_an_odd_line_of_host_keys_is_left_out_and_named(service: Service, ssh: SshHost) -> None:
    """The others are used; the answer names the line."""
    host_keys = f"{ssh.known_hosts}\n[127.0.0.1]:{ssh.port} ssh-dss AAAAB3NzaC1kc3M="
    made = service.connect(ssh.url("acme/digits.git"), credentials={"host_keys": host_keys})
    assert made["warnings"] == ["host_keys: line 2 is ignored: it contains no key that ssh supports"]
    path = f"/connections/{made['id']}"
    assert "warnings" not in service.api.get(path)


@pytest.mark.usefixtures("project")
def test_host_keys_are_changed_without_touching_the_deploy_key(service: Service, ssh: SshHost) -> None:
    """This is the remedy when a server's host key changes."""
    made = service.connect(ssh.url("acme/digits.git"))
    path = f"/connections/{made['id']}"
    ssh.authorize(made["deploy_key"])

    def reconciled() -> bool:
        reconciliation = service.api.get(path)["reconciliation"]
        return reconciliation["reason"] is None and reconciliation["reconciled_at"] is not None

    def refused() -> bool:
        return "set the connection's new host_keys" in str(service.api.get(path)["reconciliation"]["reason"])

    service.api.send("POST", path + "/fetch", {})
    wait_for(reconciled, "the deploy key opens the repository")
    ssh.change_host_key()
    service.api.send("POST", path + "/fetch", {})
    wait_for(refused, "the other host key is refused")
    changed = service.api.send("PATCH", path, {"credentials": {"host_keys": ssh.known_hosts}})
    assert changed["deploy_key"] == made["deploy_key"]
    wait_for(reconciled, "the new host key is accepted")
    with pytest.raises(ApiError, match="no line is for"):
        service.api.send(
            "PATCH", path, {"credentials": {"host_keys": ssh.known_hosts.replace("127.", "128.")}}
        )
    replaced = service.api.send("PATCH", path, {"credentials": {"deploy_key": True}})
    assert replaced["deploy_key"] != made["deploy_key"]


def test_a_rotation_mends_a_connection_whose_key_is_lost(tmp_path: Path, project: Project) -> None:
    """Secrets encrypted under the lost key are skipped; neither showing nor rotating needs them."""
    service = Service(tmp_path / "data")
    with service:
        made = service.connect(project.url)
    (service.data / "secret.key").write_text("another key, " * 4)
    with service:
        assert service.deliver(made, b"{}", event="ping")[0] == 503
        path = f"/connections/{made['id']}"
        assert len(service.api.get(path)["secrets"]) == 1
        rotated = service.api.send("POST", f"{path}/rotate-secret")
        assert service.deliver({**made, "secret": rotated["secret"]}, b"{}", event="ping")[0] == 200
