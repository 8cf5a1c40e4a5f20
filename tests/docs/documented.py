"""The commands in the docs: those of the code blocks, to be run, and those in the text, to be read."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "providers").glob("*.md")),
]
# Other words at the beginning of a line, such as `field` in a script, are no commands to check.
PROGRAMS = frozenset(
    [
        "cloudflared",
        "curl",
        "docker",
        "gh",
        "git",
        "glab",
        "helm",
        "kubectl",
        "make",
        "openssl",
        "pg_dump",
        "pg_restore",
        "promtool",
        "pushgate",
        "python",
        "rabbitmqctl",
        "rabbitmq-plugins",
        "sqlite3",
        "ssh",
        "sudo",
    ]
)
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)
# Of code, data and output; other blocks contain commands.
_NO_SHELL = frozenset(["caddy", "json", "js", "nginx", "python", "text", "toml", "ts", "yaml"])


@dataclass(frozen=True, slots=True)
class Documented:
    """A command: the words after its program, its variables, and the file that it reads."""

    text: str
    program: str
    words: tuple[str, ...]
    variables: dict[str, str]
    source: str | None = None

    def __str__(self) -> str:
        """Return the program and its words, by which tables name the command."""
        return shlex.join([self.program, *self.words]).replace("'", "")


def blocks(page: str) -> Iterator[list[str]]:
    """Yield the lines of each code block, indented or fenced, that may contain commands."""
    block: list[str] = []
    fence: str | None = None
    is_open = True
    for line in [*page.splitlines(), ""]:
        marker = re.match(r"\s*```(\w*)", line)
        if marker:
            fence, is_open = (marker[1], False) if fence is None else (None, True)
        elif fence is not None or (line.startswith("    ") and (is_open or block)):
            if fence not in _NO_SHELL:
                block.append(line.strip())
            continue
        elif fence is None:
            is_open = not line.strip()
        if block:
            yield block
            block = []


def commands(page: str) -> list[Documented]:
    """Return the commands of a page's code blocks, in order."""
    return [command for block in blocks(page) for text in _joined(block) for command in _parsed(text)]


def mentioned(page: str) -> list[list[str]]:
    """Return the words of each command that the text, and not a block, names in back quotes."""
    found = (part.split() for part in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page))
    return [words for words in found if words and words[0] in PROGRAMS and len(words) > 1]


def _joined(block: list[str]) -> Iterator[str]:
    """Yield whole commands: a line that ends with a backslash, or within quotes, continues on the next."""
    text = ""
    for line in block:
        text = f"{text}{line}\n"
        if text.endswith("\\\n"):
            text = f"{text[:-2]} "
            continue
        first = re.sub(r"^([A-Z][A-Z0-9_]*=\S* )*", "", text).split(" ", 1)[0].strip()
        if first not in PROGRAMS:
            text = ""
            continue
        try:
            _words(text)
        except ValueError:  # a quotation that is still open
            continue
        yield text.strip()
        text = ""
    assert not text, f"a command that does not end: {text}"


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _parsed(text: str) -> Iterator[Documented]:
    """Yield the commands of a line: those of a pipe, or one after the other."""
    words = [*_words(text), ";"]
    part: list[str] = []
    for word in words:
        if word not in {"|", "&&", ";"}:
            part.append(word)
            continue
        command = _command(text, part)
        if command.program in PROGRAMS:
            yield command
        part = []


def _command(text: str, words: list[str]) -> Documented:
    variables: dict[str, str] = {}
    while words and (assignment := _ASSIGNMENT.fullmatch(words[0])):
        variables[assignment[1]] = assignment[2]
        words = words[1:]
    source = None
    while len(words) > 1 and words[-2] in {"<", ">", ">>"}:
        source = words[-1] if words[-2] == "<" else source
        words = words[:-2]
    program, *rest = words or [""]
    return Documented(text, program, tuple(rest), variables, source)
