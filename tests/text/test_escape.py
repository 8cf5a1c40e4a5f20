"""Bytes that are no text: escaped where people, JSON or a database see them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text.escape import decode, has_surrogates, printable, storable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("models/größe 🚀.bin".encode(), "models/größe 🚀.bin"),
        ("größe.bin".encode("latin-1"), r"gr\xf6\xdfe.bin"),
        (b"a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("line\u2028separator\u0085".encode(), r"line\u2028separator\x85"),
    ],
)
def test_paths_are_shown_on_one_line(raw: bytes, shown: str) -> None:
    """Text stays as it is; a byte that is no UTF-8 becomes two digits."""
    assert printable(decode(raw)) == shown


@given(st.binary())
def test_whatever_git_has_can_be_shown_and_kept(raw: bytes) -> None:
    """By every encoder, in every database, and one line stays one line."""
    text = decode(raw)
    for made in (printable(text), storable(text)):
        made.encode()
        assert not has_surrogates(made)
        assert "\0" not in made
    assert len(printable(text).splitlines()) <= 1


def test_values_of_json_are_kept_as_they_are_but_for_text() -> None:
    """At any depth, keys included."""
    value = {"a\udcff": [1, None, True, "b\ud800", ("c\0",)], "d": {"e": 1.5}}
    kept = {r"a\xff": [1, None, True, r"b\ud800", [r"c\x00"]], "d": {"e": 1.5}}
    assert storable(value) == kept
    json.dumps(storable(value), ensure_ascii=False).encode()
