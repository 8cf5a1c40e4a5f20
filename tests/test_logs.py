"""Logs as a log collector reads them."""

import json
import os
import socket
import subprocess
import sys

import pytest
import structlog

from gateway.logs import Condition

_SAYS_TWO_THINGS = """
import logging, structlog
from gateway import logs
logs.configure("{log_format}", role="all")
structlog.get_logger().info("ours", number=1)
logging.getLogger("another library").warning("theirs")
"""


def written(log_format: str, unbuffered: str) -> list[str]:
    """Return each write to standard error when a line of ours and one of a library are logged."""
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
    """So that processes with one standard error, `serve --workers`, cannot mix their lines."""
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


_LOGS_SECRETS = """
import logging, structlog
from gateway import logs
logs.configure("{log_format}", role="all")
log = structlog.get_logger()
log.info("at https://ada:hidden@host/a", url="https://hidden@host/b", inside={{"urls": ["ssh://ada:hidden@h/c"]}})
try:
    raise ValueError("https://ada:hidden@host/d")
except ValueError:
    log.exception("failed", of="ssh://git@host/e")
    logging.getLogger("another library").exception("theirs")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_credentials_of_a_url_are_logged(log_format: str) -> None:
    """In any value, also in an exception, and also a token instead of user and password."""
    done = subprocess.run(
        [sys.executable, "-c", _LOGS_SECRETS.format(log_format=log_format)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hidden" not in done.stderr.replace(_LOGS_SECRETS, "")
    for shown in ("https://host/a", "https://host/b", "ssh://h/c", "https://host/d", "ssh://git@host/e"):
        assert shown in done.stderr


_LOGS_VALUES = """
import structlog
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from gateway import logs
logs.configure("{log_format}", role="all")
at = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)
values = {{"at": at, "inside": {{"path": Path("/a/b")}}, "many": (ip_address("192.0.2.1"), None)}}
structlog.get_logger().info("values", error=ValueError("a reason"), **values)
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_line_holds_what_only_python_would_write(log_format: str) -> None:
    """Times as ISO 8601, errors as their sentence, paths and addresses as text."""
    done = subprocess.run(
        [sys.executable, "-c", _LOGS_VALUES.format(log_format=log_format)],
        capture_output=True,
        check=True,
        text=True,
    )
    for name in ("datetime", "ValueError", "Path(", "IPv4"):
        assert name not in done.stderr
    for shown in ("2026-11-29T12:30:00+00:00", "a reason", "/a/b", "192.0.2.1"):
        assert shown in done.stderr


def test_a_condition_is_logged_when_it_begins_at_intervals_and_when_it_ends() -> None:
    """However often it occurs in between."""
    now = 0.0
    condition = Condition("it rains", over="the sun shines", every=60, clock=lambda: now)
    with structlog.testing.capture_logs() as lines:
        condition.ends()
        for second in range(150):
            now = float(second)
            condition.holds(reason="clouds")
        condition.ends()
        condition.ends()
        condition.holds()
        now += 1000
        condition.holds()
    warning = {"event": "it rains", "log_level": "warning"}
    assert lines == [
        {**warning, "reason": "clouds"},
        {**warning, "reason": "clouds", "for_s": 60},
        {**warning, "reason": "clouds", "for_s": 120},
        {"event": "the sun shines", "log_level": "info", "after_s": 149.0},
        warning,
        warning,
    ]
