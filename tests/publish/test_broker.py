"""The tests' RabbitMQ node leaves nothing, however the test run ends."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_A_NODE = """
from testing.broker import Broker
with Broker() as broker:
    print(broker.folder, broker.port, flush=True)
    input()
"""


def test_a_killed_test_run_leaves_no_node_and_no_files() -> None:
    """SIGKILL leaves no time to clean up: the guard does it."""
    with subprocess.Popen(
        [sys.executable, "-c", START_A_NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder, port = run.stdout.readline().split()
        assert _is_there(folder, int(port))
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _is_there(folder, int(port)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_there(folder: str, port: int) -> bool:
    with socket.socket() as client:
        return Path(folder).exists() or client.connect_ex(("127.0.0.1", port)) == 0
