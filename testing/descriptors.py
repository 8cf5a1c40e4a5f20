"""Open files of this process: an SQLite connection that is not closed keeps its file open."""

import os
from pathlib import Path


def open_files(folder: Path) -> set[str]:
    """Return the names of the files in this folder that the process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = Path(os.readlink(descriptor))  # noqa: PTH115 - a pipe is no path that could be resolved
        except FileNotFoundError:  # the descriptor with which the folder is read
            continue
        if target.is_relative_to(folder):
            found.add(target.name)
    return found
