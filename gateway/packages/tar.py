"""Our own tar writer: equal entries give equal bytes, on every machine and with every version of Python.

POSIX ustar, with a pax header before an entry only if a name is longer than 100 bytes or a file larger than
8 GiB: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html. Owner 0, no owner name, and one
time for all entries, so that equal trees of different commits are equal packages.
"""

from typing import Literal

BLOCK = 512
END = bytes(2 * BLOCK)
TIME = 315_619_200
"""1980-01-02T00:00:00Z: zip files, and so Python wheels, cannot hold files that are older than 1980."""

Kind = Literal["file", "link", "folder"]

_FLAGS: dict[Kind, bytes] = {"file": b"0", "link": b"2", "folder": b"5"}
_MAX_NAME_LENGTH = 100
_MAX_OCTAL_SIZE = 8**11 - 1
_OWNER = b"\x000000000\x000000000\x00"
_TIME = b"\x00%011o\x00" % TIME
_MAGIC = b"ustar\x0000".ljust(255, b"\0")
_CONSTANT_SUM = sum(_OWNER) + sum(_TIME) + sum(_MAGIC) + sum(b" " * 8)


def header(path: bytes, *, kind: Kind, mode: int, size: int = 0, target: bytes = b"") -> bytes:
    """Return the header of a file with `size` bytes, or the whole entry of a link or a folder."""
    name = path + b"/" if kind == "folder" else path
    records = b""
    if len(name) > _MAX_NAME_LENGTH:
        records += _record(b"path", name)
    if len(target) > _MAX_NAME_LENGTH:
        records += _record(b"linkpath", target)
    if size > _MAX_OCTAL_SIZE:
        records += _record(b"size", b"%d" % size)
    before = b""
    if records:
        before = _block(b"PaxHeader", b"x", 0o644, len(records), b"") + records + padding(len(records))
    octal_size = size if size <= _MAX_OCTAL_SIZE else 0
    return before + _block(name[:_MAX_NAME_LENGTH], _FLAGS[kind], mode, octal_size, target[:_MAX_NAME_LENGTH])


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block after `size` bytes."""
    return bytes(-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record: its length, which includes the digits of the length, then key and value."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, flag: bytes, mode: int, size: int, target: bytes) -> bytes:
    """Return a header block; its checksum counts the checksum field as spaces."""
    mode_field = b"%07o" % mode
    length = b"%011o" % size
    checksum = _CONSTANT_SUM + sum(name) + sum(mode_field) + sum(length) + sum(flag) + sum(target)
    return b"".join(
        (
            name.ljust(100, b"\0"),
            mode_field,
            _OWNER,
            length,
            _TIME,
            b"%06o\0 " % checksum,
            flag,
            target.ljust(100, b"\0"),
            _MAGIC,
        )
    )
