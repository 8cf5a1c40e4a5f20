"""`.vhignore` follows git: `git check-ignore` is the reference."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.packages.vhignore import Rules
from testing.git_host import ENVIRONMENT

# Few letters, so that patterns and paths match; every character that is special to git.
_WORDS = (
    "a",
    "b",
    "ab",
    "**",
    "*",
    "?",
    "[ab]",
    "[!a]",
    "[^b]",
    "[a-c]",
    "[[:alpha:]]",
    "[]a]",
    "[a",
    "[!]",
    "/",
    "/",
    "//",
    "\\",
    "\\*",
    "\\ ",
    "!",
    "#",
    " ",
    "\\!",
    "\\#",
    ".",
    "**/",
    "/**",
    "\\/",
    "-",
    "[a/b]",
    "ü",
    "\t",
    "[[:x:]]",
    "[[:a]",
    "[\\]]",
    "[b-a]",
    "[a-]",
    "]",
    "\r",
    "[--0]",
    "[a-\\c]",
)
CLASSES = (
    *("alnum", "alpha", "blank", "cntrl", "digit", "graph"),
    *("lower", "print", "punct", "space", "upper", "xdigit"),
)
_LINES = st.lists(st.sampled_from(_WORDS), max_size=6).map("".join)
_NAMES = st.text(alphabet="abc!#* [-]\\ü.", min_size=1, max_size=4).filter(
    lambda name: name not in {".", ".."}
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def referee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository in which to run git."""
    folder = tmp_path_factory.mktemp("referee")
    subprocess.run(["git", "init", "--quiet", folder], env=ENVIRONMENT, check=True)
    return folder


def ignored_by_git(folder: Path, text: bytes, paths: Sequence[str]) -> set[str]:
    """Return git's answer; a folder on the disk is a folder, a missing path a file."""
    (folder / ".git" / "info" / "exclude").write_bytes(text)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=folder,
        env=ENVIRONMENT,
        input="\0".join(paths).encode() + b"\0",
        capture_output=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return {path for path in done.stdout.decode().split("\0") if path}


def ignored_by_us(text: bytes, paths: Sequence[str], *, are_folders: bool) -> set[str]:
    """Return the answer of our rules."""
    rules = Rules(text)
    return {path for path in paths if rules.ignores(path.encode(), is_folder=are_folders)}


@settings(max_examples=int(os.environ.get("EXAMPLES", "300")), deadline=None)
@given(lines=st.lists(_LINES, max_size=4), paths=st.lists(_PATHS, min_size=1, max_size=12))
@example(lines=["foo/bar.txt"], paths=["foo/bar.txt", "x/foo/bar.txt"])
@example(lines=["[!a]", "\\#x", "\\*.c"], paths=["a", "b", "#x", "*.c", "b.c"])
@example(lines=["**/x"], paths=["x", "yx", "a/x", "a/yx"])
@example(lines=["a**b", "c**/d"], paths=["a/b", "axb", "cd", "c/d", "cx/y/d", "x/cd"])
@example(lines=["*", "!*/", "!*.py"], paths=["a.py", "d/a.py", "d/a.txt"])
@example(lines=["d/", "!d/a"], paths=["d/a", "d"])
@example(lines=["x\\ ", "y ", "z\\\\ "], paths=["x ", "y", "z\\", "x"])
def test_rules_are_those_of_git(referee: Path, lines: list[str], paths: list[str]) -> None:
    """For any rules and any paths of files and folders."""
    text = "\n".join(lines).encode()
    assert ignored_by_us(text, paths, are_folders=False) == ignored_by_git(referee, text, paths)
    for path in paths:
        (referee / path).mkdir(parents=True, exist_ok=True)
    try:
        assert ignored_by_us(text, paths, are_folders=True) == ignored_by_git(referee, text, paths)
    finally:
        for path in paths:
            shutil.rmtree(referee / path.partition("/")[0], ignore_errors=True)


@pytest.mark.parametrize(
    ("line", "paths", "ignored"),
    [
        ("x[", ["x[", "x", "xa"], set()),
        ("d/x[", ["d/x[", "d/x"], set()),
        ("[", ["["], set()),
        ("\\[", ["[", "\\["], {"["}),
        ("x[a-", ["xa", "x-", "x[a-"], set()),
        ("x[[:alpha:]", ["xa", "x["], set()),
        ("d/\\#x", ["d/#x", "d/\\#x", "#x"], {"d/#x"}),
        ("\\#x", ["#x", "d/#x", "\\#x"], {"#x", "d/#x"}),
        ("#x", ["#x", "x"], set()),
        ("d/#x", ["d/#x", "#x"], {"d/#x"}),
        ("d/\\!x", ["d/!x", "d/x"], {"d/!x"}),
        ("[[:alpha:]]", ["a", "Z", "1", "_", "ab", "d/a", ":", "ü"], {"a", "Z", "d/a"}),
        ("[![:alpha:]]", ["a", "1", "d/_", "d"], {"1", "d/_"}),
        ("x/[[:digit:][:upper:]_]", ["x/1", "x/A", "x/_", "x/a", "1"], {"x/1", "x/A", "x/_"}),
        ("[[:none:]]", ["n", ":"], set()),
    ],
)
def test_a_line_means_what_git_makes_of_it(
    referee: Path, line: str, paths: list[str], ignored: set[str]
) -> None:
    """Brackets without an end, escaped characters behind a slash, and named classes."""
    assert ignored_by_git(referee, line.encode(), paths) == ignored
    assert ignored_by_us(line.encode(), paths, are_folders=False) == ignored


@pytest.mark.parametrize("name", CLASSES)
def test_a_named_class_holds_what_git_says(referee: Path, name: str) -> None:
    """Each ASCII character that a file name can have, and a byte beyond."""
    # In a folder: a colon alone would be more than a name to `git check-ignore`.
    paths = [f"d/{chr(code)}" for code in range(1, 128) if chr(code) not in "/."] + ["d/é"]
    for text in (f"[[:{name}:]]", f"[^[:{name}:]]"):
        given = ignored_by_us(text.encode(), paths, are_folders=False)
        assert given == ignored_by_git(referee, text.encode(), paths)
        assert given


def test_no_pattern_takes_long() -> None:
    """Patterns on which a naive matcher would backtrack for hours; a busy machine does not matter."""
    rules = Rules(b"*a" * 60 + b"b\n" + b"**/a*/" * 60 + b"b\n" + b"x/" + b"*a" * 60 + b"b\n")
    started = time.process_time()
    assert not rules.ignores(b"a" * 255)
    assert not rules.ignores(b"x/" + b"a" * 255)
    assert not rules.ignores(b"a/" * 500 + b"a")
    assert time.process_time() - started < 5
