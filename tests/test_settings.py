"""The settings, as the page for operators lists them."""

import re
from pathlib import Path

from gateway.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "operate.md"


def rows() -> dict[str, str]:
    """Return the defaults in the page's table, by the name of the setting."""
    section = PAGE.read_text().partition("## Settings")[2].partition("\n## ")[0]
    defaults: dict[str, str] = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            names, values = line.split(" | ")[:2]
            found = re.findall(r"`([A-Z_]+)`", names)
            listed = re.split("[,;] ", values) if len(found) > 1 else [values]
            # A row with several names and one default gives it once: none, for all of them.
            defaults |= dict(zip(found, listed + listed[-1:] * (len(found) - len(listed)), strict=True))
    return defaults


def test_the_page_lists_every_setting() -> None:
    """And no other."""
    assert set(rows()) == {name.upper() for name in Settings.model_fields}


def test_the_page_gives_the_defaults() -> None:
    """Of every setting whose default is a number, a text or a switch."""
    listed = rows()
    given = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, (bool, int, float, str))
    }
    assert {name: listed[name.upper()].strip("`").lower() for name in given} == {
        name: str(default).lower() for name, default in given.items()
    }
