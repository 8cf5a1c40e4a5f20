"""An OpenTelemetry collector that keeps the spans which it receives by OTLP over HTTP."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from starlette.requests import Request
from starlette.responses import Response

from testing.provider_apis.fake import FakeApi

Value = str | int | bool
_KINDS = ("", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span, with its ids in hex digits and its times in ns. The first of a trace has no `parent`."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    started_ns: int
    ended_ns: int
    attributes: dict[str, Value]
    resource: dict[str, Value]
    links: tuple[str, ...]
    events: dict[str, int]
    is_error: bool


@dataclass(slots=True)
class Collector(FakeApi):
    """A collector: https://opentelemetry.io/docs/specs/otlp/#otlphttp."""

    spans: list[ReceivedSpan] = field(default_factory=list)

    def of(self, trace: str) -> dict[str, ReceivedSpan]:
        """Return the spans of a trace by their names; of several with one name, the last."""
        return {span.name: span for span in self.spans if span.trace == trace}

    async def handle(self, request: Request) -> Response:
        """Keep what arrives."""
        assert request.url.path == "/v1/traces"
        assert request.headers["content-type"] == "application/x-protobuf"
        found = ExportTraceServiceRequest.FromString(await request.body())
        for resource in found.resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    ReceivedSpan(
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        name=span.name,
                        kind=_KINDS[span.kind],
                        started_ns=span.start_time_unix_nano,
                        ended_ns=span.end_time_unix_nano,
                        attributes=_values(span.attributes),
                        resource=about,
                        links=tuple(link.span_id.hex() for link in span.links),
                        events={event.name: event.time_unix_nano for event in span.events},
                        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
                    )
                    for span in scope.spans
                ]
        answer = ExportTraceServiceResponse().SerializeToString()
        return Response(answer, media_type="application/x-protobuf")


def _values(given: Iterable[KeyValue]) -> dict[str, Value]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in given}
