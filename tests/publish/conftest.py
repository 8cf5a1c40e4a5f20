"""Fixtures of the publish tests: unique names at the shared broker."""

import asyncio
import dataclasses
import uuid
from collections.abc import Iterator

import pytest

from gateway.publish.topology import Topology
from testing.broker import Broker
from tests.publish.runner import remove
from tests.publish.scripted import Clock

_MOST_PARTITIONS = 4


@pytest.fixture
def topology(broker: Broker) -> Iterator[Topology]:
    """Return a topology with unique names; what was declared under them is removed."""
    name = f"test-{uuid.uuid4().hex}"
    topology = Topology(exchange=name, queue=f"{name}.executions")
    yield topology
    asyncio.run(remove(broker, dataclasses.replace(topology, ordered=_MOST_PARTITIONS)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the relay's clock."""
    clock = Clock()
    monkeypatch.setattr("gateway.publish.relay.time", clock)
    return clock
