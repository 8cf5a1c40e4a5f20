"""Twenty seconds of fuzzing, and every seed; `make fuzz` runs for ten minutes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS as NAMES
from tests.fuzz.targets import TARGETS

_SECONDS = 20


def test_every_target_is_named() -> None:
    """The command line lists them without importing the fuzzed code."""
    assert set(NAMES) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_is_a_finding(name: str) -> None:
    """Also on machines without the fuzzer."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or machine"
)
def test_nothing_is_found_in_twenty_seconds(tmp_path: Path) -> None:
    """With any bytes: only our own exceptions, no hang, no gigabytes."""
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(_SECONDS), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = [str(file) for file in tmp_path.glob("*/found-*")]
    assert (done.returncode, found) == (0, []), done.stderr[-20_000:]
    assert {folder.name for folder in tmp_path.iterdir()} == set(TARGETS)
