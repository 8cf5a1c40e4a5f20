"""Links between the pages lead somewhere."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.documented import PAGES, ROOT

OTHERS = [
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    ROOT / "helm" / "README.md",
]


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Of those within the repository."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_ours = not re.match(r"[a-z]+:", link)
        if is_ours and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    """So that each page is found, whatever brings a reader."""
    index = ROOT / "docs" / "README.md"
    links = set(re.findall(r"\]\(([^)#]+)\)", index.read_text(encoding="utf-8")))
    assert {page.name for page in index.parent.glob("*.md") if page != index} <= links
