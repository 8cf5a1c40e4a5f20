"""Text from git for people, JSON and databases: bytes that are not text are escaped, without loss."""

import re
from typing import Any

# Python decodes a byte that is no UTF-8 as one of the last 128 of these (PEP 383); no encoder takes any.
_SURROGATE = re.compile("[\ud800-\udfff]")
# PostgreSQL takes no NUL, and the encoders of both databases no surrogate.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
_FIRST_BYTE, _LAST_BYTE, _BYTES_AT = 0xDC80, 0xDCFF, 0xDC00


def decode(raw: bytes) -> str:
    """Return bytes of git as text that `printable` and `storable` can show, and that encodes back to them."""
    return raw.decode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Return text for one line: what is no text, or would break the line, is escaped as in Python."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def storable(value: Any) -> Any:
    """Return text, or a JSON value with text in it, as every database and every JSON encoder takes it."""
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
