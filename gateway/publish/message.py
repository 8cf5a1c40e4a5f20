"""An execution request as an AMQP message: CloudEvents 1.0 in binary mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

import hashlib
import re

from aio_pika import DeliveryMode, Message

from gateway.store.executions import StoredRequest

TYPE = "dev.pushgate.execution.requested.v1"
ROUTING_PREFIX = "execution.requested"

_LONGEST_ROUTING_KEY = 255  # bytes: a short string of AMQP 0-9-1
_NOT_IN_A_WORD = re.compile(r"[.*#\s\x00-\x1f]+")


def message(request: StoredRequest, *, public_url: str) -> Message:
    """Return the message; the same request gives the same message, whenever and wherever it is made."""
    return Message(
        request.body,
        message_id=request.id,
        correlation_id=request.delivery,
        type=TYPE,
        app_id="pushgate",
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        timestamp=request.planned_at,
        headers={
            "ce-specversion": "1.0",
            "ce-id": request.id,
            "ce-source": f"{public_url}/api/v1/connections/{request.connection}",
            "ce-type": TYPE,
            "ce-subject": request.subject,
            "ce-time": request.planned_at.isoformat(),
            "ce-dataschema": f"{public_url}/schemas/execution-request.json",
            "traceparent": traceparent(request),
        },
    )


def routing_key(request: StoredRequest) -> str:
    """Return `execution.requested.<project>.<step>`; what would be two words of a topic is made one."""
    words = (_NOT_IN_A_WORD.sub("_", word) for word in (request.project, request.target))
    key = ".".join((ROUTING_PREFIX, *words))
    return key.encode()[:_LONGEST_ROUTING_KEY].decode(errors="ignore")


def traceparent(request: StoredRequest) -> str:
    """Return the W3C trace context: one trace for a delivery, one span for each of its requests.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    trace = hashlib.sha256(request.delivery.encode()).hexdigest()[:32]
    span = hashlib.sha256(request.id.encode()).hexdigest()[:16]
    return f"00-{trace}-{span}-01"
