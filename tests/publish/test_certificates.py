"""The requirements of Python 3.13 and newer for a broker's certificate, checked on every Python."""

import ssl
import subprocess
from pathlib import Path

from testing.certificate import make_certificate

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"


def verified(authority: Path, certificate: Path) -> str:
    """Return the result of a strict check."""
    check: list[str | Path] = ["openssl", "verify", "-x509_strict", "-CAfile", authority, certificate]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_tests_own_certificate_is_strictly_valid(tmp_path: Path) -> None:
    """The tests' broker presents it."""
    made = make_certificate(tmp_path)
    assert verified(made.authority, made.certificate) == f"{made.certificate}: OK\n"


def test_the_commands_of_the_page_make_a_pair_that_is_strictly_valid(tmp_path: Path) -> None:
    """The commands run as documented, in order; and Python loads their files."""
    section = PAGE.read_text().partition("## A certificate authority of your own")[2].partition("\n## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    openssl ")]
    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "broker.crt: OK\n"
    ssl.create_default_context(cafile=tmp_path / "ca.crt").load_cert_chain(
        tmp_path / "broker.crt", tmp_path / "broker.key"
    )
