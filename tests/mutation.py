"""Mutation testing of one module: whether a test fails when the code is changed.

    python -m tests.mutation gateway/intake/body.py [TESTS ...] [--sample N] [--jobs N]

cosmic-ray makes the mutants. Each one is written into a copy of the checkout, where the tests of the module's
room run until the first of them fails. Survivors are printed as they are found; those that
`equivalent_mutants.toml` lists, because they change nothing that can be observed, are not counted.

Loading the code and collecting the tests takes longer than most runs. One process does both once, and each
run is a fork of it in which the changed function gets its new code. Mutants of what runs while a module is
loaded (constants, defaults, decorators) need a process that loads the module again.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import inspect
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
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator, operator_names
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from cosmic_ray.operators.operator import Operator

ROOT = Path(__file__).parents[1]
COPIES = ROOT / "build" / "mutation"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
OURS = {"bench", "demo", "gateway", "providers", "testing", "tests"}
# Mutants that any test would notice (such as `+` for `^`): they would only flatter the result.
EASY = re.compile(
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Div|Div_Mul|Mod_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|core/ReplaceComparisonOperator_(?!Is).*_Is(Not)?$"
)
# This finds a mutant that waits for ever; a test's own time-out is shorter.
GIVE_UP_AFTER = 3.0
WAIT_SECONDS = float(os.environ.get("PUSHGATE_TESTS_WAIT_SECONDS", "15"))
# Importing the libraries takes seconds, so one process imports them, and each run is a fork of it.
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
    """A changed module: its full text, and the lines that differ from the original."""

    code: str
    line: int
    before: str
    after: str


def main() -> int:
    """Run the mutants of a module; return 1 if one that is not equivalent survived."""
    options = _options()
    console = Console()
    source = (ROOT / options.module).read_text(encoding="utf-8")
    tests = options.tests or tests_of(options.module)
    equivalent = _equivalent(options.module)
    found = mutants_of(source, seed=options.seed if options.sample else None)
    counted = (one for one in found if (one.before, one.after) not in equivalent)
    mutants = list(islice(counted, options.sample or None))

    started = time.monotonic()
    loaded: queue.Queue[Loaded] = queue.Queue()
    for number in range(min(options.jobs, len(mutants))):
        loaded.put(Loaded(_copy(COPIES / str(number)), options.module, tests))
    tried = Tried()
    if mutants:
        with _borrowed(loaded) as one:
            first = one.run(source, tried, timeout=None)
        if not first.passed:
            console.print(f"the tests fail without a mutant: repair them first ({first.failed})")
            return 2
        tried.seconds.update(first.seconds)
    timeout = GIVE_UP_AFTER * (time.monotonic() - started) * options.jobs + 2 * WAIT_SECONDS

    def survives(mutant: Mutant) -> bool:
        with _borrowed(loaded) as one:
            result = one.run(mutant.code, tried, timeout=timeout)
        tried.kills[result.failed] += 1
        return result.passed

    survivors = 0
    with Progress(console=console) as progress, ThreadPoolExecutor(options.jobs) as pool:
        task = progress.add_task(options.module, total=len(mutants))
        running = {pool.submit(survives, mutant): mutant for mutant in mutants}
        for number, done in enumerate(as_completed(running), start=1):
            progress.advance(task)
            if not console.is_terminal and number % 10 == 0:
                console.print(f"{number} of {len(mutants)} run, {survivors} survived")
            if done.result():
                mutant = running[done]
                survivors += 1
                console.print(
                    f"survived: {options.module}:{mutant.line} ({number} of {len(mutants)} run)", style="red"
                )
                console.print(f"  - {mutant.before}\n  + {mutant.after}", highlight=False, markup=False)
    while not loaded.empty():
        loaded.get().end()
    killed = len(mutants) - survivors
    rate = 100 * killed / len(mutants) if mutants else 100.0
    console.print(
        f"{options.module}: {killed} of {len(mutants)} mutants killed ({rate:.0f} %),"
        f" {len(equivalent)} listed as equivalent, {time.monotonic() - started:.0f} s"
    )
    return 1 if survivors else 0


def mutants_of(source: str, *, seed: int | None = None) -> Iterator[Mutant]:
    """Return every mutant of a module with a distinct behaviour, shuffled by the seed."""
    tree, seen = get_ast(source), {_behaviour(source)}
    places: list[tuple[Operator, int]] = []
    for name in operator_names():
        operator_class = get_operator(name)
        if not operator_class.arguments() and not EASY.match(name):
            operator = operator_class()
            found = (operator.mutation_positions(node) for node in ast_nodes(tree))
            places += [
                (operator, number) for number in range(sum(len(list(positions)) for positions in found))
            ]
    if seed is not None:
        # A listed or removed mutant does not change the rest of a sample.
        random.Random(seed).shuffle(places)  # noqa: S311 - a sample, no secret
    for operator, number in places:
        try:
            code = MutationVisitor.mutate_code(source, operator, number)
        except AttributeError:
            # cosmic-ray's own, over the `*` in `except (*KNOWN, TimeoutError)`.
            continue
        behaviour = None if code is None else _behaviour(code)
        if code is not None and behaviour is not None and behaviour not in seen:
            seen.add(behaviour)
            yield Mutant(code, *_changed_lines(source, code))


def tests_of(module: str) -> list[str]:
    """Return the tests of a module's room; those with the module's name come first."""
    path = Path(module)
    room = "tests" / path.parent.relative_to(path.parts[0])
    named = [folder / f"test_{path.stem}.py" for folder in {room, Path("tests")}]
    found = [str(one) for one in named if (ROOT / one).exists()]
    return found if room == Path("tests") else [*found, str(room)]


class Result(NamedTuple):
    """The result of a test run: the seconds of each test, and the one that failed."""

    passed: bool
    seconds: dict[str, float]
    failed: str | None


@dataclass(frozen=True, slots=True)
class Tried:
    """The results of earlier runs: how long each test takes, and how many mutants it has found."""

    seconds: dict[str, float] = field(default_factory=dict)
    kills: Counter[str | None] = field(default_factory=Counter)

    def order(self) -> dict[str, float]:
        """Return the order of the tests: first the quick ones, and those that find many mutants."""
        return {test: seconds / (1 + self.kills[test]) for test, seconds in self.seconds.items()}

    def limit(self) -> float:
        """Return the seconds after which a test counts as endless, and so as failed; 0 for no limit."""
        return GIVE_UP_AFTER * max(self.seconds.values()) + 2 * WAIT_SECONDS if self.seconds else 0


class Loaded:
    """A process that has loaded the code of a copy of the checkout and has collected the tests."""

    def __init__(self, folder: Path, module: str, tests: list[str]) -> None:
        """Start the process."""
        self._folder, self._module, self._tests = folder, module, tests
        self._source = (folder / module).read_text(encoding="utf-8")
        self._pipe, theirs = Pipe()
        self._process = _LOADED.Process(target=_serve, args=(folder, module, tests, theirs))
        self._process.start()
        theirs.close()

    def run(self, code: str, tried: Tried, *, timeout: float | None) -> Result:
        """Run the tests with this code of the module; a run of more than `timeout` seconds has failed."""
        path, plan = self._folder / self._module, (tried.order(), tried.limit())
        # Also for the processes that tests start.
        path.write_text(code, encoding="utf-8")
        try:
            self._pipe.send((code, plan, timeout))
            result: Result | None = self._pipe.recv()
            return result or self._run_afresh(plan, timeout)
        finally:
            path.write_text(self._source, encoding="utf-8")

    def _run_afresh(self, plan: tuple[dict[str, float], float], timeout: float | None) -> Result:
        """Run the tests in a process that loads the present code."""
        ours, theirs = Pipe()
        process = _LOADED.Process(target=_run_once, args=(self._folder, self._tests, plan, theirs))
        process.start()
        theirs.close()
        return _result(process.pid or 0, ours, timeout)

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()
        shutil.rmtree(_temporary(self._folder), ignore_errors=True)


def _result(process_id: int, pipe: Connection, timeout: float | None) -> Result:
    """Wait for the result of a run, and end its remaining processes."""
    result = None
    with pipe:
        if wait([pipe], timeout):
            with contextlib.suppress(EOFError):
                result = pipe.recv()
    # Also processes that the tests have started and a mutant did not end.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process_id, 0)
    return result or Result(passed=False, seconds={}, failed=None)


class Watching:
    """A plugin of pytest: runs tests in the given order, and records their results."""

    def __init__(self, order: dict[str, float], limit: float) -> None:
        """Run tests in this order, none of them for more seconds than the limit."""
        self.order, self.limit = order, limit
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests."""
        items.sort(key=lambda item: self.order.get(item.nodeid, 0))

    def pytest_runtest_logstart(self) -> None:
        """Have the process killed if the test never ends: a busy loop handles no signal in Python."""
        signal.setitimer(signal.ITIMER_REAL, self.limit)

    def pytest_sessionfinish(self) -> None:
        """Remove the limit."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record one phase of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed = report.nodeid


class Forking(Watching):
    """A plugin of pytest: once the tests are collected, runs them in a fork for each mutant."""

    def __init__(self, path: Path, pipe: Connection) -> None:
        """Take mutants of the module at `path` from this pipe, and answer there."""
        super().__init__({}, 0)
        self._pipe = pipe
        self._path = str(path)
        self._source = path.read_text(encoding="utf-8")
        self._called: set[str] = set()
        self.answer: Connection | None = None
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> None:
        """Record which functions of the module run while it, and the tests, are loaded."""
        if frame.f_code.co_filename == self._path:
            self._called.add(frame.f_code.co_qualname)

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Fork for each mutant; in the fork go on with the tests."""
        sys.settrace(None)
        while request := self._pipe.recv():
            code, plan, timeout = request
            change = self._change(code)
            if change is None:
                self._pipe.send(None)
                continue
            ours, theirs = Pipe()
            process_id = os.fork()
            if process_id == 0:
                os.setsid()
                for function, changed in change:
                    function.__code__ = changed
                (self.order, self.limit), self.answer = plan, theirs
                self.pytest_collection_modifyitems(session.items)
                return None
            theirs.close()
            self._pipe.send(_result(process_id, ours, timeout))
        return True

    def _change(self, code: str) -> list[tuple[FunctionType, CodeType]] | None:
        """Return the functions and their new code; `None` if that is not the whole change."""
        before, after = (
            compile(text, self._path, "exec", dont_inherit=True) for text in (self._source, code)
        )
        changed = _changed_functions(before, after)
        if changed is None or any(old.co_qualname in self._called for old, _ in changed):
            return None
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        change = []
        for old, new in changed:
            found = [
                one
                for one in functions
                if one.__code__.co_qualname == old.co_qualname and one.__code__ == old
            ]
            if not found:
                return None
            change += [(one, new) for one in found]
        return change


