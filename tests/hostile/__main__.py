"""One attack after the other, with a connection whose pushes must go on: `make hostile`.

HOSTILE_SECONDS is the total time (600; the first and the last part have no attack), and HOSTILE_WITHIN the
seconds within which each push must be planned (10). The gateway's memory at the end must be at most 1.2 times
that of the first part. The exit status is 1 if a condition fails.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testing.git_host import GitHost
from testing.service import Command, Project, Service
from tests.hostile import attacks
from tests.hostile.attacks import Attack, Count
from tests.hostile.healthy import Pusher, Pushes

_SECONDS = float(os.environ.get("HOSTILE_SECONDS", "600"))
_WITHIN = float(os.environ.get("HOSTILE_WITHIN", "10"))
_MOST_GROWTH = 1.2
_REPORT_EVERY = 10.0
# How long after the end of an attack its pushes may still be planned before they count as lost.
_AFTERWARDS = 60.0
_DISK_BYTES = 256 * 1024 * 1024


@contextmanager
def calm(_service: Service, _folder: Path, _count: Count) -> Iterator[None]:
    """Attack nothing."""
    yield


@dataclass(slots=True, kw_only=True)
class Phase:
    """One part of the drill, and its measurements: memory at its end and its peak, in MiB."""

    attack: Attack
    pushes: Pushes
    count: Count
    memory: float = 0.0
    peak: float = 0.0

    @property
    def name(self) -> str:
        """The name of the attack."""
        return self.attack.__name__.replace("_", " ")

    def report(self) -> str:
        """Return the measurements as one line."""
        took = sorted(self.pushes.took)
        slowest = f"{took[-1]:5.1f} s" if took else "     - "
        median = f"{took[len(took) // 2]:5.1f} s" if took else "     - "
        return (
            f"{self.name:18} pushes {len(took):4}  median {median}  slowest {slowest}"
            f"  refused {self.pushes.refused:3}  memory {self.memory:4.0f} MiB, at most {self.peak:.0f}"
            f"  attacks {self.count.made}"
        )


class _Gateway(Command):
    """The gateway, started by its command."""

    def memory(self) -> float:
        """Return the memory of its process in MiB; its child processes have their own limits."""
        assert isinstance(self._process, subprocess.Popen)
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        [kilobytes] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(kilobytes) / 1024


def main() -> int:
    """Run the drill; return 1 if a condition failed."""
    with tempfile.TemporaryDirectory(prefix="pushgate-hostile-") as name:
        folder = Path(name)
        with _small_disk(folder / "data") as has_disk:
            order: list[Attack] = [calm, attacks.headers, attacks.idle_connections, attacks.hanging_hosts]
            order += [attacks.bombs, *([attacks.full_disk] if has_disk else []), calm]
            if not has_disk:
                _say("A full disk is left out: this user may mount no file system, not even in a namespace.")
            settings = {"MIRROR_BUDGET": str(_DISK_BYTES // 4), "LOG_FORMAT": "json"}
            with GitHost(folder / "git") as host, _Gateway(folder / "data", **settings) as gateway:
                phases = _drill(gateway, Project(host, folder), folder, order)
    failures = failed_conditions(phases, within=_WITHIN)
    for phase in phases:
        _say(phase.report())
    for failure in failures:
        _say(f"FAILED: {failure}")
    _say("" if failures else "Every push was planned in time, and memory came back.")
    return 1 if failures else 0


def failed_conditions(phases: list[Phase], *, within: float) -> list[str]:
    """Return the failed conditions, a sentence each."""
    failures = []
    for phase in phases:
        failures += [f"{phase.name}: a push was lost: {lost}" for lost in phase.pushes.lost]
        late = [took for took in phase.pushes.took if took > within]
        # On a full disk nothing can be stored; pushes during that time run once there is room again.
        if late and phase.attack is not attacks.full_disk:
            failures.append(f"{phase.name}: {len(late)} pushes took up to {max(late):.1f} s, of {within:g} s")
        if not phase.pushes.took:
            failures.append(f"{phase.name}: no push was planned")
    before, after = phases[0].memory, phases[-1].memory
    if after > before * _MOST_GROWTH:
        failures.append(f"memory grew from {before:.0f} to {after:.0f} MiB, {after / before:.2f} times")
    return failures


def _drill(gateway: _Gateway, project: Project, folder: Path, order: list[Attack]) -> list[Phase]:
    phases: list[Phase] = []
    each = _SECONDS / len(order)
    pusher = Pusher(gateway, project, patience=each + _AFTERWARDS)
    pusher.start()
    try:
        for number, attack in enumerate(order):
            phase = Phase(attack=attack, pushes=pusher.next_phase(), count=Count())
            phases.append(phase)
            _say(f"== {number + 1} of {len(order)}: {phase.name}")
            with attack(gateway, folder, phase.count):
                _watch(gateway, phase, each)
    finally:
        pusher.stop()
    return phases


def _watch(gateway: _Gateway, phase: Phase, seconds: float) -> None:
    """Wait so many seconds, and report progress."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(_REPORT_EVERY, left))
        phase.memory = gateway.memory()
        phase.peak = max(phase.peak, phase.memory)
        _say(f"   {phase.report()}")


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Make a folder that is a small file system of its own; yield False if that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    has_disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield has_disk
    finally:
        if has_disk:
            # A git process whose gateway was killed may still be running there.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
