"""Starts git and reads its output, within limits. Only `gateway.fetch.git` and its sessions use this.

A run, or a conversation with a git that answers queries, has limits on its time, its output and its use of
this machine, and ends together with all processes that it started.
"""

import contextlib
import fcntl
import io
import os
import re
import select
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.errors import FetchError, LocalFailure
from gateway.fetch.limits import GitLimits, machine_failure
from gateway.text.escape import printable

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
# Git's format: Receiving objects, 45% (450/1000), 12.00 MiB | 3.00 MiB/s, with a colon for the first comma.
_PROGRESS = re.compile(r"(?P<what>[A-Z][a-z]+ [a-z]+): +(?P<percent>\d+)% \(\d+/\d+\)(?P<size>, [\d.]+ \w+)?")
# Output of git and ssh beside the reason: advice, progress, and the fact that there was an error.
_NOISE = re.compile(
    r"fatal: could not read from remote repository\.?|please make sure you have the correct access rights"
    r"|and the repository exists\.?|hint: .*|from \S+|post git-upload-pack .*|cloning into .*"
    r"|warning: (permanently added|skipping unknown msg id|redirecting to) .*"
    r"|remote: (enumerating|counting|compressing|total|finding|resolving) .*|(remote:)?[\s=@*#-]*|\*\* .*"
    # The banner of ssh about a changed host key: its last lines say the same without our paths.
    r"|@ .*|it is possible that someone .*|someone could be eavesdropping .*|it is also possible that .*"
    r"|the fingerprint for the .*|sha256:\S+|please contact your system .*|add correct host key .*"
    r"|offending .*|remove with:|ssh-keygen .*",
    re.IGNORECASE,
)
_MAX_LINES = 6
_MAX_LINE_LENGTH = 300
_BETWEEN_LINES = " | "
_STDERR_LIMIT = 64 * 1024
# The largest pipe that unprivileged processes may have: git reads ahead while we work on its output.
_ANSWERS_BUFFER = 1024 * 1024
_LOCAL = "this machine cannot fetch from any remote"
# How long git may take to exit after it has closed its output.
_END_SECONDS = 0.2


Progress = Callable[[str], None]
"""Called with how far a command has come, such as "receiving objects 45 %, 12.00 MiB"."""


class GitFailed(FetchError):
    """Git exited with an error; the message is git's own, without credentials."""

    @property
    def lines(self) -> list[str]:
        """Return the lines of git's message."""
        return str(self).split(_BETWEEN_LINES)


class GitTimedOut(GitFailed):
    """Git exceeded its time limit."""


class OutputTooLarge(GitFailed):
    """Git printed more than the limit of its output."""


class LimitReached(GitFailed):
    """Git exceeded a resource limit. The repository is sound, and the same run would fail again."""


