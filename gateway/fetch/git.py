"""The only module that starts git.

Anybody who can push controls a repository's content, so nothing of it is ever executed: no hook, filter,
helper or configuration of the repository, no configuration of this machine's user, no prompt. Every run has
limits on its time, its output and its use of this machine, and ends together with all processes that it
started.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from gateway.errors import SettingError
from gateway.fetch import git_config, objects
from gateway.fetch.access import Access, Granted
from gateway.fetch.credentials import Remote, secrets_of
from gateway.fetch.limits import GitLimits
from gateway.fetch.objects import Objects, Sessions, Stop
from gateway.fetch.process import Conversation, GitFailed, Progress, Run
from gateway.threads import GIT, to_the_end

P = ParamSpec("P")
T = TypeVar("T")

_NO_ACCESS = Granted(options=(), environments=[{}])
# Printed by ssh before anything was sent.
_NOT_CONNECTED = re.compile(r"ssh: connect to (host|address) ")


_DEFAULT_LIMITS = GitLimits()
# `cat-file --batch-command`: https://github.com/git/git/blob/master/Documentation/RelNotes/2.36.0.txt
_OLDEST_GIT = (2, 36)
_VERSION = re.compile(rb"git version (?P<all>(\d+)\.(\d+)\S*)")


def require_git() -> str:
    """Return the version of the git on PATH. Raise `SettingError` if there is none, or if it is too old."""
    program = shutil.which("git")
    if program is None:
        raise SettingError("git is not installed: there is no program of that name in the folders of PATH")
    done = subprocess.run([program, "--version"], capture_output=True, check=False)  # noqa: S603 - git itself
    found = _VERSION.match(done.stdout)
    if found is None or (int(found[2]), int(found[3])) < _OLDEST_GIT:
        version = done.stdout.decode("utf-8", "replace").strip() or "no version"
        raise SettingError(
            f"git {'.'.join(map(str, _OLDEST_GIT))} or newer is needed; {program} says: {version}"
        )
    return found["all"].decode()


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
        """Use the git that is on PATH now."""
        # An absolute path: otherwise each start would look in one folder of PATH after another.
        self._program = shutil.which("git") or "git"
        self._timeout = timeout
        self._limits = limits
        self._environment = git_config.environment(home)
        self._options = git_config.options(allow_http=allow_http)
        self._fetch_options = git_config.fetch_options()
        self._access = Access(home, allow_http=allow_http, hosts=hosts)
        self.sessions = Sessions(self._converse)

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
        options = [*self._options, *(self._fetch_options if remote else ())]
        where = [f"--git-dir={mirror}"] if mirror is not None else []
        async with self._access.granted(remote) if remote else nullcontext(_NO_ACCESS) as granted:
            runs = [
                Run(
                    [self._program, *options, *granted.options, *where, *arguments],
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

    async def _first_connected(self, runs: Sequence[Run]) -> bytes:
        """Run git with one address of the host after another, until a connection is made."""
        for run in runs[:-1]:
            try:
                return await self._run(run)
            except GitFailed as error:
                if not _NOT_CONNECTED.search(str(error)):
                    raise
        return await self._run(runs[-1])

    async def _run(self, run: Run) -> bytes:
        # A thread starts a process in 1.3 ms, the event loop in 5.
        return await to_the_end(GIT.run(run.to_the_end), stop=run.stop)

    async def read(
        self, mirror: Path, work: Callable[Concatenate[Objects, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `work` in a thread, with the objects of a mirror as its first argument.

        Raises `GitFailed`, or `LocalFailure` if this machine is the cause. When cancelled, git has ended
        before this returns.
        """
        stop = Stop()

        def read() -> T:
            with self.sessions.open(mirror, seconds=self._timeout, stop=stop) as found:
                return work(found, *args, **kwargs)

        return await to_the_end(GIT.run(read), stop=stop.set)

    def open(self, mirror: Path) -> AbstractContextManager[Objects]:
        """Open a mirror for reading within the block. Call it in a thread."""
        return self.sessions.open(mirror, seconds=self._timeout)

    def _converse(self, mirror: Path) -> Conversation:
        # The folder is named by a dot, so that it may be renamed.
        command = [self._program, *self._options, "--git-dir=.", *objects.COMMAND]
        return Conversation(command, environment=self._environment, folder=mirror, limits=self._limits)
