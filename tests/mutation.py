"""Mutation testing of one module: whether a test fails when the code is changed.

    python -m tests.mutation gateway/intake/body.py [TESTS ...] [--sample N] [--jobs N]

cosmic-ray makes the mutants. Each one is written into a copy of the checkout, where the tests of the module's
room run until the first of them fails. Survivors are printed as they are found; those that
`equivalent_mutants.toml` lists, because they change nothing that can be observed, are not counted.
"""

import argparse
import ast
import contextlib
import difflib
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator, operator_names
from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).parents[1]
COPIES = ROOT / "build" / "mutation"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
OURS = {"bench", "demo", "gateway", "providers", "tests"}
# Mutants that any test would notice (such as `+` for `^`): they would only flatter the result.
EASY = re.compile(
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Div|Div_Mul|Mod_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|core/ReplaceComparisonOperator_(?!Is).*_Is(Not)?$"
)
# A mutant that waits for ever is found by this; a test that waits in vain gives up before.
GIVE_UP_AFTER = 3.0
WAIT_SECONDS = 15
# Loading the libraries takes seconds, so one process has loaded them, and each run is a copy of that process.
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(
    [
        "aio_pika",
        "alembic",
        "cryptography",
        "psycopg",
        "pytest",
        "sqlalchemy.ext.asyncio",
        "starlette.applications",
        "uvicorn",
        "valohai_yaml",
    ]
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed module: its whole text, and the lines that differ from the original."""

    code: str
    line: int
    before: str
    after: str


def main() -> int:
    """Run the mutants of a module; return 1 where one that is not equivalent survived."""
    options = _options()
    console = Console()
    source = (ROOT / options.module).read_text(encoding="utf-8")
    tests = options.tests or tests_of(options.module)
    equivalent = _equivalent(options.module)
    mutants = [one for one in mutants_of(source) if (one.before, one.after) not in equivalent]
    if options.sample and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)  # noqa: S311 - a sample, no secret
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(options.jobs):
        copies.put(_copy(COPIES / str(number)))

    started = time.monotonic()
    with _borrowed(copies) as folder:
        if not passes(folder, tests, timeout=None):
            console.print("the tests fail without a mutant: repair them first")
            return 2
    timeout = GIVE_UP_AFTER * (time.monotonic() - started) * options.jobs + 2 * WAIT_SECONDS

    def survives(mutant: Mutant) -> bool:
        with _borrowed(copies) as folder:
            path = folder / options.module
            path.write_text(mutant.code, encoding="utf-8")
            try:
                return passes(folder, tests, timeout=timeout)
            finally:
                path.write_text(source, encoding="utf-8")

    survivors = 0
    with Progress(console=console) as progress, ThreadPoolExecutor(options.jobs) as pool:
        task = progress.add_task(options.module, total=len(mutants))
        running = {pool.submit(survives, mutant): mutant for mutant in mutants}
        for done in as_completed(running):
            progress.advance(task)
            if done.result():
                mutant = running[done]
                survivors += 1
                console.print(f"survived: {options.module}:{mutant.line}", style="red")
                console.print(f"  - {mutant.before}\n  + {mutant.after}", highlight=False, markup=False)
    killed = len(mutants) - survivors
    rate = 100 * killed / len(mutants) if mutants else 100.0
    console.print(
        f"{options.module}: {killed} of {len(mutants)} mutants killed ({rate:.0f} %),"
        f" {len(equivalent)} listed as equivalent, {time.monotonic() - started:.0f} s"
    )
    return 1 if survivors else 0


def mutants_of(source: str) -> Iterator[Mutant]:
    """Make every mutant of a module that behaves in another way than the others."""
    seen = {_behaviour(source)}
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments() or EASY.match(name):
            continue
        for occurrence in count():
            code = MutationVisitor.mutate_code(source, operator_class(), occurrence)
            if code is None:
                break
            behaviour = _behaviour(code)
            if behaviour is not None and behaviour not in seen:
                seen.add(behaviour)
                yield Mutant(code, *_changed_lines(source, code))


def tests_of(module: str) -> list[str]:
    """Return the tests of a module's room; those that bear the module's name come first."""
    path = Path(module)
    room = "tests" / path.parent.relative_to(path.parts[0])
    named = [folder / f"test_{path.stem}.py" for folder in {room, Path("tests")}]
    found = [str(one) for one in named if (ROOT / one).exists()]
    return found if room == Path("tests") else [*found, str(room)]


def passes(folder: Path, tests: list[str], *, timeout: float | None) -> bool:
    """Run tests in a copy of the checkout; a run that takes longer than `timeout` seconds has failed."""
    process = _LOADED.Process(target=_run_tests, args=(folder, tests))
    process.start()
    process.join(timeout)
    # Also what the tests have started, and a mutant did not end.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == 0


def _run_tests(folder: Path, tests: list[str]) -> None:
    """Run tests in this process, with the code of the copy; exit with pytest's status."""
    os.setsid()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["PUSHGATE_TESTS_WAIT_SECONDS"] = str(WAIT_SECONDS)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    options = ["-x", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    # Plugins that were loaded before pytest: it says so, and a warning is an error here.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main([*options, *tests]))


def _behaviour(code: str) -> str | None:
    """Return the syntax tree without annotations and the marks of how parameters may be given.

    None is for a mutant that is no Python, as where the `*` of a signature was taken for an operator.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        match node:
            case ast.arguments():
                node.kwonlyargs, node.posonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], []
                node.args = []
            case ast.arg():
                node.annotation = None
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                node.returns = None
            case ast.AnnAssign():
                node.annotation = ast.Constant(None)
    return ast.dump(tree)


def _changed_lines(source: str, code: str) -> tuple[int, str, str]:
    """Return the number of the first changed line, and the changed lines before and after, stripped."""
    before, after = source.splitlines(), code.splitlines()
    for kind, a, b, c, d in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        if kind != "equal":
            return a + 1, " ".join(map(str.strip, before[a:b])), " ".join(map(str.strip, after[c:d]))
    raise ValueError("the mutant is the original")


def _equivalent(module: str) -> set[tuple[str, str]]:
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(one["before"], one["after"]) for one in listed.get(module, [])}


def _copy(folder: Path) -> Path:
    """Copy the files of the checkout that git knows, as they are now."""
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@contextmanager
def _borrowed(copies: queue.Queue[Path]) -> Iterator[Path]:
    folder = copies.get()
    try:
        yield folder
    finally:
        copies.put(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutation testing of one module.")
    parser.add_argument("module", help="such as gateway/intake/body.py")
    parser.add_argument(
        "tests", nargs="*", help="what to run; the tests of the module's room where none are named"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="only N mutants, chosen by chance")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=3, metavar="N", help="how many run at once")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
