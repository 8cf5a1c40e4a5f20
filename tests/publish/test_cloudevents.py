"""The message made from a request."""

import json
import re
from dataclasses import replace
from typing import get_args

import pytest
from aio_pika import Message
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages.events import EVENTS
from gateway.messages.execution_request import TYPE
from gateway.messages.names import EXECUTION_REQUESTED, EventName, message_type
from gateway.publish.cloudevents import ContentMode, Stored, message, routing_key, traceparent
from testing.npm import installed, run_node
from tests.publish.outbox import PLANNED_AT, event, request

READ_IN_JAVASCRIPT = """
import { createRequire } from "node:module";
const require = createRequire(process.argv[1] + "/");
const { HTTP } = require("cloudevents");
let input = "";
for await (const chunk of process.stdin) input += chunk;
const events = JSON.parse(input).map((message) => HTTP.toEvent(message));
for (const event of events) event.validate();
console.log(JSON.stringify(events));
"""


def test_the_types_are_those_of_the_wire_contract() -> None:
    """Each event name has a model, and each message has the type made of its name."""
    assert TYPE == message_type(EXECUTION_REQUESTED) == "dev.pushgate.execution.requested.v1"
    assert get_args(EventName) == tuple(EVENTS)
    for name in EVENTS:
        assert message(event(name=name), public_url="https://push.example").type == message_type(name)


def read_by_cloudevents(made: Message) -> CloudEvent:
    """Return the event as CloudEvents' own library reads the message."""
    headers = {name: str(value) for name, value in made.headers.items()}
    taken = RabbitMQMessage(headers=headers, content_type=made.content_type, body=made.body)
    read = from_rabbitmq_event(taken)
    assert isinstance(read, CloudEvent)
    return read


@pytest.mark.parametrize("mode", get_args(ContentMode))
@pytest.mark.parametrize(
    ("stored", "kind", "schema"),
    [
        (request("1"), "execution.requested", "execution-request-1.3"),
        (event("1"), "push.fetched", "push-fetched-1.0"),
        (event("1", name="delivery.failed"), "delivery.failed", "delivery-failed-1.0"),
    ],
)
def test_a_peers_library_reads_every_message_in_both_modes(
    stored: Stored, kind: str, schema: str, mode: ContentMode
) -> None:
    """The library of CloudEvents itself finds the same attributes and the same data."""
    stored = replace(stored, body=b'{"project": "digits"}')
    made = message(stored, public_url="https://push.example", mode=mode)
    read = read_by_cloudevents(made)
    assert read.get_type() == f"dev.pushgate.{kind}.v1" == made.type
    assert read.get_id() == "1" == made.message_id
    assert read.get_source() == "https://push.example/api/v1/connections/c1"
    assert read.get_subject() == stored.subject
    assert read.get_time() == PLANNED_AT == made.timestamp
    assert read.get_dataschema() == f"https://pushgate.dev/schemas/{schema}.json"
    assert read.get_datacontenttype() == "application/json"
    assert read.get_data() == {"project": "digits"}
    assert (made.correlation_id, made.app_id, made.delivery_mode) == ("delivery of 1", "pushgate", 2)
    assert read.get_attributes()["traceparent"] == traceparent(stored) == made.headers["traceparent"]


def test_the_javascript_library_reads_messages_in_both_modes(pytestconfig: pytest.Config) -> None:
    """It has no binding for AMQP; the headers have the names of its binding for HTTP."""
    assert pytestconfig.cache is not None
    stored = replace(request("1"), body=b'{"project": "digits"}')
    made = [message(stored, public_url="https://push.example", mode=mode) for mode in get_args(ContentMode)]
    given = [
        {"headers": {**one.headers, "content-type": one.content_type}, "body": one.body.decode()}
        for one in made
    ]
    found = run_node(
        READ_IN_JAVASCRIPT, str(installed(pytestconfig.cache, "cloudevents@10.0.0")), stdin=given
    )
    for read in found:
        assert read["id"] == "1"
        assert read["type"] == TYPE
        assert read["source"] == "https://push.example/api/v1/connections/c1"
        assert read["dataschema"].endswith("/execution-request-1.3.json")
        assert read["partitionkey"] == "c1"
        assert read["data"] == {"project": "digits"}
    assert len(found) == 2


