"""The processes that a gateway starts, as the kernel shows them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_NO_CORE = "Max core file size 0 0 bytes"


def started_with(secret: str) -> list[Path]:
    """Return where a secret is in the arguments or variables of a process."""
    found = []
    for process in Path("/proc").iterdir():
        for path in (process / "cmdline", process / "environ"):
            with suppress(OSError):  # it has ended, or is no process
                found += [path] if secret.encode() in path.read_bytes() else []
    return found


def may_leave_core_files(main: int) -> dict[int, bool]:
    """Return for a process and all that it has started whether each could leave a core file."""
    found = {}
    for process in (main, *_descendants(main)):
        with suppress(OSError):  # it has ended
            limits = Path(f"/proc/{process}/limits").read_text(encoding="ascii").splitlines()
            found[process] = _NO_CORE not in (" ".join(line.split()) for line in limits)
    return found


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started, and that run."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, path.read_text(encoding="ascii").split())
    return found


def _descendants(process: int) -> Iterator[int]:
    for child in children_of(process):
        yield child
        yield from _descendants(child)