class Run:
    """One process group from its start to its end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: bytes,
        output_limit: int,
        limits: GitLimits,
        timeout: float,
        progress: Progress | None,
        secrets: Sequence[str],
    ) -> None:
        self._progress = progress
        self._secrets = secrets
        self._command = command
        self._environment = environment
        self._stdin = stdin
        self._output_limit = output_limit
        self._limits = limits
        self._timeout = timeout
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the run soon. May be called from any thread."""
        self._stopped.set()

    def to_the_end(self) -> bytes:
        """Run, and return the output. Raises `GitFailed` or `LocalFailure`."""
        with local_failures(), _as_file(self._stdin) as stdin:
            process = subprocess.Popen(  # noqa: S603 - the arguments are ours, see Git.run
                self._limits.wrap(self._command),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        output = bytearray()
        try:
            self._complete(process, output)
            return bytes(output)
        finally:
            # An exception keeps its frames, and so this memory, until the garbage collector runs.
            output.clear()

    def _complete(self, process: subprocess.Popen[bytes], output: bytearray) -> None:
        """Read all output until git has ended. Raises `GitFailed` or `LocalFailure`."""
        try:
            errors = self._read(process, output)
        finally:
            _end_group(process)
        if process.returncode != 0:
            message = explain(errors, process.returncode, self._secrets)
            _raise_cause(process.returncode, errors.decode("utf-8", "replace"), message, self._limits)
            raise GitFailed(message)

    def _read(self, process: subprocess.Popen[bytes], output: bytearray) -> bytes:
        """Read standard output into `output`, and return the standard error."""
        assert process.stdout is not None  # noqa: S101 - both are pipes, see above
        assert process.stderr is not None  # noqa: S101 - as above
        errors = bytearray()
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
            selector.register(process.stdout, selectors.EVENT_READ, output)
            selector.register(process.stderr, selectors.EVENT_READ, errors)
            while selector.get_map():
                if self._stopped.is_set():
                    raise GitFailed("stopped")
                if time.monotonic() > deadline:
                    raise GitTimedOut(f"git took longer than {self._timeout:g} seconds")
                for key, _ in selector.select(timeout=0.1):
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    key.data.extend(chunk)
                    if self._progress is not None and key.data is errors:
                        _report_progress(chunk, self._progress)
                if len(output) > self._output_limit:
                    raise OutputTooLarge(f"git printed more than {self._output_limit} bytes")
                del errors[:-_STDERR_LIMIT]
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if self._stopped.is_set() or time.monotonic() > deadline:
                raise GitTimedOut("git closed its output but did not exit")
            time.sleep(0.0005)
        return bytes(errors)


class Conversation:
    """A git in `folder` that answers queries. For one thread at a time; any thread may end it.

    Read its answers from `answers`, before the time that `allow` sets.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, limits: GitLimits
    ) -> None:
        """Start git. Raises `GitFailed` if the folder does not exist, `LocalFailure` if git cannot start."""
        self._limits = limits
        self._ending = threading.Lock()
        self._is_over = False
        # In memory: git prints a few lines, and the disk may be full.
        self._errors = os.memfd_create("git-errors", os.MFD_CLOEXEC)
        try:
            self._process = self._start(limits.wrap(command), environment, folder)
        except BaseException:
            os.close(self._errors)
            raise
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        output = self._process.stdout.fileno()
        # All pipes together have a limit; a smaller pipe works as well.
        with contextlib.suppress(OSError):
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _ANSWERS_BUFFER)
        self._pipe = _Answers(output)
        self.answers = io.BufferedReader(self._pipe, _ANSWERS_BUFFER)

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        with local_failures():
            try:
                return subprocess.Popen(  # noqa: S603 - the arguments are ours, see Git.run
                    command,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=environment,
                    cwd=folder,
                    start_new_session=True,
                )
            except (FileNotFoundError, NotADirectoryError) as error:
                if error.filename == str(folder):
                    raise GitFailed(f"not a git repository: {folder}") from error
                raise

    def allow(self, seconds: float) -> None:
        """Give git this time for what is read until the next call."""
        self._pipe.allow(seconds)

    def shorten(self, seconds: float) -> None:
        """Lower that time if more is left."""
        if seconds < self._pipe.seconds_left():
            self._pipe.allow(seconds)

    def query(self, lines: bytes) -> None:
        """Send queries. Together with unanswered ones they have to fit into a pipe (64 KB)."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self._process.stdin.write(lines)
        except OSError as error:
            raise self.failure() from error

    def is_alive(self) -> bool:
        """Return whether git can answer queries."""
        return not self._is_over and self._exit() is None

    def failure(self) -> FetchError:
        """Return why the answers ended."""
        until = time.monotonic() + _END_SECONDS
        while (ended := self._exit()) is None:
            if self._is_over or time.monotonic() > until:
                return GitFailed("git ended in the middle of its output")
            time.sleep(0.0005)
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        errors = os.pread(self._errors, _STDERR_LIMIT, 0)
        message = explain(errors, status, ())
        try:
            _raise_cause(status, errors.decode("utf-8", "replace"), message, self._limits)
        except FetchError as error:
            return error
        return GitFailed(f"git ended in the middle of its output: {message}")

    def _exit(self) -> os.waitid_result | None:
        """Return how git ended by itself, or None."""
        with self._ending:
            if self._is_over:
                return None
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)

    def end(self) -> None:
        """End git, and whoever waits for its answers."""
        with self._ending:
            if not self._is_over:
                self._is_over = True
                _end_group(self._process)

    def close(self) -> None:
        """End git, and release its pipes. Only for the thread that uses it."""
        self.end()
        self.answers.detach()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # noqa: S101 - both are pipes
            pipe.close()
        os.close(self._errors)


class _Answers(io.RawIOBase):
    """The output of a git, read before a deadline."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.allow(0)

    def allow(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is. Raises `GitTimedOut`."""
        if not self._poll.poll(max(0, self.seconds_left()) * 1000):
            raise GitTimedOut(f"git took longer than {self._seconds:g} seconds")
        return os.readv(self._descriptor, [buffer])


def _report_progress(output: bytes, progress: Progress) -> None:
    for found in _PROGRESS.finditer(output.decode("utf-8", "replace")):
        progress(f"{found['what'].lower()} {found['percent']} %{found['size'] or ''}")


@contextlib.contextmanager
def local_failures() -> Iterator[None]:
    """Raise `LocalFailure` if this machine has no space, files or processes left to start git."""
    try:
        yield
    except OSError as error:
        raise LocalFailure(f"{_LOCAL}: git cannot be started ({error.strerror})") from error


def _raise_cause(status: int, errors: str, message: str, limits: GitLimits) -> None:
    """Raise `LimitReached` or `LocalFailure` if that is why git failed; `message` is git's explanation."""
    exceeded = limits.exceeded(status, errors)
    if exceeded is not None:
        raise LimitReached(exceeded)
    failure = machine_failure(status, errors)
    if failure is not None:
        raise LocalFailure(f"{_LOCAL}: {failure} (git: {message})")


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[int]:
    """Return a descriptor to read some bytes from."""
    if not content:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the process group, then take the exit status, which frees the group's id."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def explain(errors: bytes, returncode: int, secrets: Sequence[str]) -> str:
    """Return the messages of git and ssh on one line, without noise and without credentials.

    The messages may contain credentials, because a remote may repeat what it received.
    """
    text = _CREDENTIALS.sub("", errors.decode("utf-8", "replace"))
    for secret in secrets:
        text = text.replace(secret, "***")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    lines = [line.replace(_BETWEEN_LINES, " ") for line in lines if not _PROGRESS.search(line)]
    relevant = [line for line in lines if not _NOISE.fullmatch(line)] or lines
    shown = [printable(_shortened(line)) for line in relevant[-_MAX_LINES:]]
    return _BETWEEN_LINES.join(shown) or f"git ended with status {returncode}"


def _shortened(line: str) -> str:
    """Return both ends of a long line: git puts the reason at the end, and servers put it first."""
    if len(line) <= _MAX_LINE_LENGTH:
        return line
    half = _MAX_LINE_LENGTH // 2
    return f"{line[:half]}…{line[-half:]}"
