"""The list of equivalent mutants stays in step with the code."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_each_equivalent_mutant_changes_a_line_that_is_there() -> None:
    """An entry whose line has changed hides nothing any more, and must be removed or updated."""
    listed = tomllib.loads((ROOT / "tests" / "equivalent_mutants.toml").read_text(encoding="utf-8"))
    assert listed
    for module, mutants in listed.items():
        code = " ".join(line.strip() for line in (ROOT / module).read_text(encoding="utf-8").splitlines())
        gone = [one["before"] for one in mutants if one["before"] not in code]
        assert not gone, f"{module} has no such lines any more"
