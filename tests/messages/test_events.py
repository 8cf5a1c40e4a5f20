"""The events: which outcomes have one, and its id."""

from dataclasses import replace

import pytest

from gateway.messages.events import DeliveryFailed, Event, TriggerFailure
from gateway.plan.outcome import event, event_name
from gateway.plan.planner import UpdateFacts
from tests.plan.facts import AFTER, CONNECTION, UPDATE


def failed(
    update: UpdateFacts = UPDATE, reason: str = "valohai.yaml cannot be read", **failures: str
) -> Event:
    """Return the event of a ref update that has failed."""
    return event(
        "delivery.failed",
        connection=CONNECTION,
        update=update,
        state="failed",
        reason=reason,
        triggers=(),
        failures=tuple(TriggerFailure(trigger=name, reason=why) for name, why in failures.items()),
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
def test_each_outcome_has_its_event_except_for_a_deleted_ref(
    state: str, commit: str | None, name: str | None
) -> None:
    """Nothing is fetched for a deleted ref, but a failure has an event all the same."""
    assert event_name(state, commit) == name


def test_an_event_contains_the_outcome_and_the_commit() -> None:
    """The state is part of it, and no field is missing."""
    published = failed()
    assert isinstance(published, DeliveryFailed)
    assert (published.state, published.commit, published.before, published.ref.name) == (
        "failed",
        AFTER,
        UPDATE.before,
        "main",
    )
    assert set(published.model_dump()) == set(DeliveryFailed.model_fields)


def test_an_events_id_is_stable() -> None:
    """Consumers drop ids that they have seen, so a release must not give a known event another id."""
    assert failed().id == "10313771-701d-51f4-bb33-9630e1ae2169"


def test_equal_outcomes_have_the_same_id_and_others_have_others() -> None:
    """A push that is planned again has another event only if its outcome differs."""
    assert failed(replace(UPDATE, delivery="dl_2")).id == failed().id
    assert failed(reason="trigger train: there is no such step").id != failed().id
    assert failed(replace(UPDATE, generation=4)).id != failed().id
    ids = {failed(train="no such step").id, failed(test="no such step").id, failed(train="no image").id}
    assert len({failed().id, *ids}) == 4


def test_a_failure_names_the_triggers_that_made_no_request() -> None:
    """Each with its own reason, so that nobody has to parse the sentence of the whole."""
    published = failed(train="no such step", test="no image")
    assert isinstance(published, DeliveryFailed)
    assert [failure.model_dump() for failure in published.failures] == [
        {"trigger": "train", "reason": "no such step"},
        {"trigger": "test", "reason": "no image"},
    ]
