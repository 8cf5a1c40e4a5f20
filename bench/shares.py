"""A share of a core for a process, as Kubernetes limits a pod's CPU.

With it two processes compare to one as they would on a machine with more cores. The kernel's interface is
https://www.kernel.org/doc/html/latest/admin-guide/cgroup-v2.html#cpu-interface-files or, before that,
https://www.kernel.org/doc/html/latest/scheduler/sched-bwc.html; only root may use it, and not everywhere.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


class Share:
    """A group of processes that together are limited to a share of a core."""

    def __init__(self, folder: Path) -> None:
        """Take processes into the group of this folder."""
        self._folder = folder

    def add(self, pid: int) -> None:
        """Limit a process, with all its threads."""
        (self._folder / "cgroup.procs").write_text(str(pid))


def is_possible() -> bool:
    """Return whether the kernel lets us limit processes."""
    try:
        with share_of_a_core(0.5):
            return True
    except OSError:
        return False


@contextmanager
def share_of_a_core(share: float) -> Iterator[Share]:
    """Yield a group; it is removed after the block, when its processes have ended. Raises `OSError`."""
    quota = int(_PERIOD_US * share)
    is_v1 = (_ROOT / "cpu").is_dir()
    folder = (_ROOT / "cpu" if is_v1 else _ROOT) / f"pushgate-bench-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        if is_v1:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}", encoding="utf-8")
        yield Share(folder)
    finally:
        while (folder / "cgroup.procs").read_text(encoding="utf-8"):
            time.sleep(0.05)
        folder.rmdir()
