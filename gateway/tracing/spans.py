"""Spans, for the exporter that the process has; without one, next to nothing is done.

`gateway.roles.tracing` connects the exporter. No text of an error is recorded unless it is Pushgate's own,
which never contains a secret.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from gateway.errors import PushgateError
from gateway.tracing.attributes import Attributes
from gateway.tracing.ids import span_of_delivery, trace_of

_NONE: Attributes = {}
_NO_PARENT = Context()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@dataclass(frozen=True, slots=True)
class Exporting:
    """Where spans go. `is_sampled` decides by the id of a trace, so that all processes decide the same."""

    tracer: Tracer
    is_sampled: Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened at a time, in ns since 1970."""

    name: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class SpanIds:
    """The ids of a span, in hex digits. `parent` is None for the first span of a trace."""

    trace: str
    span: str
    parent: str | None

    @classmethod
    def unrelated(cls) -> "SpanIds":
        """Return random ids, for the first span of a trace that belongs to no delivery."""
        return cls(_random_hex(128), new_span(), None)

    @classmethod
    def root(cls, delivery: str) -> "SpanIds":
        """Return the ids of the first span of a delivery's trace."""
        return cls(trace_of(delivery), span_of_delivery(delivery), None)

    @classmethod
    def below(cls, delivery: str, *, span: str | None = None, parent: str | None = None) -> "SpanIds":
        """Return the ids of another span of a delivery's trace, by default random ones below the first."""
        return cls(trace_of(delivery), span or new_span(), parent or span_of_delivery(delivery))


_exporting: Exporting | None = None
# What the generator of ids returns next.
_next: ContextVar[SpanIds | None] = ContextVar("next", default=None)
# The innermost block that is traced.
_current: ContextVar[SpanIds | None] = ContextVar("current", default=None)


def export_to(exporting: Exporting | None) -> None:
    """Record spans from now on; with None, no longer."""
    global _exporting  # noqa: PLW0603 - like the configuration of logs: it is that of the process
    _exporting = exporting


def is_on() -> bool:
    """Return whether spans are recorded."""
    return _exporting is not None


def is_sampled(trace: str) -> bool:
    """Return whether others should record their part of a trace: the flag of `traceparent`."""
    return _exporting is None or _exporting.is_sampled(int(trace, 16))


def next_ids() -> tuple[int, int]:
    """Return the ids of the trace and the span that is being started, for the generator of ids."""
    ids = _next.get()
    if ids is None:
        raise LookupError("a span was started by other means than this module")
    return int(ids.trace, 16), int(ids.span, 16)


def new_span() -> str:
    """Return a random id of a span."""
    return _random_hex(64)


def link_to(ids: SpanIds) -> Link:
    """Return a link to a span of another trace."""
    return Link(_context(ids.trace, ids.span))


def record(
    name: str,
    ids: SpanIds,
    *,
    started_ns: int,
    ended_ns: int | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = _NONE,
    links: Sequence[Link] = (),
    events: Sequence[Event] = (),
    error: BaseException | str | None = None,
) -> None:
    """Record a span that has ended, now unless `ended_ns` is given. Times are in ns since 1970.

    An `error` is an exception, or what stands for the type of one.
    """
    span = _started(name, ids, kind=kind, attributes=attributes, links=links, started_ns=started_ns)
    if span is None:
        return
    for event in events:
        span.add_event(event.name, timestamp=event.at_ns)
    if error is not None:
        _fail(span, error)
    span.end(ended_ns)


@contextmanager
def traced(
    name: str,
    delivery: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = _NONE,
    links: Sequence[Link] = (),
) -> Iterator[SpanIds]:
    """Trace a block, whose log lines have the ids of the trace and of the span.

    The parent is by default the block around it, if that is of the same delivery, or the first span of the
    trace. Without an exporter, the lines have the id of the trace.
    """
    around = _current.get()
    if parent is None and around is not None and around.trace == trace_of(delivery):
        parent = around.span
    ids = SpanIds.below(delivery, parent=parent)
    span = _started(name, ids, kind=kind, attributes=attributes, links=links, started_ns=time.time_ns())
    token = _current.set(ids)
    try:
        with structlog.contextvars.bound_contextvars(**ids_in_logs(ids, is_recorded=span is not None)):
            yield ids
    except BaseException as error:
        if span is not None:
            _fail(span, error)
        raise
    finally:
        _current.reset(token)
        if span is not None:
            span.end()


def ids_in_logs(ids: SpanIds, *, is_recorded: bool) -> dict[str, str]:
    """Return what a line of the log has of a span."""
    return {"trace_id": ids.trace, "span_id": ids.span} if is_recorded else {"trace_id": ids.trace}


def _started(
    name: str,
    ids: SpanIds,
    *,
    kind: SpanKind,
    attributes: Attributes,
    links: Sequence[Link],
    started_ns: int,
) -> Span | None:
    """Start a span; return None if it is not recorded."""
    if _exporting is None or not _exporting.is_sampled(int(ids.trace, 16)):
        return None
    above = _NO_PARENT
    if ids.parent is not None:
        above = set_span_in_context(NonRecordingSpan(_context(ids.trace, ids.parent)), _NO_PARENT)
    token = _next.set(ids)
    try:
        return _exporting.tracer.start_span(
            name, above, kind=kind, attributes=attributes, links=links, start_time=started_ns
        )
    finally:
        _next.reset(token)


def _random_hex(bits: int) -> str:
    # As the library does: ids are no secrets, and the kernel's random numbers take longer.
    return f"{random.getrandbits(bits):0{bits // 4}x}"


def _context(trace: str, span: str) -> SpanContext:
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=_SAMPLED)


def _fail(span: Span, error: BaseException | str) -> None:
    kind = error if isinstance(error, str) else type(error).__qualname__
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, str(error) if isinstance(error, PushgateError) else None)
