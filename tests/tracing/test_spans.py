"""Spans: their ids, parents and errors, what is sampled, and what logs have of them."""

import asyncio
from datetime import UTC, datetime

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id

from gateway.errors import RemoteUnavailable
from gateway.publish.cloudevents import traceparent
from gateway.store.executions import StoredRequest
from gateway.store.work_queue import PendingUpdate
from gateway.tracing.ids import span_of_delivery, span_of_message, trace_of
from gateway.tracing.spans import SpanIds, record, traced
from gateway.worker.update_spans import fetching
from testing.records import made
from testing.tracing import recording

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """Return trace, id and parent."""
    assert span.context is not None
    parent = "" if span.parent is None else format_span_id(span.parent.span_id)
    return format_trace_id(span.context.trace_id), format_span_id(span.context.span_id), parent


def pushed(delivery: str) -> PendingUpdate:
    """Return a ref update of a delivery."""
    return PendingUpdate(
        seq=1,
        connection="c1",
        delivery=delivery,
        ref="refs/heads/main",
        kind="branch",
        name="main",
        before=None,
        after="1f" * 20,
        action="create",
        generation=1,
        pusher=None,
        repository={},
        received_at=NOW,
    )


def stored(redrives: int = 0) -> StoredRequest:
    """Return a request of the delivery d1."""
    return StoredRequest(
        seq=1,
        id="r1",
        connection="c1",
        delivery="d1",
        ref_update=1,
        project="digits",
        trigger="a",
        target="train",
        subject="",
        body=b"{}",
        planned_at=NOW,
        redrives=redrives,
    )


def test_spans_of_processes_that_share_nothing_are_one_trace() -> None:
    """The ids of a delivery and of a message are derived, so each names the other's spans."""
    with recording() as request:
        record("request", SpanIds.root("d1"), started_ns=1)
    with recording() as worker, traced("plan", "d1"), traced("build", "d1"):
        pass
    [first], [build, plan] = request.spans, worker.spans
    assert ids(first) == (trace_of("d1"), span_of_delivery("d1"), "")
    assert ids(plan)[2] == ids(first)[1]
    assert ids(build)[2] == ids(plan)[1]
    assert {ids(span)[0] for span in (first, build, plan)} == {trace_of("d1")}


def test_a_block_of_another_delivery_is_not_below_the_one_around_it() -> None:
    """One fetch serves several deliveries: each trace has its span, and the others link to the first."""
    updates = [pushed(delivery) for delivery in ("d1", "d1", "d2", "d3")]
    with recording() as recorded, fetching(made(url="https://ada:hidden@git.example/acme/x.git"), updates):
        pass
    second, third, first = recorded.named("fetch")
    assert [ids(span)[0] for span in (first, second, third)] == [
        trace_of(f"d{number}") for number in (1, 2, 3)
    ]
    assert [ids(span)[2] for span in (second, third)] == [span_of_delivery("d2"), span_of_delivery("d3")]
    assert [format_span_id(span.links[0].context.span_id) for span in (second, third)] == [ids(first)[1]] * 2
    assert first.attributes is not None
    assert first.attributes["vcs.repository.url.full"] == "https://git.example/acme/x"


@pytest.mark.parametrize("sampler", ["parentbased_traceidratio", "traceidratio"])
def test_every_process_samples_the_same_traces(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the flag of a message's trace context is that decision."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    deliveries = [f"d{number}" for number in range(40)]
    sampled = []
    for _ in ("web", "worker"):
        with recording() as recorded:
            for delivery in deliveries:
                record("request", SpanIds.root(delivery), started_ns=1)
                with traced("plan", delivery):
                    pass
            flag = traceparent(stored())[-2:]
        sampled.append([ids(span)[0] for span in recorded.spans])
    assert sampled[0] == sampled[1]
    assert 5 < len(set(sampled[0])) < 35
    assert len(sampled[0]) == 2 * len(set(sampled[0]))
    assert flag == ("01" if trace_of("d1") in sampled[0] else "00")


def test_a_message_is_as_before_where_nothing_is_recorded() -> None:
    """With an exporter, a redrive has a span of its own."""
    plain = f"00-{trace_of('d1')}-{span_of_message('r1')}-01"
    assert traceparent(stored()) == traceparent(stored(redrives=1)) == plain
    with recording():
        assert traceparent(stored()) == plain
        assert traceparent(stored(redrives=1)) == f"00-{trace_of('d1')}-{span_of_message('r1', 1)}-01"


def test_an_error_is_named_and_only_pushgates_own_has_a_text() -> None:
    """The text of another may have a secret."""
    with recording() as recorded:
        with pytest.raises(RemoteUnavailable), traced("ours", "d1"):
            raise RemoteUnavailable("cannot reach git.example")
        with pytest.raises(ValueError, match="hidden"), traced("theirs", "d1"):
            raise ValueError("hidden")
    ours, theirs = recorded.spans
    assert ours.attributes == {"error.type": "RemoteUnavailable"}
    assert theirs.attributes == {"error.type": "ValueError"}
    assert [ours.status.description, theirs.status.description] == ["cannot reach git.example", None]
    assert [span.events for span in recorded.spans] == [(), ()]


def test_log_lines_of_a_block_have_its_ids() -> None:
    """Without an exporter, that of the trace; and tasks that run at the same time do not mix them."""

    async def work(delivery: str) -> tuple[str, dict[str, str]]:
        with traced("plan", delivery):
            await asyncio.sleep(0)
            return delivery, structlog.contextvars.get_contextvars()

    async def both() -> list[tuple[str, dict[str, str]]]:
        return list(await asyncio.gather(work("d1"), work("d2")))

    assert asyncio.run(both()) == [(name, {"trace_id": trace_of(name)}) for name in ("d1", "d2")]
    with recording() as recorded:
        found = asyncio.run(both())
    spans = {ids(span)[0]: ids(span)[1] for span in recorded.spans}
    for name, bound in found:
        assert bound == {"trace_id": trace_of(name), "span_id": spans[trace_of(name)]}
    assert structlog.contextvars.get_contextvars() == {}
