"""Start the programs of examples/, as their users would."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from testing.npm import installed

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = "runner.mjs"
RECIPES = ["runner_aio_pika", "runner_celery", "runner_faststream", "runner_kombu", "runner_pika", NODE]
_AMQPLIB = "amqplib@2.3.1"


def prepare(recipe: str, folder: Path, cache: pytest.Cache) -> None:
    """Put what a recipe needs into the folder in which it is to run."""
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(sys.executable)
    if recipe == NODE:
        (folder / "node_modules").symlink_to(installed(cache, _AMQPLIB))
        for name in (NODE, "execution.py", "step.py"):
            shutil.copy(EXAMPLES / name, folder)


def command(recipe: str, folder: Path) -> list[str | Path]:
    """Return the command that starts a recipe."""
    return ["node", folder / NODE] if recipe == NODE else [sys.executable, EXAMPLES / f"{recipe}.py"]


def environment(queue: str, folder: Path) -> dict[str, str]:
    """Return the environment of a recipe: a step runs `python`, which a fresh Debian does not have."""
    return {**os.environ, "QUEUE": queue, "EXCHANGE": queue, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def indented(lines: list[str]) -> list[str]:
    """Return the lines of an output as a summary has them."""
    return [f"    {line}" for line in lines]
