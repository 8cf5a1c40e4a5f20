"""The references in docs/ that are made from the code."""

import re
from pathlib import Path

import pytest

from gateway.settings import Settings
from testing.chart_values import values_page
from testing.documents import CHART_README, FOLDER, references

GATEWAY = Path(__file__).parents[2] / "gateway"


def test_the_references_are_those_of_the_code() -> None:
    """If this fails, run `make documents`, and read the difference."""
    made = references()
    assert {page: (FOLDER / page).read_text(encoding="utf-8") for page in made} == made
    assert CHART_README.read_text(encoding="utf-8") == values_page()


@pytest.mark.parametrize(("role", "other"), [("web", "worker"), ("worker", "web")])
def test_a_setting_of_one_role_is_read_by_no_other(role: str, other: str) -> None:
    """Neither by the composition of the other role nor by the parts that both share."""
    texts = [(GATEWAY / "roles" / f"{name}.py").read_text(encoding="utf-8") for name in (other, "parts")]
    read = set(re.findall(r"settings\.(\w+)", "\n".join(texts)))
    fields = Settings.model_json_schema()["properties"]
    assert {name for name, field in fields.items() if field.get("role") == role} & read == set()
