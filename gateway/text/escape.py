"""Make text from git safe for people, JSON and databases: escape bytes that are not text, without loss."""

import re
from typing import Any

# Python decodes a byte that is not UTF-8 as one of the last 128 of these (PEP 383); encoders reject them.
_SURROGATE = re.compile("[\ud800-\udfff]")
# PostgreSQL rejects NUL, and the encoders of both databases reject surrogates.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
_FIRST_BYTE, _LAST_BYTE, _BYTES_AT = 0xDC80, 0xDCFF, 0xDC00


def decode(raw: bytes) -> str:
    """Return bytes from git as text for `printable` and `storable`, which encodes back to the same bytes."""
    return raw.decode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Return text for one line, with undecodable bytes and unprintable characters escaped as in Python."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def storable(value: Any) -> Any:
    """Return text, or a JSON value that contains text, so that every database and JSON encoder accepts it."""
    if isinstance(value, str):
        return _NOT_STORABLE.sub(lambda found: _escaped(found[0]), value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


def has_surrogates(text: str) -> bool:
    """Return whether text contains surrogates, which no encoder accepts."""
    return _SURROGATE.search(text) is not None


def _escaped(character: str) -> str:
    code = ord(character)
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return f"\\x{code - _BYTES_AT:02x}"
    return character.encode("unicode_escape").decode()
