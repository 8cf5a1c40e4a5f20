"""Limits on what one git process may use of this machine, and how to recognize that a limit ended it.

A shell sets the limits and then becomes git: they hold from git's first instruction on, and for all of its
children. Python could set them between fork and exec, but code there can deadlock in a process with threads.
"""

import re
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.settings import Settings

# Core dumps of killed processes would fill the disk. CPU time gets a soft limit, which has a signal of its
# own.
_SCRIPT = 'ulimit -c 0 && ulimit -v "$1" && ulimit -f "$2" && ulimit -S -t "$3" && shift 3 && exec "$@"'
# POSIX: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/ulimit.html
_FILE_BLOCK = 512
_KIB = 1024

# Messages of the remote begin with these words. They say nothing about this machine, such as about its disk.
_REMOTE_SAYS = re.compile(r"^(remote:|fatal: remote error:).*", re.MULTILINE)
_MEMORY = re.compile(r"out of memory|cannot allocate memory|mmap failed", re.IGNORECASE)
_FILE_SIZE = re.compile(r"file too large", re.IGNORECASE)
_DIED = re.compile(r"died of signal (\d+)")
_MACHINE = re.compile(
    r"no space left on device|disk quota exceeded|too many open files|(cannot|unable to|failed to) fork"
    r"|fork failed|resource temporarily unavailable|input/output error|read-only file system",
    re.IGNORECASE,
)
# The shell's exit status if it cannot find or execute git. Git itself never exits with these.
_NOT_STARTED = (126, 127)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLimits:
    """Address space and file size in bytes, CPU time in seconds.

    The number of processes has no limit: RLIMIT_NPROC counts all processes of a user on the machine, and does
    not count those of root. Git's arguments bound how many processes and threads it starts.
    """

    memory: int = 4 * 1024**3
    cpu: int = 1800
    file_size: int = 20 * 1024**3

    @classmethod
    def of(cls, settings: Settings) -> "GitLimits":
        """Return the limits that the settings name."""
        return cls(
            memory=settings.git_max_memory_bytes,
            cpu=settings.git_max_cpu_seconds,
            file_size=settings.git_max_file_bytes,
        )

    def within(self, others: "GitLimits") -> "GitLimits":
        """Return the smaller value of each limit."""
        return GitLimits(
            memory=min(self.memory, others.memory),
            cpu=min(self.cpu, others.cpu),
            file_size=min(self.file_size, others.file_size),
        )

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` under the limits."""
        memory = _allowed(self.memory, resource.RLIMIT_AS) // _KIB
        file_size = _allowed(self.file_size, resource.RLIMIT_FSIZE) // _FILE_BLOCK
        cpu = _allowed(self.cpu, resource.RLIMIT_CPU)
        return ["/bin/sh", "-c", _SCRIPT, "sh", *(str(limit) for limit in (memory, file_size, cpu)), *command]

    def exceeded(self, status: int, errors: str) -> str | None:
        """Return the limit that ended git, by its exit status and messages; None if it was not a limit."""
        text = _REMOTE_SAYS.sub("", errors)
        signals = _signals(status, text)
        if signal.SIGXCPU in signals:
            return f"git used more than {self.cpu} seconds of CPU time (PUSHGATE_GIT_MAX_CPU_SECONDS)"
        if signal.SIGXFSZ in signals or _FILE_SIZE.search(text):
            return f"git wrote a file of more than {self.file_size} bytes (PUSHGATE_GIT_MAX_FILE_BYTES)"
        if _MEMORY.search(text) and not _MACHINE.search(text):
            return f"git needed more than {self.memory} bytes of memory (PUSHGATE_GIT_MAX_MEMORY_BYTES)"
        if signal.SIGSEGV in signals:
            return "git crashed with a stack overflow, as with folders that are nested thousands deep"
        return None


def machine_failure(status: int, errors: str) -> str | None:
    """Return how this machine prevented git from working, or None. Arguments as of `GitLimits.exceeded`."""
    text = _REMOTE_SAYS.sub("", errors)
    if status in _NOT_STARTED:
        return "git cannot be started"
    if signal.SIGKILL in _signals(status, text):
        return "git was killed, most likely because the machine ran out of memory"
    found = _MACHINE.search(text)
    return found[0].lower() if found else None


def _allowed(wanted: int, kind: int) -> int:
    """Return the limit that can be set: a process cannot raise the hard limit that it runs under."""
    _, hard_limit = resource.getrlimit(kind)
    return wanted if hard_limit == resource.RLIM_INFINITY else min(wanted, hard_limit)


def _signals(status: int, text: str) -> set[int]:
    """Return the signals that ended git or its children."""
    return {-status, *(int(number) for number in _DIED.findall(text))}
