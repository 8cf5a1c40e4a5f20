"""What one git process may use of this machine, and how to tell that a limit ended it.

A shell sets the limits and then becomes git: they hold from git's first instruction on, and for all of its
children. Python could set them between fork and exec, but code there can deadlock where there are threads.
"""

import re
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass

# Core dumps of a process that was ended would fill the disk. CPU time has a soft limit, for its own signal.
_SCRIPT = 'ulimit -c 0 && ulimit -v "$1" && ulimit -f "$2" && ulimit -S -t "$3" && shift 3 && exec "$@"'
# POSIX: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/ulimit.html
_FILE_BLOCK = 512
_KIB = 1024

# What the remote says comes with these words in front: its disk, for example, is not ours.
_REMOTE_SAYS = re.compile(r"^(remote:|fatal: remote error:).*", re.MULTILINE)
_MEMORY = re.compile(r"out of memory|cannot allocate memory|mmap failed", re.IGNORECASE)
_FILE_SIZE = re.compile(r"file too large", re.IGNORECASE)
_DIED = re.compile(r"died of signal (\d+)")
_MACHINE = re.compile(
    r"no space left on device|disk quota exceeded|too many open files|(cannot|unable to|failed to) fork"
    r"|fork failed|resource temporarily unavailable|input/output error|read-only file system",
    re.IGNORECASE,
)
# A shell that cannot find git, or not execute it: git itself never ends so.
_NOT_STARTED = (126, 127)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLimits:
    """Address space and file size in bytes, CPU time in seconds.

    There is none for the number of processes: RLIMIT_NPROC counts all processes of a user on the machine, and
    those of root not at all. How many processes and threads git starts is bounded by how it is called.
    """

    memory: int = 4 * 1024**3
    cpu: int = 1800
    file_size: int = 20 * 1024**3

    def within(self, others: "GitLimits") -> "GitLimits":
        """Return the smaller one of each limit."""
        return GitLimits(
            memory=min(self.memory, others.memory),
            cpu=min(self.cpu, others.cpu),
            file_size=min(self.file_size, others.file_size),
        )

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs this one under the limits."""
        memory = _allowed(self.memory, resource.RLIMIT_AS) // _KIB
        file_size = _allowed(self.file_size, resource.RLIMIT_FSIZE) // _FILE_BLOCK
        cpu = _allowed(self.cpu, resource.RLIMIT_CPU)
        return ["/bin/sh", "-c", _SCRIPT, "sh", *(str(one) for one in (memory, file_size, cpu)), *command]

    def exceeded(self, status: int, errors: str) -> str | None:
        """Return which limit ended git, by its exit status and its messages; None where none did."""
        text = _REMOTE_SAYS.sub("", errors)
        signals = _signals(status, text)
        if signal.SIGXCPU in signals:
            return f"git used more than {self.cpu} seconds of CPU time (PUSHGATE_GIT_MAX_CPU_SECONDS)"
        if signal.SIGXFSZ in signals or _FILE_SIZE.search(text):
            return f"git wrote a file of more than {self.file_size} bytes (PUSHGATE_GIT_MAX_FILE_BYTES)"
        if _MEMORY.search(text) and not _MACHINE.search(text):
            return f"git needed more than {self.memory} bytes of memory (PUSHGATE_GIT_MAX_MEMORY_BYTES)"
        if signal.SIGSEGV in signals:
            return "git crashed: its stack is too small, as for folders nested thousands deep"
        return None


def machine_failure(status: int, errors: str) -> str | None:
    """Return how this machine kept git from working; None if it did not. See `GitLimits.exceeded`."""
    text = _REMOTE_SAYS.sub("", errors)
    if status in _NOT_STARTED:
        return "git cannot be started"
    if signal.SIGKILL in _signals(status, text):
        return "git was killed, most likely because the memory of the machine ran out"
    found = _MACHINE.search(text)
    return found[0].lower() if found else None


def _allowed(wanted: int, kind: int) -> int:
    """Return the limit that can be set: one that the gateway itself runs under cannot be raised."""
    _, most = resource.getrlimit(kind)
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def _signals(status: int, text: str) -> set[int]:
    """Return the signals that git or its children died of."""
    return {-status, *(int(number) for number in _DIED.findall(text))}
