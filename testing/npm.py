"""npm packages for tests: installed into pytest's cache once, never committed."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def installed(cache: pytest.Cache, *packages: str) -> Path:
    """Return the folder node_modules with these packages, such as typescript@5.9.3, and what they need."""
    parent = cache.mkdir("npm")
    folder = parent / "+".join(packages).replace("/", "-")
    if not folder.exists():
        missing = [program for program in ("node", "npm") if shutil.which(program) is None]
        if missing:
            stop(f"{' and '.join(missing)} not found: install Node.js for the tests with npm packages")
        part = Path(tempfile.mkdtemp(prefix="part-", dir=parent))
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error")
        command = ["npm", "install", *quiet, "--prefix", str(part), *packages]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if run.returncode != 0:
            shutil.rmtree(part)
            stop(f"npm could not install {' '.join(packages)}: {(run.stderr or run.stdout).strip()[-300:]}")
        # Another process may have installed the same at the same time.
        with suppress(OSError):
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder / "node_modules"


def run_node(script: str, *arguments: str, stdin: object = None) -> Any:
    """Run an ECMAScript module with JSON on its standard input; return the JSON that it prints."""
    run = subprocess.run(
        ["node", "--input-type=module", "--eval", script, *arguments],
        input=json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def stop(reason: str) -> None:
    """Skip the test on a developer's machine; in CI, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
