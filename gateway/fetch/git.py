"""The one place that starts git.

A repository is anybody's who can push to it, so nothing of it is ever executed: no hook, filter, helper or
config of its own; no config of this machine's user; no prompt. Every run has limits on its time, its output,
and what it may use of this machine, and ends together with every process that it started.
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
# As git says it: Receiving objects, 45% (450/1000), 12.00 MiB | 3.00 MiB/s, with a colon for the first comma.
_PROGRESS = re.compile(r"(?P<what>[A-Z][a-z]+ [a-z]+): +(?P<percent>\d+)% \(\d+/\d+\)(?P<size>, [\d.]+ \w+)?")
# What git and ssh say beside the reason: advice, progress, and that there was an error.
_NOISE = re.compile(
    r"fatal: could not read from remote repository\.?|please make sure you have the correct access rights"
    r"|and the repository exists\.?|hint: .*|from \S+|post git-upload-pack .*|cloning into .*"
    r"|warning: (permanently added|skipping unknown msg id|redirecting to) .*"
    r"|remote: (enumerating|counting|compressing|total|finding|resolving) .*|(remote:)?[\s=@*#-]*|\*\* .*"
    # The picture that ssh draws around a host key that has changed: its last lines say so, without our paths.
    r"|@ .*|it is possible that someone .*|someone could be eavesdropping .*|it is also possible that .*"
    r"|the fingerprint for the .*|sha256:\S+|please contact your system .*|add correct host key .*"
    r"|offending .*|remove with:|ssh-keygen .*",
    re.IGNORECASE,
)
_MAX_LINES = 6
_MAX_LINE_LENGTH = 300
_BETWEEN_LINES = " | "
_STDERR_LIMIT = 64 * 1024
# As large as a pipe may be for everybody: git reads on while we work on what it has said.
_TALK_BUFFER = 1024 * 1024
_LOCAL = "this machine cannot fetch, from whatever remote"
# For so long a git that has closed its output may take to end.
_END_SECONDS = 0.2


Progress = Callable[[str], None]
"""Is told how far a command has come, such as "receiving objects 45 %, 12.00 MiB"."""


_NO_ACCESS = Granted(options=(), environments=[{}])
# Of ssh, before anything was sent.
_NOT_CONNECTED = re.compile(r"ssh: connect to (host|address) ")


class GitFailed(FetchError):
    """Git ended with an error; the message is git's own, without credentials."""

    @property
    def lines(self) -> list[str]:
        """What was said, line by line."""
        return str(self).split(_BETWEEN_LINES)


class GitTimedOut(GitFailed):
    """Git took longer than it may."""


class OutputTooLarge(GitFailed):
    """Git had more to say than is read."""


class LimitReached(GitFailed):
    """Git needed more than it may use. The repository is sound, and the same run would fail again."""


_DEFAULT_LIMITS = GitLimits()


