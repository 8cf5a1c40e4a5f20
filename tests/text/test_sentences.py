"""Tests the sentences that the dashboard and the command line share."""

import pytest

from gateway.text.sentences import PROVIDER_NAMES, begin_sentence
from providers import PROVIDERS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("the branch was deleted: nothing runs", "The branch was deleted: nothing runs"),
        ("ping", "Ping"),
        ("http://127.0.0.1/acme.git cannot be read", "http://127.0.0.1/acme.git cannot be read"),
        ("valohai.yaml, line 4: it is no list", "valohai.yaml, line 4: it is no list"),
        ("git@example.org is not known", "git@example.org is not known"),
        ("re-run requested", "Re-run requested"),
        ("1 execution request", "1 execution request"),
        ("", ""),
    ],
)
def test_a_sentence_begins_with_a_capital_unless_with_a_name(text: str, sentence: str) -> None:
    """A URL or the name of a file would be another one with a capital letter."""
    assert begin_sentence(text) == sentence


def test_every_provider_has_a_name() -> None:
    """Otherwise a page would show its id."""
    assert set(PROVIDER_NAMES) == set(PROVIDERS)
