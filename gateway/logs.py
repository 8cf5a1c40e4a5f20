"""Logs: JSON for machines, readable on a terminal, and never a secret.

What is logged is chosen where it happens: ids, refs, reasons, durations. Bodies, headers and URLs with
credentials are never passed here; what foreign libraries log goes through the same door.
"""

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# User and password, or a token in their place. Everybody's user on git hosts is no secret.
_CREDENTIALS = re.compile(r"""(?<=://)(?!git@)[^/\s@"']*@""")


def configure(log_format: Literal["auto", "json", "console"]) -> None:
    """Set up logging for the process. `auto` is readable on a terminal and JSON elsewhere."""
    readable = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if readable:
        last: list[Processor] = [_as_values, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        last = [structlog.processors.format_exc_info, _as_values, structlog.processors.JSONRenderer()]
    last.append(_redact)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # A line is one write: processes with one standard error do not write into each other's lines, also
        # where Python is told not to buffer it, as in containers. `PrintLogger` writes a line's end apart.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)


class Condition:
    """A condition that lasts: logged when it begins, once in `every` seconds meanwhile, and when it ends.

    Report it here whenever it is met, as often as that is and from any thread.
    """

    def __init__(
        self,
        event: str,
        *,
        over: str | None = None,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is logged while it holds, and when it is over."""
        self._event = event
        self._over = over
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._met_at = 0.0
        self._logged_at = -every

    def holds(self, **facts: Any) -> None:
        """Log it, unless that was done lately."""
        with self._lock:
            now = self._clock()
            if self._since is None or now - self._met_at > self._every:
                self._since = now
            self._met_at = now
            if now - self._logged_at < self._every:
                return
            self._logged_at = now
            lasts = round(now - self._since)
        structlog.get_logger().warning(self._event, **facts, **({"for_s": lasts} if lasts else {}))

    def ends(self) -> None:
        """Log that it is over, where it was not."""
        if self._since is None:
            return
        with self._lock:
            if self._since is None:
                return
            lasted, self._since, self._logged_at = self._clock() - self._since, None, -self._every
        if self._over is not None:
            structlog.get_logger().info(self._over, after_s=round(lasted, 1))


class _StandardError:
    """Standard error, as long as somebody reads it: when nobody does any more, work goes on all the same."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _as_values(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Bring what is logged to values that JSON has: renderers write Python's own form of all others."""
    # Its traceback is the console's affair.
    return {name: value if name == "exc_info" else _as_value(value) for name, value in line.items()}


def _as_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _as_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_value(one) for one in value]
    return value.isoformat() if isinstance(value, date) else str(value)


def _redact(_logger: WrappedLogger, _method: str, line: Any) -> Any:
    """Take the credentials out of every URL, wherever in the line it stands: the last net, not the first."""
    return _CREDENTIALS.sub("", line)
