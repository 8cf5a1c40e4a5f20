"""Execution requests and events as AMQP messages: CloudEvents 1.0, in binary or structured mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
CloudEvents itself defines a binding for AMQP 1.0 only. The binding for 0-9-1 prefixes attributes with `ce-`:
https://github.com/knative-extensions/eventing-rabbitmq/blob/main/cloudevents-protocol-spec/spec.md
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from aio_pika import DeliveryMode, Message

from gateway.messages.execution_request import TYPE
from gateway.messages.names import (
    EVENT_VERSION,
    EXECUTION_REQUEST_SCHEMA,
    EXECUTION_REQUEST_VERSION,
    EXECUTION_REQUESTED,
    LANE_PREFIX,
    MAX_LANE_LENGTH,
    message_type,
    schema_id,
    schema_name,
)
from gateway.store.events import StoredEvent
from gateway.store.executions import StoredRequest
from gateway.tracing import spans
from gateway.tracing.ids import span_of_message, trace_of

Stored: TypeAlias = StoredRequest | StoredEvent
"""A stored message that is to be published."""

ContentMode = Literal["binary", "structured"]
"""Binary: the attributes are headers. Structured: the body is an envelope that holds attributes and data."""

CONTENT_TYPES: Mapping[ContentMode, str] = {
    "binary": "application/json",
    "structured": "application/cloudevents+json",
}
# A broker can partition by this header, which keeps a connection's requests together:
# https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/partitioning.md
PARTITION_HEADER = "ce-partitionkey"
APP_ID = "pushgate"
REDRIVE = "redrive"
"""An extension attribute: how often an operator has republished the request. The first message has none."""
_TRACE = "traceparent"

# A routing key is at most 255 bytes, the prefix and two dots are 21: https://www.rabbitmq.com/docs/publishers
_MAX_WORD_LENGTH = 117
# `lane.`, a lane of 32 bytes and its dot take 38 bytes from the two words.
_MAX_WORD_LENGTH_IN_A_LANE = 98
# Characters that end a word of a topic, act as wildcards, or cannot be typed in a binding.
_NOT_IN_A_WORD = re.compile(r"[.*#\s\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a message: the same for the same stored record, at any time and in any process."""

    kind: str
    moment: datetime
    headers: dict[str, str]
    body: bytes


def content(stored: Stored, *, public_url: str, mode: ContentMode = "binary") -> Content:
    """Return the content of the message."""
    if isinstance(stored, StoredEvent):
        kind, moment = message_type(stored.name), stored.settled_at
        schema = schema_id(schema_name(stored.name), EVENT_VERSION)
    else:
        kind, moment = TYPE, stored.planned_at
        schema = schema_id(EXECUTION_REQUEST_SCHEMA, EXECUTION_REQUEST_VERSION)
    attributes: dict[str, str | int] = {
        "specversion": "1.0",
        "id": stored.id,
        "source": f"{public_url}/api/v1/connections/{stored.connection}",
        "type": kind,
        "subject": stored.subject,
        "time": moment.isoformat(),
        "dataschema": schema,
        "partitionkey": stored.connection,
        _TRACE: traceparent(stored),
    }
    if isinstance(stored, StoredRequest) and stored.redrives:
        attributes[REDRIVE] = stored.redrives
    return Content(kind, moment, *_encoded(stored, attributes, mode))


def message(stored: Stored, *, public_url: str, mode: ContentMode = "binary") -> Message:
    """Return the message as an object of the library, for documents; `EncodedProperties` are faster."""
    made = content(stored, public_url=public_url, mode=mode)
    return Message(
        made.body,
        message_id=stored.id,
        correlation_id=stored.delivery,
        type=made.kind,
        app_id=APP_ID,
        content_type=CONTENT_TYPES[mode],
        delivery_mode=DeliveryMode.PERSISTENT,
        timestamp=made.moment,
        headers=dict(made.headers),
    )


def _encoded(
    stored: Stored, attributes: Mapping[str, str | int], mode: ContentMode
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a message."""
    # Tracing libraries read the header `traceparent`; libraries of CloudEvents read attributes only:
    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md
    trace = {_TRACE: str(attributes[_TRACE])}
    if mode == "binary":
        # In a header, an integer is a string: "Type System" in the specification.
        return {f"ce-{name}": str(value) for name, value in attributes.items()} | trace, stored.body
    envelope = {**attributes, "datacontenttype": CONTENT_TYPES["binary"]}
    # The data is JSON already, so it is embedded as it is:
    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
    body = json.dumps(envelope).encode()[:-1] + b', "data": ' + stored.body + b"}"
    return {PARTITION_HEADER: stored.connection} | trace, body


def routing_key(stored: Stored) -> str:
    """Return `execution.requested.<project>.<step or pipeline>`: four words, at most 255 bytes.

    A request of a priority lane is prefixed with `lane.<lane>.`, and its last two words are cut shorter. The
    key of an event is its name and the project: `push.fetched.digits`.
    """
    if isinstance(stored, StoredEvent):
        return f"{stored.name}.{_word(stored.project)}"
    if stored.lane is None:
        return f"{EXECUTION_REQUESTED}.{_word(stored.project)}.{_word(stored.target)}"
    words = [_word(word, _MAX_WORD_LENGTH_IN_A_LANE) for word in (stored.project, stored.target)]
    return ".".join([LANE_PREFIX, _word(stored.lane, MAX_LANE_LENGTH), EXECUTION_REQUESTED, *words])


def traceparent(stored: Stored) -> str:
    """Return the W3C trace context: one trace for a delivery, one span for each message.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    trace = trace_of(stored.delivery)
    # Flag 01 is "sampled": with 00, most runners do not record their part of the trace.
    return f"00-{trace}-{span_of(stored)}-{spans.is_sampled(trace):02x}"


def span_of(stored: Stored) -> str:
    """Return the id of the span that publishes a message; if spans are recorded, each redrive has its own."""
    redrives = stored.redrives if isinstance(stored, StoredRequest) and spans.is_on() else 0
    return span_of_message(stored.id, redrives)


def _word(name: str, longest: int = _MAX_WORD_LENGTH) -> str:
    return _NOT_IN_A_WORD.sub("_", name).encode()[:longest].decode(errors="ignore") or "_"
