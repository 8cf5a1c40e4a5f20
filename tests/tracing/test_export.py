"""Whether spans are exported, as OpenTelemetry's variables say."""

import asyncio
import sys
from typing import Any

import pytest
import structlog

from gateway.roles.tracing import TraceExport
from gateway.tracing import spans
from gateway.tracing.spans import SpanIds, record
from testing.collector import Collector
from testing.provider_apis.fake import serving


def started() -> list[Any]:
    """Start and stop the export; return whether it was on, and what was logged."""
    export = TraceExport("web")
    with structlog.testing.capture_logs() as lines:
        export.start()
        is_on = spans.is_on()
        asyncio.run(export.stop())
    return [is_on, [line.get("reason") for line in lines]]


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an endpoint where nobody listens."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")


def test_an_endpoint_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of traces alone; nothing else does."""
    assert started() == [True, []]
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    assert started() == [False, []]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    assert started() == [True, []]


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """By OpenTelemetry's own switches."""
    monkeypatch.setenv(name, value)
    assert started() == [False, []]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "the protocol grpc is not supported"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "must begin with http:// or https://"),
    ],
)
def test_what_is_impossible_is_one_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """The gateway works without traces."""
    monkeypatch.setenv(name, value)
    is_on, [logged] = started()
    assert not is_on
    assert reason in logged


def test_the_gateway_starts_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it."""
    monkeypatch.setattr("gateway.roles.tracing.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "gateway.roles.otlp", raising=False)
    is_on, [logged] = started()
    assert not is_on
    assert logged == "the libraries for OpenTelemetry are not installed; install pushgate[otlp]"
    assert "gateway.roles.otlp" not in sys.modules


def test_the_last_spans_are_exported_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the resource that the variables name."""
    collector = Collector()
    with serving(collector):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "push")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        export = TraceExport("web")
        export.start()
        record("request", SpanIds.root("d1"), started_ns=1)
        asyncio.run(export.stop())
    [span] = collector.spans
    assert span.name == "request"
    assert span.resource["service.name"] == "push"
    assert span.resource["deployment.environment.name"] == "test"
    assert span.resource["pushgate.role"] == "web"
    assert "service.version" in span.resource
