"""The spans that this process records."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.roles import otlp
from gateway.tracing.spans import export_to


class Recorded:
    """The spans that were recorded."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        """Read them from the exporter."""
        self._exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of this name."""
        return [span for span in self.spans if span.name == name]


@contextmanager
def recording() -> Iterator[Recorded]:
    """Record spans within the block; the environment selects the sampler."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=otlp.ChosenIds(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    export_to(otlp.exporting(provider))
    try:
        yield Recorded(exporter)
    finally:
        export_to(None)