def test_in_structured_mode_the_body_is_the_envelope() -> None:
    """The data is embedded unchanged; the hash key and the trace are also headers."""
    made = message(request("1"), public_url="https://push.example", mode="structured")
    assert made.content_type == "application/cloudevents+json"
    assert made.headers == {"ce-partitionkey": "c1", "traceparent": traceparent(request("1"))}
    assert json.loads(made.body) == {
        "specversion": "1.0",
        "id": "1",
        "source": "https://push.example/api/v1/connections/c1",
        "type": "dev.pushgate.execution.requested.v1",
        "subject": "train at 1234567",
        "time": "2026-11-23T09:00:00+00:00",
        "dataschema": "https://pushgate.dev/schemas/execution-request-1.3.json",
        "partitionkey": "c1",
        "datacontenttype": "application/json",
        "traceparent": traceparent(request("1")),
        "data": 1,
    }


@pytest.mark.parametrize("mode", get_args(ContentMode))
def test_a_redrive_is_marked_and_counted(mode: ContentMode) -> None:
    """By an extension attribute, in a message that is otherwise the same; the first message has none."""
    stored = replace(request("1"), body=b"{}")
    first = message(stored, public_url="https://push.example", mode=mode)
    again = message(replace(stored, redrives=2), public_url="https://push.example", mode=mode)
    assert "redrive" not in read_by_cloudevents(first).get_attributes()
    assert int(read_by_cloudevents(again).get_attributes()["redrive"]) == 2
    assert again.message_id == first.message_id
    if mode == "binary":
        assert again.headers == {**first.headers, "ce-redrive": "2"}
    else:
        assert json.loads(again.body) == {**json.loads(first.body), "redrive": 2}


def test_an_event_is_routed_by_its_name_and_project() -> None:
    """A queue bound to its name receives it, a queue bound to requests does not."""
    assert routing_key(event(name="delivery.failed", project="my digits")) == "delivery.failed.my_digits"


def test_a_request_is_a_cloudevent_in_binary_mode() -> None:
    """Every attribute of CloudEvents 1.0 is a header, and also an AMQP property if one matches."""
    made = message(request("r1"), public_url="https://push.example")
    assert made.headers == {
        "ce-specversion": "1.0",
        "ce-id": "r1",
        "ce-source": "https://push.example/api/v1/connections/c1",
        "ce-type": "dev.pushgate.execution.requested.v1",
        "ce-subject": "train at 1234567",
        "ce-time": "2026-11-23T09:00:00+00:00",
        "ce-dataschema": "https://pushgate.dev/schemas/execution-request-1.3.json",
        "ce-partitionkey": "c1",
        "ce-traceparent": traceparent(request("r1")),
        "traceparent": traceparent(request("r1")),
    }
    assert (made.message_id, made.type, made.correlation_id) == ("r1", TYPE, "delivery of r1")
    assert (made.app_id, made.content_type, made.delivery_mode) == ("pushgate", "application/json", 2)
    assert (made.timestamp, made.body) == (PLANNED_AT, b"r1")


def test_the_trace_is_the_delivery_s_and_always_the_same() -> None:
    """W3C: version, 16 bytes of trace, 8 of span, flags; a repetition belongs to the same span."""
    first = traceparent(request("r1"))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", first)
    assert first == traceparent(request("r1"))
    assert first != traceparent(request("r2"))


def test_a_routing_key_names_project_and_step() -> None:
    """Dots and wildcards in them are escaped, so that each stays one word."""
    assert routing_key(request(project="digits")) == "execution.requested.digits.train"
    assert routing_key(request(project="org/my digits.*#")) == "execution.requested.org/my_digits_.train"


@given(project=st.text(), repeats=st.integers(1, 400))
def test_any_project_gives_four_words_of_255_bytes_at_most(project: str, repeats: int) -> None:
    """AMQP's short strings end at 255 bytes, and a binding to `execution.requested.*.train` fits them all."""
    key = routing_key(request(project=project * repeats))
    assert len(key.encode()) <= 255
    words = key.split(".")
    assert len(words) == 4
    assert all(words)
    assert words[3] == "train"
    assert not re.search(r"[*#\s\x00]", key)


LONG = "é" * 400


def test_a_routing_key_uses_the_255_bytes_that_there_are() -> None:
    """Long names with the same beginning stay distinct as far as AMQP allows; no character is split."""
    plain = routing_key(replace(request(project="x" * 400), target="y" * 400))
    assert plain == f"execution.requested.{'x' * 117}.{'y' * 117}"
    assert len(plain) == 255
    in_a_lane = routing_key(replace(request(project="x" * 400), target="y" * 400, lane="z" * 400))
    assert in_a_lane == f"lane.{'z' * 32}.execution.requested.{'x' * 98}.{'y' * 98}"
    assert len(in_a_lane) == 255
    assert routing_key(replace(request(project=LONG), target=LONG)) == (
        f"execution.requested.{'é' * 58}.{'é' * 58}"
    )
    assert routing_key(request(project="")) == "execution.requested._.train"
