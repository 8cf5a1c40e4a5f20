"""Twenty seconds of fuzzing, and every seed; `make fuzz` runs for ten minutes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS as NAMES
from tests.fuzz.targets import TARGETS

_SECONDS = 20 / len(TARGETS)


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
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_few_seconds(name: str, tmp_path: Path) -> None:
    """With any bytes: only our own exceptions, no hang, no gigabytes."""
    options = ["--seconds", str(_SECONDS), "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "tests.fuzz", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list((tmp_path / name).glob("found-*")) == []
