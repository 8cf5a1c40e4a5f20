"""`pushgate apply`: connections as a file describes them, on a running gateway."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.connections_file import read_file
from gateway.errors import Invalid
from testing.service import Service, run_pushgate

KNOWN = "a secret that the provider knows"
FROM_A_FILE = "a secret from a file"

TWO = """\
connections:
  - name: digits
    provider: github
    url: https://github.example/acme/digits.git
    project: digits
    secret: {env: DIGITS_SECRET}
    triggers:
      - {name: train, on: [push], branches: [main], run: {step: train}}
  - name: letters
    provider: azure-devops
    url: https://dev.azure.example/acme/_git/letters
    project: letters
    auth: {header: X-Push-Secret}
    secret: {file: SECRET_FILE}
"""


def apply(service: Service, text: str, folder: Path, *options: str) -> Any:
    """Apply a file; return the command's JSON output."""
    secret = folder / "secret"
    secret.write_text(f"{FROM_A_FILE}\n")
    file = folder / "connections.yaml"
    file.write_text(text.replace("SECRET_FILE", str(secret)))
    done = run_pushgate(
        "apply", "-f", str(file), "--json", *options, service=service, variables={"DIGITS_SECRET": KNOWN}
    )
    assert done.returncode == 0, done.stderr
    assert FROM_A_FILE not in done.stdout.replace(f'"secret": "{FROM_A_FILE}"', "")
    return json.loads(done.stdout)["changes"]


def connections(service: Service) -> dict[str, Any]:
    """Return the connections by name, without the state of their remote, which depends on timing."""
    listed = service.api.get("/connections")["items"]
    timed = {"reconciliation", "remote", "health"}
    return {one["name"]: {key: one[key] for key in one if key not in timed} for one in listed}


def test_a_file_makes_what_it_names_and_then_nothing_more(service: Service, tmp_path: Path) -> None:
    """The second run has nothing to do; the secrets are the file's."""
    assert [change["action"] for change in apply(service, TWO, tmp_path)] == ["create", "create"]
    first = connections(service)
    assert first["letters"]["auth"] == {"header": "x-push-secret"}
    assert [change["action"] for change in apply(service, TWO, tmp_path)] == ["keep", "keep"]
    assert connections(service) == first
    made = {**first["digits"], "secret": KNOWN, "path": f"/hooks/{first['digits']['id']}"}
    assert service.deliver(made, b"{}", event="ping")[0] == 200


def test_a_changed_file_changes_only_what_differs(service: Service, tmp_path: Path) -> None:
    """Old and new values are shown; the webhook URL stays."""
    apply(service, TWO, tmp_path)
    before = connections(service)
    [digits, letters] = apply(service, TWO.replace("branches: [main]", "branches: [dev]"), tmp_path)
    assert (digits["action"], list(digits["fields"]), letters["action"]) == ("change", ["triggers"], "keep")
    after = connections(service)
    assert after["digits"]["triggers"][0]["branches"] == ["dev"]
    assert after["digits"]["hook_url"] == before["digits"]["hook_url"]
    assert after["letters"] == before["letters"]


def test_credentials_in_a_url_are_taken_and_no_difference(service: Service, tmp_path: Path) -> None:
    """Azure's own clone URLs have a user name; a password in one is never shown."""
    text = TWO.replace("https://dev.", "https://acme@dev.").replace("//github.", "//ada:S3cret-Word@github.")
    apply(service, text, tmp_path)
    assert {name: one["access"] for name, one in connections(service).items()} == {
        "digits": "login",
        "letters": "none",
    }
    assert [change["action"] for change in apply(service, text, tmp_path)] == ["keep", "keep"]
    moved = text.replace("acme/digits.git", "acme/numbers.git")
    [digits, _] = apply(service, moved, tmp_path)
    old, new = (f"https://github.example/acme/{name}.git" for name in ("digits", "numbers"))
    assert digits["fields"] == {"url": {"from": old, "to": new}}
    assert connections(service)["digits"]["access"] == "login"


