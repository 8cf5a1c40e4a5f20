"""The size of files and functions, and the loose modules of the gateway."""

import ast
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parent.parent
FILES = [path for package in ("gateway", "providers") for path in sorted((ROOT / package).rglob("*.py"))]


def test_no_file_is_long() -> None:
    """A file has at most 450 lines: a longer one has two subjects."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES
    }
    assert {path: lines for path, lines in lengths.items() if lines > 450} == {}


def test_nearly_all_functions_are_short() -> None:
    """The 95th percentile of the functions' lengths, without decorators, is under 30 lines."""
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert quantiles(lengths, n=20)[-1] < 30


def test_few_modules_of_the_gateway_are_loose() -> None:
    """A new module belongs in a package; at most nine are outside."""
    loose = sorted(path.name for path in (ROOT / "gateway").glob("*.py") if path.name != "__init__.py")
    assert len(loose) <= 9, loose
