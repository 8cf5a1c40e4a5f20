"""What `/metrics` answers: the metrics of this process, or of all processes that share its port.

Prometheus reaches any of those. They share their counters in files, and name themselves in others:
https://prometheus.github.io/client_python/multiprocess/
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.metrics import PROCESSES, REGISTRY

# The library's variable for the folder of shared counters; the library reads it when it is imported.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SUFFIX = ".pid"


def exposition() -> bytes:
    """Return all metrics in Prometheus's text format; reads files where processes share counters."""
    folder = os.environ.get(SHARED)
    registry = CollectorRegistry()
    if folder is None:
        PROCESSES.set(1)
        registry.register(Processes({"0": os.getpid()}))
        return generate_latest(REGISTRY) + generate_latest(registry)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(Processes(_named_in(Path(folder))))
    return generate_latest(registry)


def name_process(name: str) -> None:
    """Let all processes that share a port report this one under a name; a successor replaces it."""
    fresh = Path(os.environ[SHARED], f"{name}{_SUFFIX}.new")
    fresh.write_text(str(os.getpid()), encoding="ascii")
    fresh.replace(fresh.with_suffix(""))


def _named_in(folder: Path) -> dict[str, int]:
    return {
        path.name.removesuffix(_SUFFIX): int(path.read_text(encoding="ascii"))
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
    }


class Processes(Collector):
    """The CPU time, memory and files of processes, each with its name as the label `process`.

    The library's own collector knows only its own process, and is left out where several share a port.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        """Collect those with these ids, by their names."""
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all processes that run."""
        found: dict[str, Metric] = {}
        for name, pid in self._processes.items():
            for one in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                family = found.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {"process": name}, sample.value)
        yield from found.values()
