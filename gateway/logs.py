"""Logs: JSON for machines, readable on a terminal, and never a secret.

Callers choose what is logged: ids, refs, reasons, durations. Bodies, headers and URLs with credentials are
never passed here. The logs of libraries pass through the same processors.
"""

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from gateway.tracing.ids import trace_of

# User and password, or a token in their place. The user git@ is no secret.
_CREDENTIALS = re.compile(r"""(?<=://)(?!git@)[^/\s@"']*@""")


def configure(log_format: Literal["auto", "json", "console"], *, role: str) -> None:
    """Set up logging for a process of this role. `auto` is readable on a terminal and JSON elsewhere.

    Lines of JSON name the version and the role, which a person at a terminal knows.
    """
    readable = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    process = {"version": metadata.version("pushgate"), "role": role}
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if readable:
        last: list[Processor] = [_as_values, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        last = [
            lambda _logger, _method, line: {**line, **process},
            structlog.processors.format_exc_info,
            _as_values,
            structlog.processors.JSONRenderer(),
        ]
    last.append(_redact)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # Each line is one write, so that processes with a common standard error do not mix their lines, even
        # where Python does not buffer it, as in containers. `PrintLogger` writes the end of line separately.
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
    """A lasting condition: logged when it begins, once in `every` seconds while it lasts, and when it ends.

    Call `holds` whenever the condition is met, as often as necessary and from any thread.
    """

    def __init__(
        self,
        event: str,
        *,
        over: str | None = None,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the event that is logged while the condition holds, and the event for its end."""
        self._event = event
        self._over = over
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._met_at = 0.0
        self._logged_at = -every

    def holds(self, **facts: Any) -> None:
        """Log the condition, unless it was logged in the last `every` seconds."""
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
        """Log the end of the condition, if it held."""
        if self._since is None:
            return
        with self._lock:
            if self._since is None:
                return
            lasted, self._since, self._logged_at = self._clock() - self._since, None, -self._every
        if self._over is not None:
            structlog.get_logger().info(self._over, after_s=round(lasted, 1))


class _StandardError:
    """Standard error; a closed pipe does not stop the process."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _with_trace(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Add the trace of the delivery that a line names, if the line is not written within a span."""
    delivery = line.get("delivery")
    if isinstance(delivery, str) and "trace_id" not in line:
        line["trace_id"] = trace_of(delivery)
    return line


def _as_values(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Convert values to JSON types, because renderers write others in Python's form."""
    # The console renderer formats the traceback.
    return {name: value if name == "exc_info" else _as_value(value) for name, value in line.items()}


def _as_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _as_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_value(item) for item in value]
    return value.isoformat() if isinstance(value, date) else str(value)


def _redact(_logger: WrappedLogger, _method: str, line: Any) -> Any:
    """Remove the credentials from every URL in a line, as a last line of defence."""
    return _CREDENTIALS.sub("", line)
