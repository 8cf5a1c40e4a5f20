"""The process of the command `pushgate`: its streams, its errors and its exit status.

The commands are in `gateway/cli/app.py`, which takes half a second to import: `--version` does without it.
"""

import os
import resource
import signal
import sys
from io import TextIOWrapper

COMPLETION = "_PUSHGATE_COMPLETE"
"""Set by the completion scripts, for the shell's questions."""

# As a shell shows it for a program that the signal has ended, such as `yes | head -1`.
_CLOSED_PIPE = 128 + signal.SIGPIPE


def main() -> None:
    """Run the command; print an error as one sentence on standard error, and exit with status 1."""
    for stream in (sys.stdout, sys.stderr):
        # Not every locale can encode the characters of our trees and names.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    # The memory of every command may hold secrets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.argv[1:] == ["--version"]:
        print_version()
        return
    _run()


def print_version() -> None:
    """Print the version of Pushgate."""
    from importlib.metadata import version  # noqa: PLC0415 - the other commands start without it

    sys.stdout.write(f"pushgate {version('pushgate')}\n")


def _run() -> None:
    from gateway.cli.app import ClosedPipe, app, sentence  # noqa: PLC0415 - see above
    from gateway.cli.output import err, escape  # noqa: PLC0415 - the same
    from gateway.errors import PushgateError  # noqa: PLC0415 - the same

    if COMPLETION in os.environ:
        from typer._completion_classes import completion_init  # noqa: PLC0415 - only here

        completion_init()
    try:
        try:
            app()
        finally:
            # Not at the end of the process, where nobody could catch an error.
            sys.stdout.flush()
    except PushgateError as error:
        err.print(f"[red]pushgate:[/red] {escape(sentence(error))}", soft_wrap=True)
        sys.exit(1)
    except (BrokenPipeError, ClosedPipe):
        # So that nothing is written to it when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_CLOSED_PIPE)
    except OSError as error:
        # A problem of this machine, such as a full disk or an unreadable file.
        err.print(f"[red]pushgate:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
