"""Whether and where spans are exported, by OpenTelemetry's own environment variables.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

import structlog

from gateway.tracing.spans import export_to

log = structlog.get_logger()

_PROTOCOL = "http/protobuf"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# The modules of the extra.
_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter")
# How long the end of the process waits for the last spans.
_FLUSH_SECONDS = 5.0


@dataclass(slots=True)
class TraceExport:
    """The export of the spans of a process of this role, from the start to the end of its service."""

    role: str
    _shutdown: Callable[[], None] | None = None

    def start(self) -> None:
        """Export spans from now on if an endpoint is set; log an error if that is impossible."""
        endpoint = _endpoint()
        if endpoint is None:
            return
        obstacle = _obstacle(endpoint)
        if obstacle is not None:
            log.error("traces are not exported", reason=obstacle)
            return
        from gateway.roles import otlp  # noqa: PLC0415 - its libraries may be missing, and take 0.4 s

        provider = otlp.provider(role=self.role, endpoint=endpoint)
        export_to(otlp.exporting(provider))
        self._shutdown = provider.shutdown

    async def stop(self) -> None:
        """Export the last spans, for a few seconds at most."""
        if self._shutdown is None:
            return
        export_to(None)
        shutdown, self._shutdown = self._shutdown, None
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            shutdown()
            with suppress(RuntimeError):  # too late: the loop has ended
                loop.call_soon_threadsafe(done.set)

        # Not a thread of a pool: the end of the process would wait for it, however long that takes.
        threading.Thread(target=flush, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            log.warning("the last spans are lost", reason="the collector does not take them in time")


def _endpoint() -> str | None:
    """Return where spans are to be exported to; None if tracing is off."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    return None if is_disabled or "otlp" not in exporters else _variable(_ENDPOINTS)


def _obstacle(endpoint: str) -> str | None:
    """Return why spans cannot be exported, and what to do; None if they can."""
    protocol = _variable(_PROTOCOLS) or _PROTOCOL
    if protocol != _PROTOCOL:
        return f"the protocol {protocol} is not supported; set {_PROTOCOLS[-1]} to {_PROTOCOL}"
    if not endpoint.startswith(("http://", "https://")):
        return f"{_ENDPOINTS[-1]} must begin with http:// or https://"
    if not all(map(find_spec, _MODULES)):
        return "the libraries for OpenTelemetry are not installed; install pushgate[otlp]"
    return None


def _variable(names: tuple[str, ...]) -> str | None:
    """Return the first of these variables that has a value."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)
