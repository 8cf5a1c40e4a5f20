"""The encoded AMQP properties, beside those of the library."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from aiormq import spec
from pamqp.header import ContentHeader

from gateway.publish.cloudevents import ContentMode, Stored, content, message
from gateway.publish.properties import EncodedProperties
from tests.publish.outbox import event, request


def decoded(properties: spec.Basic.Properties) -> dict[str, Any]:
    """Return what a consumer reads from encoded properties."""
    header = ContentHeader()
    header.unmarshal(ContentHeader(properties=properties, body_size=1).marshal())
    return dict(header.properties)


@pytest.mark.parametrize("mode", get_args(ContentMode))
@pytest.mark.parametrize("stored", [replace(request("r1"), redrives=1), event("é1", body=b"{}")])
def test_encoded_properties_are_those_of_the_library(stored: Stored, mode: ContentMode) -> None:
    """A consumer decodes the same properties as if the library had encoded them."""
    made = content(stored, public_url="https://push.example", mode=mode)
    expected = message(stored, public_url="https://push.example", mode=mode).properties
    encoded = EncodedProperties(stored, made, mode)
    assert decoded(encoded) == decoded(expected)
    assert encoded.message_id == expected.message_id


def test_a_property_that_is_too_long_is_an_error() -> None:
    """AMQP has one byte for its length, so the rest of the frame would be misread."""
    long = replace(request("r" * 256), body=b"{}")
    with pytest.raises(ValueError, match="range"):
        EncodedProperties(long, content(long, public_url="https://push.example"), "binary")