def _changed_functions(before: CodeType, after: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """Return the functions of a module or class whose code differs; `None` if something else differs too."""
    if before.replace(co_consts=()) != after.replace(co_consts=()):
        return None
    if len(before.co_consts) != len(after.co_consts):
        return None
    found: list[tuple[CodeType, CodeType]] = []
    for old, new in zip(before.co_consts, after.co_consts, strict=True):
        if not isinstance(old, CodeType) or not isinstance(new, CodeType):
            if repr(old) != repr(new):
                return None
        elif old == new:
            continue
        elif old.co_flags & inspect.CO_OPTIMIZED:
            found.append((old, new))
        else:
            inner = _changed_functions(old, new)
            if inner is None:
                return None
            found += inner
    return found


def _serve(folder: Path, module: str, tests: list[str], pipe: Connection) -> None:
    """Load and collect once, then run the tests for each requested mutant."""
    _prepare(folder)
    plugin = Forking(folder / module, pipe)
    status = _run_tests(folder, tests, plugin)
    # If the tests could not be collected, this is the answer for the first mutant.
    with contextlib.suppress(BrokenPipeError):
        (plugin.answer or pipe).send(Result(passed=status == 0, seconds=plugin.seconds, failed=plugin.failed))


def _run_once(folder: Path, tests: list[str], plan: tuple[dict[str, float], float], pipe: Connection) -> None:
    """Load, collect and run the tests once."""
    _prepare(folder)
    os.setsid()
    plugin = Watching(*plan)
    status = _run_tests(folder, tests, plugin)
    pipe.send(Result(passed=status == 0, seconds=plugin.seconds, failed=plugin.failed))


def _prepare(folder: Path) -> None:
    """Make this process load the code of the copy, without output."""
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


def _run_tests(folder: Path, tests: list[str], plugin: Watching) -> int:
    """Run tests in this process; return pytest's status."""
    options = ["-x", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    options.append(f"--basetemp={_temporary(folder)}")
    # For plugins loaded before pytest it warns, and a warning is an error here.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def _temporary(folder: Path) -> Path:
    """Return the folder for the tests' files: in memory, if there is such a file system."""
    memory = Path("/dev/shm")  # noqa: S108 - the name below is that of a folder of our own
    name = f"mutation-{os.getuid()}-{crc32(bytes(folder))}"
    return (memory if memory.is_dir() else folder.parent) / name


def _behaviour(code: str) -> str | None:
    """Return the syntax tree, normalized, without parts for readers and the type checker only.

    Return None for invalid Python, such as after a mutation of the `*` of a signature.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        match node:
            case ast.arguments():
                plain = [*node.posonlyargs, *node.args]
                required: list[ast.expr | None] = [None] * (len(plain) - len(node.defaults))
                node.kw_defaults = [*required, *node.defaults, *node.kw_defaults]
                node.kwonlyargs = [*plain, *node.kwonlyargs]
                node.posonlyargs, node.args, node.defaults = [], [], []
            case ast.arg():
                node.annotation = None
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                node.returns = None
            case ast.AnnAssign():
                node.annotation = ast.Constant(None)
            case ast.Call(func=ast.Name("dataclass")):
                # Frozen, slots, keyword-only: no code of ours depends on these.
                node.keywords = []
    return ast.dump(_Positive().visit(tree))


_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
}
_OPPOSITES |= {opposite: one for one, opposite in _OPPOSITES.items()}


class _Positive(ast.NodeTransformer):
    """Writes `not a == b` as `a != b`, and `not not a` as `a`."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """Remove a redundant `not`."""
        self.generic_visit(node)
        match node:
            case ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), inner)):
                return inner
            case ast.UnaryOp(ast.Not(), ast.Compare(left, [operator], [right])):
                return ast.Compare(left, [_OPPOSITES[type(operator)]()], [right])
        return node


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
    """Copy the checkout's files that git tracks, in their present state."""
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
def _borrowed(loaded: queue.Queue[Loaded]) -> Iterator[Loaded]:
    one = loaded.get()
    try:
        yield one
    finally:
        loaded.put(one)


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