class Git:
    """Starts git. `home` is an empty folder of ours, `timeout` the seconds that a run may take.

    `hosts`, where there are any, are the only ones that it is ever sent to.
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
        """Use the git that is found on PATH."""
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

        `arguments` are ours: what comes from outside stands behind `--end-of-options` or in `stdin`.
        `progress` is told, in another thread, how far a command with `--progress` has come. `remote` is what
        git has to reach for it. `limits` and `timeout` are for a run that is to have less than others.
        Raises `GitFailed`, and `LocalFailure` where it is not git's fault; when cancelled, git and all its
        children are gone before this returns.
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
        """Start a git that answers questions, in a thread; give the pipes to and from it.

        It is ended with the block, or when its time is over: then its answers end.
        """
        command = ["git", *self._options, f"--git-dir={mirror}", *arguments]
        with tempfile.TemporaryFile() as errors:
            with _own_failures():
                process = subprocess.Popen(  # noqa: S603 - the arguments are ours, as in run
                    self._limits.wrap(command),
                    bufsize=_TALK_BUFFER,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=self._environment,
                    start_new_session=True,
                )
            assert process.stdin is not None  # noqa: S101 - both are pipes, as asked for above
            assert process.stdout is not None  # noqa: S101 - the same
            with contextlib.suppress(OSError):  # where all pipes together may have no more, it works as well
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _TALK_BUFFER)
            alarm = threading.Timer(self._timeout, os.killpg, (process.pid, signal.SIGKILL))
            alarm.start()
            try:
                yield process.stdin, process.stdout
            except (BrokenPipeError, GitFailed) as error:
                if alarm.finished.is_set():
                    raise GitTimedOut(f"git took longer than {self._timeout:g} seconds") from error
                _check_end(process, errors, self._limits)
                raise GitFailed(f"git ended in the middle of its answers: {error}") from error
            finally:
                # Before the exit status is taken: afterwards the number may be somebody else's.
                alarm.cancel()
                alarm.join()
                _end_group(process)
                process.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


class _Run:
    """One process group, from its start to its end."""

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
        """End the run soon; from any thread."""
        self._stopped.set()

    def to_the_end(self) -> bytes:
        """Run, and return the output; raises `GitFailed`, and `LocalFailure`."""
        with _own_failures(), tempfile.TemporaryFile() as stdin:
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
            # An error keeps the frames that it came through until the garbage collector comes.
            output.clear()

    def _complete(self, process: subprocess.Popen[bytes], output: bytearray) -> None:
        """Read all that it says until it has ended; raises `GitFailed`, and `LocalFailure`."""
        try:
            errors = self._read(process, output)
        finally:
            _end_group(process)
        if process.returncode != 0:
            told = explain(errors, process.returncode, self._secrets)
            _raise_cause(process.returncode, errors.decode("utf-8", "replace"), told, self._limits)
            raise GitFailed(told)

    def _read(self, process: subprocess.Popen[bytes], output: bytearray) -> bytes:
        """Read into `output`, and return what it says of errors."""
        assert process.stdout is not None  # noqa: S101 - both are pipes, as asked for above
        assert process.stderr is not None  # noqa: S101 - the same
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
                        _tell_progress(chunk, self._progress)
                if len(output) > self._output_limit:
                    raise OutputTooLarge(f"git said more than {self._output_limit} bytes")
                del errors[:-_STDERR_LIMIT]
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if self._stopped.is_set() or time.monotonic() > deadline:
                raise GitTimedOut("git closed its output and did not end")
            time.sleep(0.0005)
        return bytes(errors)


def _tell_progress(said: bytes, progress: Progress) -> None:
    for found in _PROGRESS.finditer(said.decode("utf-8", "replace")):
        progress(f"{found['what'].lower()} {found['percent']} %{found['size'] or ''}")


@contextlib.contextmanager
def _own_failures() -> Iterator[None]:
    """Raise `LocalFailure` where this machine has no room, files or processes left for a git."""
    try:
        yield
    except OSError as error:
        raise LocalFailure(f"{_LOCAL}: git cannot be started ({error.strerror})") from error


def _raise_cause(status: int, errors: str, told: str, limits: GitLimits) -> None:
    """Raise `LimitReached` or `LocalFailure` where that is why git failed; it said what is `told`."""
    exceeded = limits.exceeded(status, errors)
    if exceeded is not None:
        raise LimitReached(exceeded)
    failure = machine_failure(status, errors)
    if failure is not None:
        raise LocalFailure(f"{_LOCAL}: {failure} (git: {told})")


def _check_end(process: subprocess.Popen[bytes], errors: IO[bytes], limits: GitLimits) -> None:
    """Raise the cause, as `_raise_cause` does, where a git that answers has ended by itself."""
    until = time.monotonic() + _END_SECONDS
    while (ended := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() > until:
            return
        time.sleep(0.005)
    status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    errors.seek(0)
    said = errors.read(_STDERR_LIMIT)
    _raise_cause(status, said.decode("utf-8", "replace"), explain(said, status, ()), limits)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, then take the exit status, which frees the group's number."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def explain(errors: bytes, returncode: int, secrets: Sequence[str]) -> str:
    """Return what git and ssh said, on one line, without noise and without credentials.

    A remote may repeat what it was sent.
    """
    text = _CREDENTIALS.sub("", errors.decode("utf-8", "replace"))
    for secret in secrets:
        text = text.replace(secret, "***")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    lines = [line.replace(_BETWEEN_LINES, " ") for line in lines if not _PROGRESS.search(line)]
    told = [line for line in lines if not _NOISE.fullmatch(line)] or lines
    shown = [printable(_shortened(line)) for line in told[-_MAX_LINES:]]
    return _BETWEEN_LINES.join(shown) or f"git ended with status {returncode}"


def _shortened(line: str) -> str:
    """Return both ends of a long line: git puts the URL before the reason, and servers the reason first."""
    if len(line) <= _MAX_LINE_LENGTH:
        return line
    half = _MAX_LINE_LENGTH // 2
    return f"{line[:half]}…{line[-half:]}"
