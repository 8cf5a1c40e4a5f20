"""Bytes that are not text are escaped for people, JSON and databases."""

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
    """Text is unchanged; a byte that is not UTF-8 becomes two hex digits."""
    assert printable(decode(raw)) == shown


@given(st.binary())
def test_any_bytes_can_be_shown_and_stored(raw: bytes) -> None:
    """Every encoder and database accepts the result, and one line stays one line."""
    text = decode(raw)
    for escaped in (printable(text), storable(text)):
        escaped.encode()
        assert not has_surrogates(escaped)
        assert "\0" not in escaped
    assert len(printable(text).splitlines()) <= 1


def test_in_json_only_text_is_changed() -> None:
    """At any depth, keys included."""
    value = {"a\udcff": [1, None, True, "b\ud800", ("c\0",)], "d": {"e": 1.5}}
    kept = {r"a\xff": [1, None, True, r"b\ud800", [r"c\x00"]], "d": {"e": 1.5}}
    assert storable(value) == kept
    json.dumps(storable(value), ensure_ascii=False).encode()
