"""Logs as whoever collects them gets them."""

import json
import os
import socket
import subprocess
import sys

import pytest

_SAYS_TWO_THINGS = """
import logging, structlog
from gateway import telemetry
telemetry.configure("{log_format}")
structlog.get_logger().info("ours", number=1)
logging.getLogger("another library").warning("theirs")
"""


def written(log_format: str, unbuffered: str) -> list[str]:
    """Return what each write to standard error carries where a line of ours and a foreign one are logged."""
    read, write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with read:
        with write:
            subprocess.run(
                [sys.executable, "-c", _SAYS_TWO_THINGS.format(log_format=log_format)],
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                stderr=write.fileno(),
                check=True,
            )
        packets = []
        while packet := read.recv(65_536):
            packets.append(packet.decode())
    return packets


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_one_write(unbuffered: str) -> None:
    """So that processes with one standard error, `serve --workers`, cannot tear each other's lines apart."""
    ours, theirs = written("json", unbuffered)
    assert ours.endswith("\n")
    assert theirs.endswith("\n")
    assert [json.loads(line)["event"] for line in (ours, theirs)] == ["ours", "theirs"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_readable_line_is_one_write_too(unbuffered: str) -> None:
    """For people who start several processes on a terminal."""
    ours, theirs = written("console", unbuffered)
    assert "ours" in ours
    assert ours.endswith("\n")
    assert "theirs" in theirs
