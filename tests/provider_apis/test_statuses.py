"""What the modules for statuses have in common, and what docs/statuses.md says of them."""

import re
from pathlib import Path
from typing import get_args

import pytest

from gateway.provider_apis import (
    azure_devops_statuses,
    bitbucket_server_statuses,
    bitbucket_statuses,
    gitea_statuses,
    github_checks,
    github_statuses,
    gitlab_statuses,
)
from gateway.provider_apis.statuses import StatusApi, StatusState, shortened

DOCS = Path(__file__).parents[2] / "docs" / "statuses.md"
# In the order of the table.
APIS: list[StatusApi] = [
    github_statuses,
    github_checks,
    gitlab_statuses,
    bitbucket_statuses,
    bitbucket_server_statuses,
    azure_devops_statuses,
    gitea_statuses,
]


def test_the_docs_name_the_word_of_each_provider_for_each_state() -> None:
    """In the order in which the code has the states."""
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    shown = {state: words.split(" | ") for state, words in rows if state in get_args(StatusState)}
    assert shown == {state: [api.STATES[state] for api in APIS] for state in get_args(StatusState)}


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [("as it is", 8, "as it is"), ("a line\n and\tmore", 40, "a line and more"), ("too long", 6, "too l…")],
)
def test_a_text_is_shortened_to_one_line(text: str, most: int, shown: str) -> None:
    """With an ellipsis where something is missing."""
    assert shortened(text, most) == shown
