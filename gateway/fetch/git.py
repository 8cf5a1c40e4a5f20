"""The only module that starts git.

Anybody who can push controls a repository's content, so nothing of it is ever executed: no hook, filter,
helper or configuration of the repository, no configuration of this machine's user, no prompt. Every run has
limits on its time, its output and its use of this machine, and ends together with all processes that it
started.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from gateway.errors import FetchError, LocalFailure
from gateway.fetch import git_config
from gateway.fetch.access import Access, Granted
from gateway.fetch.credentials import Remote, secrets_of
from gateway.fetch.limits import GitLimits, machine_failure
from gateway.text.escape import printable
from gateway.threads import GIT

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
_TALK_BUFFER = 1024 * 1024
_LOCAL = "this machine cannot fetch from any remote"
# How long git may take to exit after it has closed its output.
_END_SECONDS = 0.2


Progress = Callable[[str], None]
"""Called with how far a command has come, such as "receiving objects 45 %, 12.00 MiB"."""


_NO_ACCESS = Granted(options=(), environments=[{}])
# Printed by ssh before anything was sent.
_NOT_CONNECTED = re.compile(r"ssh: connect to (host|address) ")


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


_DEFAULT_LIMITS = GitLimits()


class Git:
    """Starts git. `home` is an empty folder of ours; `timeout` is the time limit of a run in seconds.

    `hosts`, if there are any, are the only hosts that git may connect to.
    """

    def __init__(
        self,
        *,
        home: Path,
        allow_http: bool,
        timeout: float,
        hosts: tuple[str, ...] = (),
        limits: GitLimits = _DEFAULT_LIMITS,
    ) -> None:
        """Use the git on PATH."""
        self._timeout = timeout
        self._limits = limits
        self._environment = git_config.environment(home)
        self._options = git_config.options(allow_http=allow_http)
        self._access = Access(home, allow_http=allow_http, hosts=hosts)

    async def run(
        self,
        *arguments: str,
        mirror: Path | None = None,
        stdin: bytes = b"",
        output_limit: int = 8 * 1024 * 1024,
        progress: Progress | None = None,
        remote: Remote | None = None,
        limits: GitLimits | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the process, which a thread watches
    ) -> bytes:
        """Run git and return its output.

        `arguments` are ours: untrusted values go after `--end-of-options` or into `stdin`. `progress` is
        called, in another thread, with the progress of a command with `--progress`. `remote` is the remote
        that git connects to. `limits` and `timeout` can only lower the usual ones. Raises `GitFailed`, or
        `LocalFailure` if this machine is the cause. When cancelled, git and all its children have ended
        before this returns.
        """
        where = [f"--git-dir={mirror}"] if mirror is not None else []
        async with self._access.granted(remote) if remote else nullcontext(_NO_ACCESS) as granted:
            runs = [
                _Run(
                    ["git", *self._options, *granted.options, *where, *arguments],
                    environment={**self._environment, **variables},
                    stdin=stdin,
                    output_limit=output_limit,
                    limits=limits.within(self._limits) if limits else self._limits,
                    timeout=min(timeout, self._timeout) if timeout else self._timeout,
                    progress=progress,
                    secrets=secrets_of(remote.credentials if remote else None),
                )
                for variables in granted.environments
            ]
            return await self._first_connected(runs)

    async def _first_connected(self, runs: Sequence["_Run"]) -> bytes:
        """Run git with one address of the host after another, until a connection is made."""
        for run in runs[:-1]:
            try:
                return await self._run(run)
            except GitFailed as error:
                if not _NOT_CONNECTED.search(str(error)):
                    raise
        return await self._run(runs[-1])

    async def _run(self, run: "_Run") -> bytes:
        # A thread starts a process in 1.3 ms, the event loop in 5.
        running = GIT.run(run.to_the_end)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            run.stop()
            await asyncio.wait([running])
            raise

    @contextlib.contextmanager
    def talk(self, *arguments: str, mirror: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Start a git that answers queries; yield the pipes to and from it. Call it in a thread.

        Git ends with the block, or at its time limit: then its output ends.
        """
        command = ["git", *self._options, f"--git-dir={mirror}", *arguments]
        with tempfile.TemporaryFile() as errors:
            process = self._start_talk(command, errors)
            assert process.stdin is not None  # noqa: S101 - both are pipes
            assert process.stdout is not None  # noqa: S101 - as above
            # All pipes together have a limit; a smaller pipe works as well.
            with contextlib.suppress(OSError):
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _TALK_BUFFER)
            alarm = threading.Timer(self._timeout, os.killpg, (process.pid, signal.SIGKILL))
            alarm.start()
            try:
                yield process.stdin, process.stdout
            except (BrokenPipeError, GitFailed) as error:
                if alarm.finished.is_set():
                    raise GitTimedOut(f"git took longer than {self._timeout:g} seconds") from error
                _check_end(process, errors, self._limits)
                raise GitFailed(f"git ended in the middle of its output: {error}") from error
            finally:
                # Before the exit status is taken: afterwards another process may get the process id.
                alarm.cancel()
                alarm.join()
                _end_group(process)
                process.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    def _start_talk(self, command: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        with _local_failures():
            return subprocess.Popen(  # noqa: S603 - the arguments are ours, as in run
                self._limits.wrap(command),
                bufsize=_TALK_BUFFER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                start_new_session=True,
            )


class _Run:
    """One process group from its start to its end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: dict[str, str],
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
        with _local_failures(), tempfile.TemporaryFile() as stdin:
            stdin.write(self._stdin)
            stdin.seek(0)
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


def _report_progress(output: bytes, progress: Progress) -> None:
    for found in _PROGRESS.finditer(output.decode("utf-8", "replace")):
        progress(f"{found['what'].lower()} {found['percent']} %{found['size'] or ''}")


@contextlib.contextmanager
def _local_failures() -> Iterator[None]:
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


def _check_end(process: subprocess.Popen[bytes], errors: IO[bytes], limits: GitLimits) -> None:
    """Raise the cause, as `_raise_cause` does, if a git that answers queries has ended by itself."""
    until = time.monotonic() + _END_SECONDS
    while (ended := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() > until:
            return
        time.sleep(0.005)
    status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    errors.seek(0)
    output = errors.read(_STDERR_LIMIT)
    _raise_cause(status, output.decode("utf-8", "replace"), explain(output, status, ()), limits)


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
