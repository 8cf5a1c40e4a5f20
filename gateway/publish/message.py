"""An execution request as an AMQP message: CloudEvents 1.0 in binary mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
The prefix of the attributes is `ce-`, as over HTTP: CloudEvents names one for AMQP 1.0 only, not for 0-9-1.
"""

import hashlib
import re

from aio_pika import DeliveryMode, Message

from gateway.store.executions import StoredRequest

TYPE = "dev.pushgate.execution.requested.v1"
ROUTING_PREFIX = "execution.requested"
LANE_PREFIX = "lane"

# A routing key is at most 255 bytes, the prefix and two dots are 21: https://www.rabbitmq.com/docs/publishers
_LONGEST_WORD = 117
# With `lane.`, a lane of 32 bytes and its dot: 38 fewer for two words.
_LONGEST_LANE = 32
_LONGEST_IN_A_LANE = 98
# What ends a word of a topic, what stands for other words, and what nobody could type in a binding.
_NOT_IN_A_WORD = re.compile(r"[.*#\s\x00-\x1f\x7f]+")


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
    """Return `execution.requested.<project>.<step or pipeline>`: always four words, of 255 bytes at most.

    For a request of a priority lane, `lane.<lane>.` stands before it, and the last two words are shorter.
    """
    if request.lane is None:
        return f"{ROUTING_PREFIX}.{_word(request.project)}.{_word(request.target)}"
    words = [_word(word, _LONGEST_IN_A_LANE) for word in (request.project, request.target)]
    return ".".join([LANE_PREFIX, _word(request.lane, _LONGEST_LANE), ROUTING_PREFIX, *words])


def traceparent(request: StoredRequest) -> str:
    """Return the W3C trace context: one trace for a delivery, one span for each of its requests.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    trace = hashlib.sha256(request.delivery.encode()).hexdigest()[:32]
    span = hashlib.sha256(request.id.encode()).hexdigest()[:16]
    # Flag 01, "sampled": with 00 most runners would not record their part of the trace at all.
    return f"00-{trace}-{span}-01"


def _word(name: str, longest: int = _LONGEST_WORD) -> str:
    return _NOT_IN_A_WORD.sub("_", name).encode()[:longest].decode(errors="ignore") or "_"
