"""The spans of messages, from the sending to the broker's confirm, and of the runs that runners report."""

from collections.abc import Iterable
from datetime import datetime

from opentelemetry.trace import SpanKind

from gateway.errors import PublishError
from gateway.publish.cloudevents import Stored, routing_key, span_of
from gateway.store.executions import StoredRequest
from gateway.store.runs import EndedRun
from gateway.tracing import attributes, spans
from gateway.tracing.ids import span_of_message
from gateway.tracing.spans import SpanIds


def record_message(stored: Stored, *, exchange: str, started_ns: int, error: PublishError | None) -> None:
    """Record that a message was sent: with the id that its `traceparent` names, unless that has failed."""
    about: attributes.Attributes = {}
    links = []
    if isinstance(stored, StoredRequest):
        about = attributes.of_execution(
            stored.id, target=stored.target, project=stored.project, trigger=stored.trigger
        )
        if stored.rerun_of is not None:
            first = SpanIds.below(stored.delivery, span=span_of_message(stored.rerun_of))
            links = [spans.link_to(first)]
    sent = attributes.of_message(
        exchange=exchange,
        key=routing_key(stored),
        id_=stored.id,
        delivery=stored.delivery,
        size=len(stored.body),
    )
    spans.record(
        f"publish {exchange}",
        SpanIds.below(stored.delivery, span=span_of(stored) if error is None else None),
        started_ns=started_ns,
        kind=SpanKind.PRODUCER,
        attributes={**about, **sent},
        links=links,
        error=error,
    )


def record_runs(ended: Iterable[EndedRun | None]) -> None:
    """Record the spans of runs that have ended, by the times that their runners report."""
    for each in ended:
        if each is None or not spans.is_on():
            continue
        run, execution = each.run, each.execution
        ended_at = run.ended_at or run.reported_at
        # Reports may be missing, and clocks may differ.
        started_at = min(run.started_at or run.accepted_at or ended_at, ended_at)
        about = attributes.of_execution(
            execution, target=each.target, project=each.project, trigger=each.trigger
        )
        spans.record(
            f"RUN {each.target}",
            SpanIds.below(each.delivery, parent=span_of_message(execution, each.redrives)),
            started_ns=_ns(started_at),
            ended_ns=_ns(ended_at),
            kind=SpanKind.SERVER,
            attributes=about | attributes.of_run(run.state, url=run.url),
            error="failed" if run.state == "failed" else None,
        )


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)
