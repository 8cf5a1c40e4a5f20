"""The exporter of spans to a collector, by OTLP over HTTP. Its libraries are those of the extra `otlp`."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision

from gateway.logs import Condition
from gateway.tracing.attributes import SCHEMA_URL
from gateway.tracing.spans import Exporting, next_ids

_NAME = "pushgate"
# Logs each failed batch; here all of them are one condition.
_EXPORTER_LOGS = logging.getLogger("opentelemetry.exporter")
# Logs each span for which the queue has no room.
_QUEUE_LOGS = logging.getLogger("opentelemetry.sdk._shared_internal")


def provider(*, role: str, endpoint: str) -> TracerProvider:
    """Return a provider that exports spans from now on, configured by the environment.

    Call it in the process that records the spans: the exporter's thread does not survive a fork.
    """
    own = {"service.name": _NAME, "service.version": version(_NAME), "pushgate.role": role}
    named = OTELResourceDetector().detect().attributes
    resource = Resource.create({**own, **named})
    made = TracerProvider(resource=resource, id_generator=ChosenIds(), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(_Exporter(endpoint)))
    return made


def exporting(made: TracerProvider) -> Exporting:
    """Return where spans are recorded, and which of them are."""
    sampler, nothing = made.sampler, Context()

    def is_sampled(trace: int) -> bool:
        # As for the first span of the trace: the others follow that decision.
        return sampler.should_sample(nothing, trace, "").decision is Decision.RECORD_AND_SAMPLE

    return Exporting(tracer=made.get_tracer(_NAME, version(_NAME), SCHEMA_URL), is_sampled=is_sampled)


class ChosenIds(IdGenerator):
    """The ids that `gateway.tracing.spans` has chosen."""

    def generate_trace_id(self) -> int:
        """Return the id of the trace of the next span."""
        return next_ids()[0]

    def generate_span_id(self) -> int:
        """Return the id of the next span."""
        return next_ids()[1]


class _Session(requests.Session):
    """Keeps why the last request failed, because the exporter returns only that it did."""

    problem = ""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        try:
            response = super().send(request, **options)
        except requests.RequestException as error:
            # Not its text, which contains the URL.
            self.problem = f"it cannot be reached ({type(error).__name__})"
            raise
        self.problem = "" if response.ok else f"it answered {response.status_code}"
        return response


class _Exporter(SpanExporter):
    """The library's exporter; a collector that takes no spans is one lasting condition in the log."""

    def __init__(self, endpoint: str) -> None:
        self._session = _Session()
        self._exporter = OTLPSpanExporter(session=self._session)
        self._collector = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._away = Condition("spans are lost: the collector takes none", over="spans are exported again")
        _EXPORTER_LOGS.setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_taken = result is SpanExportResult.SUCCESS
        # While spans are lost anyway, a log record for each of them would only take time.
        _QUEUE_LOGS.setLevel(logging.WARNING if is_taken else logging.ERROR)
        if is_taken:
            self._away.ends()
        else:
            reason = self._session.problem or "the spans are invalid, or too large"
            self._away.holds(collector=self._collector, reason=reason)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