def test_a_dry_run_changes_nothing(service: Service, tmp_path: Path) -> None:
    """It shows what would be done."""
    assert [change["action"] for change in apply(service, TWO, tmp_path, "--dry-run")] == ["create", "create"]
    assert connections(service) == {}


def test_only_pruning_deletes(service: Service, tmp_path: Path) -> None:
    """Connections that the file doesn't name stay, unless pruning is requested."""
    apply(service, TWO, tmp_path)
    one = TWO[: TWO.index("  - name: letters")]
    apply(service, one, tmp_path)
    assert set(connections(service)) == {"digits", "letters"}
    changes = apply(service, one, tmp_path, "--prune")
    assert [change["action"] for change in changes] == ["keep", "delete"]
    assert set(connections(service)) == {"digits"}


def test_people_see_the_difference(service: Service, tmp_path: Path) -> None:
    """A line for each connection, and one for each field that changes."""
    apply(service, TWO, tmp_path)
    file = tmp_path / "connections.yaml"
    file.write_text(file.read_text().replace("project: digits", "project: numbers"))
    done = run_pushgate(
        "apply", "-f", str(file), "--dry-run", service=service, variables={"DIGITS_SECRET": KNOWN}
    )
    assert done.stdout == (
        '~ digits\n    project: "digits" → "numbers"\n= letters\nNothing was changed: this was a dry run.\n'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("connections: [", "not valid YAML"),
        ("{}", "connections: Field required"),
        ("connections: [{name: a}]", "connections.0.provider: Field required"),
        (TWO + "    colour: red\n", "connections.1.colour: there is no such field$"),
        (
            TWO.replace("provider:", "provder:", 1),
            "^connections.0.provder: there is no such field; do you mean provider\\?$",
        ),
        (
            TWO.replace("{env: D", "{evn: D"),
            "0.secret.evn: there is no such field; do you mean env",
        ),
        (TWO.replace("{step: train}", "{stpe: train}"), "run.stpe: there is no such field; do you mean step"),
        (TWO.replace("branches:", "branch:"), "branch: there is no such field; do you mean branches"),
        ("[]", "^the file: "),
        (TWO.replace("name: letters", "name: digits"), "two connections have the name 'digits'"),
        (TWO.replace("{step: train}", "{}"), "digits: "),
        (TWO.replace("{env: DIGITS_SECRET}", "plain"), "connections.0.secret"),
        (TWO.replace("{env: DIGITS_SECRET}", "{env: A, file: b}"), "give either {env: NAME}"),
        (TWO + "    yaml_path: 2020-13-45\n", "the file is not valid YAML: month must be in 1..12"),
        ("[" * 20_000, "the file is not valid YAML: "),
        ("connections: \udcff", "the file is not valid YAML: "),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, expected: str) -> None:
    """It names the place."""
    with pytest.raises(Invalid, match=expected):
        read_file(text.encode("utf-8", "surrogateescape"))


def test_a_missing_secret_stops_before_anything_is_done(service: Service, tmp_path: Path) -> None:
    """A file is never half applied because a secret is missing."""
    file = tmp_path / "connections.yaml"
    file.write_text(TWO)
    done = run_pushgate("apply", "-f", str(file), service=service)
    assert done.returncode == 1
    assert "the variable DIGITS_SECRET contains no secret" in done.stderr
    assert connections(service) == {}


def test_the_provider_of_a_connection_stays(service: Service, tmp_path: Path) -> None:
    """Its secrets and its webhook would no longer fit."""
    apply(service, TWO, tmp_path)
    file = tmp_path / "connections.yaml"
    file.write_text(file.read_text().replace("provider: github", "provider: gitea"))
    done = run_pushgate("apply", "-f", str(file), service=service, variables={"DIGITS_SECRET": KNOWN})
    assert (done.returncode, "provider cannot be changed" in done.stderr) == (1, True)
