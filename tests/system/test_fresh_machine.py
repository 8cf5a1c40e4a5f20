"""The README's requirements are sufficient: no `python`, no variables, a minimal PATH."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.service import Command, Project, wait_for
from tests.matrix import MINIMAL_PATH, interpreters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Start a gateway with only a minimal PATH and its own settings in the environment."""
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", MINIMAL_PATH)
    with Command(tmp_path / "data") as service:
        yield service


def test_a_push_becomes_a_request_with_no_variable_but_path(gateway: Command, project: Project) -> None:
    """Fetch, plan and package included; no home, locale or terminal is needed."""
    connection = gateway.connect(project.url, "train@main")
    second = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = gateway.deliver(connection, project.payload(project.first, second))
    assert [one["state"] for one in gateway.settled(answer["delivery"])["updates"]] == ["planned"]
    [execution] = wait_for(lambda: gateway.api.get("/executions")["items"], "it is planned")
    assert execution["message"]["commit"]["id"] == second
    assert execution["message"]["package"]["size"] > 0


def test_the_tests_have_no_command_python() -> None:
    """A command that needs it fails here as on a fresh Debian, whatever the machine has."""
    done = subprocess.run(["python", "-V"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (127, "")
    assert shutil.which("python") == str(ROOT / "tests" / "no-python" / "python")


def test_bootstrap_names_what_is_missing(tmp_path: Path) -> None:
    """One sentence says that Python is too old or missing, and nothing is created."""
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (old, tmp_path / "none"):
        done = subprocess.run(
            [ROOT / "bootstrap", python, tmp_path / "venv"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "Pushgate needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_matrix_has_the_oldest_and_the_newest_of_each_minor_version(tmp_path: Path) -> None:
    """Of all interpreters found, except those too old or unable to make a virtual environment."""
    versions = ["3.9.1", "3.11.2", "3.11.4", "3.11.9", "3.12.0", "3.13.1"]
    for number, version in enumerate(versions):
        program = tmp_path / str(number) / "bin" / "python3"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho {version.replace('.', ' ')}\n[ {version} != 3.13.1 ]\n")
        program.chmod(0o755)
    found = interpreters([f"{tmp_path}/*/bin", f"{tmp_path}/none"])
    assert [one.name for one in found] == ["3.11.2", "3.11.9", "3.12.0"]
    assert found[0].path == tmp_path / "1" / "bin" / "python3"


def test_this_interpreter_is_one_of_the_matrix() -> None:
    """The tests run on a supported version."""
    assert sys.version_info >= (3, 11)
    folder = Path(sys.base_prefix) / "bin"
    assert f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}" in {
        one.name for one in interpreters([str(folder)])
    }
