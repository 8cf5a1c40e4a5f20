"""The events: which ends are told, and with which id."""

from dataclasses import replace

import pytest

from gateway.messages.events import DeliveryFailed, Event
from gateway.plan.outcome import event, event_name
from gateway.plan.planner import UpdateFacts
from tests.plan.facts import AFTER, CONNECTION, UPDATE


def failed(update: UpdateFacts = UPDATE, reason: str = "valohai.yaml cannot be read") -> Event:
    """Return the event of a ref update that has failed."""
    return event(
        "delivery.failed", connection=CONNECTION, update=update, state="failed", reason=reason, triggers=()
    )


@pytest.mark.parametrize(
    ("state", "commit", "name"),
    [
        ("planned", AFTER, "push.fetched"),
        ("planned", None, None),
        ("failed", AFTER, "delivery.failed"),
        ("failed", None, "delivery.failed"),
        ("gone", AFTER, "delivery.failed"),
    ],
)
def test_each_end_has_its_event_but_for_a_ref_that_was_deleted(
    state: str, commit: str | None, name: str | None
) -> None:
    """Of a deleted ref nothing is fetched; that it failed is told all the same."""
    assert event_name(state, commit) == name


def test_an_event_says_what_happened_to_which_commit() -> None:
    """The state is part of it, and no field is left out."""
    told = failed()
    assert isinstance(told, DeliveryFailed)
    assert (told.state, told.commit, told.before, told.ref.name) == ("failed", AFTER, UPDATE.before, "main")
    assert set(told.model_dump()) == set(DeliveryFailed.model_fields)


def test_an_events_id_stays_what_it_is() -> None:
    """Consumers drop what they have seen: a release must not give a known event another id."""
    assert failed().id == "10313771-701d-51f4-bb33-9630e1ae2169"


def test_the_same_end_has_the_same_id_and_another_end_has_another() -> None:
    """What is planned again is told again only where it has ended in another way."""
    assert failed(replace(UPDATE, delivery="dl_2")).id == failed().id
    assert failed(reason="trigger train: there is no such step").id != failed().id
    assert failed(replace(UPDATE, generation=4)).id != failed().id
