"""Ports for servers that restart: no other process is given one of them meanwhile."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Return free ports outside the ephemeral range, from which outgoing connections get theirs."""
    free: list[int] = []
    for port in random.sample(range(10_000, 30_000), 1_000):
        with contextlib.suppress(OSError), socket.socket() as candidate:
            candidate.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError("this machine has no free ports")
