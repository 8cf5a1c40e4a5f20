"""The REST API keeps to its OpenAPI document, as schemathesis sees it; `make fuzz` takes longer."""

from pathlib import Path

from tests.fuzz.api import failures


def test_nothing_is_found(tmp_path: Path) -> None:
    """By any of its checks, with valid and invalid requests, on records that exist and on none."""
    assert failures(tmp_path, seed=1, max_examples=1, is_brief=True) == []
