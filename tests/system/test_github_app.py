"""A GitHub App fetches private repositories and registers webhooks, with tokens that appear nowhere."""

import json
from pathlib import Path
from typing import Any

from testing.git_host import GitHost
from testing.processes import started_with
from testing.provider_apis.fake import serving
from testing.provider_apis.github_app import FakeGitHubWithApp, Installation, make_key
from testing.service import Project, Service, run_pushgate, wait_for

CANARY = "ghs_c4nary"


def test_an_app_fetches_and_registers_a_webhook(tmp_path: Path, service: Service) -> None:
    """A refused token is replaced by the next try, and the key by `identity renew`."""
    permissions = {"contents": "read", "metadata": "read", "repository_hooks": "read"}
    installation = Installation(7, "acme", ["acme/digits"], permissions)
    key, pem = make_key()
    fake = FakeGitHubWithApp(key=key, installations=[installation], next_token=(CANARY + "{}").format)
    file = tmp_path / "key.pem"
    # As a secret's variable or a form may have changed it.
    file.write_text(pem.replace("\n", "\\n"))
    with GitHost(tmp_path / "closed") as host, serving(fake):
        project = Project(host, tmp_path)
        host.credentials = f"x-access-token:{CANARY}1"
        done = run_pushgate(
            "identity", "add", "app", "--provider", "github", "--app-id", fake.client_id,
            "--api-url", f"{fake.url}/api/v3", "--key-file", file, service=service,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        host.answers.clear()
        made = service.connect(project.url, "train@main", identity="app")
        path = f"/connections/{made['id']}"
        wait_for(lambda: host.visits, "git runs")
        assert started_with(f"{CANARY}1") == []
        assert f"{CANARY}1".encode() in service.stored()
        host.answers.set()
        wait_for(lambda: service.api.get(path)["reconciliation"]["reconciled_at"], "the remote is read")

        def register() -> Any:
            return service.api.send("POST", f"{path}/webhook", wait=15)["reason"]

        assert "octo-gate lacks the permission “Webhooks: read and write” on acme/digits" in register()
        permissions["repository_hooks"] = "write"
        fake.key, pem = make_key()
        assert "GitHub refuses the private key of the GitHub App" in register()
        file.write_text(pem)
        renewed = run_pushgate("identity", "renew", "app", "--key-file", file, service=service)
        assert (renewed.returncode, "The new key is used" in renewed.stdout) == (0, True)
        assert register() is None
        assert len(fake.hooks["acme/digits"]) == 1

        host.credentials = f"x-access-token:{CANARY}4"
        _, answer = service.deliver(made, project.payload(None, project.first))
        wait_for(
            lambda: (
                "access was denied"
                in str(service.api.get(f"/deliveries/{answer['delivery']}")["updates"][0]["reason"])
            ),
            "a token is refused",
        )
        service.api.send("POST", f"{path}/check", {}, wait=15)
        assert service.settled(answer["delivery"])["updates"][0]["state"] == "planned"
        listed = run_pushgate("identity", "list", service=service).stdout
        assert ("github-app" in listed, fake.client_id in listed) == (True, True)
        shown = listed + json.dumps([service.log(), service.api.get("/identities"), service.api.get(path)])
        kept = service.stored()
    for secret in (CANARY, pem.splitlines()[5]):
        assert secret not in shown
        assert secret.encode() not in kept
