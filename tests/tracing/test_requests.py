"""The spans of webhook requests, and of what is sent to a provider."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.trace import format_span_id, format_trace_id

from gateway.tracing.ids import span_of_delivery, trace_of
from providers import github
from testing.github import push_payload
from testing.in_process import Answer, InProcess
from testing.tracing import Recorded, recording

URL = "https://github.example/acme/digits.git"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Run a gateway of the role web."""
    with InProcess(Path(tmp_path_factory.mktemp("requests"), "data")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def connection(gateway: InProcess) -> Any:
    """Connect a repository."""
    body = {"provider": "github", "url": URL, "project": "digits", "force": True}
    return gateway.send("POST", "/api/v1/connections", body).json


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """Record spans."""
    with recording() as recorded:
        yield recorded


def push(gateway: InProcess, connection: Any, secret: str | None = None) -> Answer:
    """Deliver a push."""
    after = uuid.uuid4().hex + "0" * 8
    ref = f"refs/heads/{after}"
    body = push_payload(url=URL, full_name="acme/digits", ref=ref, before=None, after=after)
    headers = github.sign(
        event="push",
        body=body,
        secret=(secret or connection["secret"]).encode(),
        delivery=str(uuid.uuid4()),
        now=datetime.now(UTC),
    )
    named = {name.replace("-", "_"): value for name, value in headers.items()}
    return gateway.send("POST", f"/hooks/{connection['id']}?token=hidden", body, token=None, **named)


def test_a_delivery_begins_its_trace(gateway: InProcess, connection: Any, recorded: Recorded) -> None:
    """With derived ids, and not with the path of the URL."""
    delivery = push(gateway, connection).json["delivery"]
    [request] = recorded.spans
    assert request.context is not None
    assert format_trace_id(request.context.trace_id) == trace_of(delivery)
    assert format_span_id(request.context.span_id) == span_of_delivery(delivery)
    assert request.parent is None
    assert [event.name for event in request.events] == ["verified"]
    assert connection["id"] not in str([span.to_json() for span in recorded.spans])


def test_a_refused_request_is_a_trace_of_its_own(
    gateway: InProcess, connection: Any, recorded: Recorded
) -> None:
    """Its line of the log has the ids of the span, and not a trace of the delivery that it claims."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        assert push(gateway, connection, secret="wrong" * 5).status == 401
    [span], [line] = recorded.spans, lines
    assert span.context is not None
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/hooks/{connection}",
        "http.response.status_code": 401,
    }
    assert line["trace_id"] == format_trace_id(span.context.trace_id)
    assert line["span_id"] == format_span_id(span.context.span_id)


def test_what_anybody_can_send_has_no_span(gateway: InProcess, recorded: Recorded) -> None:
    """Or a flood of requests to no connection would fill the queue of the exporter."""
    assert gateway.send("POST", "/hooks/" + "0" * 24, b"{}", token=None).status == 404
    assert gateway.send("GET", "/hooks/" + "0" * 24, token=None).status == 405
    assert recorded.spans == []


def test_accepted_deliveries_are_not_logged_by_default(gateway: InProcess, connection: Any) -> None:
    """A setting switches that on; nothing is recorded without an exporter."""
    with structlog.testing.capture_logs() as lines:
        assert push(gateway, connection).status == 202
    assert lines == []
