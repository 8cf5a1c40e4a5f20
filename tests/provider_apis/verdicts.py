"""Verdicts on commits, for the tests of all providers' statuses."""

from itertools import product
from typing import Any, get_args

from gateway.provider_apis.operation import Operation
from gateway.provider_apis.statuses import CommitStatus, StatusApi, StatusMemory, StatusState
from gateway.provider_apis.webhooks import Place

COMMIT = "1f" * 20
STATES: tuple[StatusState, ...] = get_args(StatusState)
ORDERS = tuple(product(STATES, repeat=2))
"""Each state after each other, and after itself, so every re-run after a final state as well."""


def words(**states: list[StatusState]) -> dict[StatusState, str]:
    """Return the provider's word for each state, of the states that each word stands for."""
    return {state: word for word, of_word in states.items() for state in of_word}


def verdict(state: StatusState, context: str = "pushgate/train", **changed: Any) -> CommitStatus:
    """Return a verdict on a commit of the branch `topic/x`."""
    fields = {
        "commit": COMMIT,
        "context": context,
        "state": state,
        "description": f"it is {state}",
        "url": "https://push.example/dashboard/deliveries/d1",
        "ref": "refs/heads/topic/x",
    }
    return CommitStatus(**{**fields, **changed})


def in_turn(api: StatusApi, place: Place, *verdicts: CommitStatus) -> Operation[StatusMemory]:
    """Set the verdicts of one context in turn, as the sender does: the memory goes from each to the next."""
    memory: StatusMemory = {}
    for one in verdicts:
        memory = yield from api.set_status(place, one, memory)
    return memory


def all_orders(api: StatusApi, place: Place, **changed: Any) -> Operation[None]:
    """Set two states in turn in each order, each order in a context of its own."""
    for first, last in ORDERS:
        context = f"pushgate/{first}-{last}"
        yield from in_turn(api, place, *(verdict(state, context, **changed) for state in (first, last)))
