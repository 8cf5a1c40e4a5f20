"""The page about symptoms quotes what Pushgate shows: each quotation is a text of the code."""

import ast
import re
from functools import cache

from tests.docs.documented import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# A value that varies, in the page and in the texts of the code.
VARIES = "…"


@cache
def texts() -> str:
    """Return all texts of the code, one a line, with a sign for each value that varies."""
    files = [path for package in ("gateway", "providers") for path in sorted((ROOT / package).rglob("*.py"))]
    trees = (ast.parse(path.read_bytes()) for path in files)
    found = (one for tree in trees for node in ast.walk(tree) if (one := shown(node)) is not None)
    return "\n".join(" ".join(one.split()) for one in found)


def shown(node: ast.AST) -> str | None:
    """Return the text of a node, with a sign for each value in it; None if it is no text."""
    if isinstance(node, ast.Constant):
        return re.sub(r"\{\w*\}", VARIES, node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(shown(part) or VARIES for part in node.values)
    return None


def test_each_quotation_is_a_text_of_the_code() -> None:
    """If a sentence changes in the code, the page has to change with it."""
    quoted = re.findall(r"“([^”]+)”", " ".join(PAGE.read_text(encoding="utf-8").split()))
    assert len(quoted) > 40
    assert [one for one in quoted if one.strip(f" {VARIES}") not in texts()] == []


def test_what_the_pages_name_in_the_dashboard_is_there() -> None:
    """Buttons and entries of its menu, in bold and, for a way to a page, behind an arrow."""
    templates = (ROOT / "gateway" / "dashboard" / "templates").glob("*.html")
    shown = "\n".join(path.read_text(encoding="utf-8") for path in templates)
    named = [
        part
        for page in ("quickstart", "connect")
        for bold in re.findall(
            r"\*\*(Connections → [^*]+|Try on past pushes|Replay)\*\*",
            (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"),
        )
        for part in bold.split(" → ")
    ]
    assert len(named) > 5
    assert [one for one in named if one not in shown] == []
