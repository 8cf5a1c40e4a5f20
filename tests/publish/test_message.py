"""The message that is made of a request."""

import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.plan.request import TYPE as PLANNED_TYPE
from gateway.publish.message import TYPE, message, routing_key, traceparent
from tests.publish.outbox import PLANNED_AT, request


def test_the_type_is_the_one_of_the_wire_contract() -> None:
    """Publish does not import plan, so each names the type."""
    assert TYPE == PLANNED_TYPE


def test_a_request_is_a_cloudevent_in_binary_mode() -> None:
    """Every attribute of CloudEvents 1.0 is a header, and what AMQP has a property for is there as well."""
    made = message(request("r1"), public_url="https://push.example")
    assert made.headers == {
        "ce-specversion": "1.0",
        "ce-id": "r1",
        "ce-source": "https://push.example/api/v1/connections/c1",
        "ce-type": "dev.pushgate.execution.requested.v1",
        "ce-subject": "train at 1234567",
        "ce-time": "2026-11-23T09:00:00+00:00",
        "ce-dataschema": "https://push.example/schemas/execution-request.json",
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
    """What would be another word of the topic, or a wildcard, is made part of the word."""
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
