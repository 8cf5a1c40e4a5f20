"""The commands that change a connection: edit, rename, delete, rotate its secret."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.github import push_payload
from testing.service import ADMIN_TOKEN, PUSHGATE, WAIT_SECONDS, Service
from testing.service import run_pushgate as run

URL = "https://github.example/acme/digits.git"
SIGNING_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway without a worker."""
    with Service(tmp_path_factory.mktemp("gateway") / "data", ROLE="web") as service:
        yield service


def answer(web: Service, *arguments: str | Path) -> Any:
    """Run a command with --json, and return its output."""
    done = run(*arguments, "--json", service=web)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_edit_changes_what_its_options_name(web: Service, tmp_path: Path) -> None:
    """It shows the old and the new values, and leaves the rest; `--no-…` removes."""
    made = web.connect(URL, "train@main", name="edited", follows=["main"], networks=["192.0.2.0/24"])
    path = f"/connections/{made['id']}"
    done = run("edit", "edited", "--project=research", "--no-follow", "--trigger=tune@dev", service=web)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("~ edited\n")
    assert 'project: "digits" → "research"' in done.stdout
    assert 'follows: ["main"] → []' in done.stdout
    assert "\n      - train@main: step train on push; branches main; policy every\n" in done.stdout
    assert "\n      + tune@dev: step tune on push; branches dev; policy every" in done.stdout
    shown = web.api.get(path)
    assert ([one["name"] for one in shown["triggers"]], shown["follows"]) == (["tune@dev"], [])
    assert (shown["url"], shown["networks"]) == (URL, ["192.0.2.0/24"])
    assert run("edit", "edited", "--project=research", service=web).stdout == "= edited\n"

    secret = tmp_path / "secret"
    secret.write_text(f"{SIGNING_SECRET}\n")
    receiver = ("--status-webhook=https://ci.example/verdicts", f"--status-webhook-secret-file={secret}")
    view = answer(web, "edit", made["id"], *receiver, "--no-statuses", "--no-network", "--no-trigger")
    assert (view["has_status_webhook"], view["statuses"]) == (True, False)
    assert (view["networks"], view["triggers"]) == ([], [])
    assert "status_webhook: replaced" in run("edit", "edited", *receiver, service=web).stdout
    assert answer(web, "edit", "edited", "--no-status-webhook")["has_status_webhook"] is False

    password = tmp_path / "password"
    password.write_text("a token\n")
    done = run("edit", "edited", f"--password-file={password}", service=web)
    assert 'access: "none" → "login"' in done.stdout
    assert f"pushgate check {made['id']}" in done.stdout
    assert answer(web, "edit", "edited", "--no-credentials")["access"] == "none"
    done = run("edit", "edited", "--url=git@github.example:acme/digits.git", service=web)
    assert "Add this deploy key to the repository" in done.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "give at least one option"),
        (("--identity=bot", "--no-identity"), "--no-identity contradicts another option"),
        (("--status-webhook=https://ci.example",), "together"),
        (("--package-format=zip",), "package_format"),
        (("--identity=nobody",), "nobody"),
    ],
)
def test_an_edit_that_cannot_be_is_one_sentence(
    web: Service, options: tuple[str, ...], expected: str
) -> None:
    """On standard error, without a traceback."""
    made = web.connect(URL)
    done = run("edit", made["id"], *options, service=web)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pushgate: ")
    assert expected in done.stderr


def test_a_connection_is_renamed(web: Service) -> None:
    """By its name; a taken name is refused."""
    made = web.connect(URL, name="before")
    done = run("rename", "before", "after", service=web)
    assert done.stdout == "Renamed before to after.\n"
    assert answer(web, "rename", "after", "later")["id"] == made["id"]
    web.connect(URL, name="taken")
    assert run("rename", "later", "taken", service=web).returncode == 1


def test_a_deletion_is_confirmed(web: Service) -> None:
    """At a terminal by an answer, elsewhere by --yes."""
    web.connect(URL, "train@main", name="deleted")
    done = run("delete", "deleted", service=web)
    assert done.returncode == 1
    assert f"Pushes to {URL} run nothing any more (train@main)." in done.stderr
    assert "Its deliveries and executions remain readable." in done.stderr
    assert "give --yes" in done.stderr
    assert at_terminal(web, "n", "delete", "deleted") == 1
    assert web.api.get("/connections", name="deleted")["items"] != []
    assert at_terminal(web, "y", "delete", "deleted") == 0
    web.connect(URL, name="deleted")
    assert answer(web, "delete", "deleted", "--yes")["name"] == "deleted"
    assert run("delete", "deleted", "--yes", service=web).returncode == 1


def at_terminal(web: Service, typed: str, *arguments: str) -> int:
    """Run a command whose standard input is a terminal, with the answer to its question."""
    terminal, keyboard = pty.openpty()
    os.write(terminal, f"{typed}\n".encode())
    try:
        done = subprocess.run(
            [PUSHGATE, *arguments],
            env={**os.environ, "PUSHGATE_URL": web.url, "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN},
            stdin=keyboard,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert f"Delete {arguments[1]}?" in done.stderr
    return done.returncode


def test_a_rotation_shows_the_secret_and_the_use_of_the_previous_one(web: Service, tmp_path: Path) -> None:
    """And warns if the secret that the provider uses is no longer valid."""
    made = web.connect(URL, name="rotated")
    first = run("rotate-secret", "rotated", service=web)
    assert first.returncode == 0, first.stderr
    assert "The previous secret, never used, stays valid until the next rotation." in first.stdout
    assert "Enter the new secret in the webhook's settings at the provider." in first.stdout
    assert "(shown only once)" in first.stdout

    push = push_payload(
        url=URL, full_name="acme/digits", ref="refs/heads/main", before="a" * 40, after="b" * 40
    )
    assert web.deliver(made, push)[0] == 202
    file = tmp_path / "secret"
    file.write_text("the secret from the file\n")
    second = run("rotate-secret", "rotated", f"--secret-file={file}", service=web)
    assert "the provider last used an older secret, which is no longer valid" in second.stdout
    assert "the secret from the file" not in second.stdout

    third = answer(web, "rotate-secret", made["id"])
    assert web.deliver({**made, "secret": third["secret"]}, push)[0] == 202
    shown = run("rotate-secret", "rotated", service=web).stdout
    assert "The previous secret, last used 20" in shown
    assert "Warning" not in shown


def test_a_revoked_secret_is_refused(web: Service) -> None:
    """At once; the newest stays, and a second revocation finds nothing."""
    made = web.connect(URL, name="revoked")
    new = answer(web, "rotate-secret", "revoked")
    push = push_payload(
        url=URL, full_name="acme/digits", ref="refs/heads/main", before="a" * 40, after="b" * 40
    )
    assert web.deliver(made, push)[0] == 202
    assert "The previous secret, last used 20" in run("revoke-secret", "revoked", service=web).stdout
    assert web.deliver(made, push)[0] == 401
    assert web.deliver({**made, "secret": new["secret"]}, push)[0] == 202
    assert "There is no previous secret" in run("revoke-secret", "revoked", service=web).stdout
