"""What the API shows of the looks at a connection's remote."""

from datetime import datetime, timedelta

import pytest

from gateway.api.connection_views import RemoteView
from gateway.store.reconciliations import ReconciliationState
from testing.records import NOW

ASKED = NOW - timedelta(seconds=3)
BEFORE = NOW - timedelta(hours=1)
DENIED = "the remote cannot be fetched: access was denied (git: fatal: …)"


@pytest.mark.parametrize(
    ("due_in", "tried_at", "reason", "expected"),
    [
        (-3, None, None, (None, "no worker has begun to read it")),
        (-3, BEFORE, DENIED, (None, "no worker has begun to read it")),
        (900, BEFORE, None, (None, "the host has not answered a worker yet after 3 s")),
        (15, ASKED, DENIED, (False, DENIED)),
        (300, NOW, None, (True, None)),
    ],
)
def test_a_check_shows_no_older_look(
    due_in: int, tried_at: datetime | None, reason: str | None, expected: tuple[bool | None, str | None]
) -> None:
    """Until the requested look has ended, the state is unknown, with the reason and what to do."""
    state = ReconciliationState(
        due_at=NOW + timedelta(seconds=due_in),
        tried_at=tried_at,
        reconciled_at=None,
        delivery=None,
        reason=reason,
    )
    shown = RemoteView.of(state, "ssh key", now=NOW, since=ASKED)
    assert (shown.readable, shown.reason) == expected
    assert (shown.repair is None) == (shown.readable is True)
    assert shown.checked_at == (None if shown.readable is None else tried_at)
