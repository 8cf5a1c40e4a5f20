"""What commands that follow a gateway share: they go on after an interruption, without a gap."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.cli.api_client import Client, Patience
from gateway.cli.output import err, escape

_POLL_SECONDS = 1.0
_PAGE = 50
# A delivery may become visible a little later than one that was received after it: processes write at once.
_OVERLAP = timedelta(seconds=10)
_EVER = datetime.min.replace(tzinfo=UTC)


def report(sentence: str) -> None:
    """Print that a gateway does not answer, or answers again."""
    err.print(f"[yellow]pushgate:[/yellow] {escape(sentence)}", soft_wrap=True)


def patience_with(client: Client) -> Patience:
    """Return the patience with a gateway that may be starting again."""
    return Patience(f"the gateway at {client.named}", report)


class NewDeliveries:
    """The deliveries of a gateway, or of one of its connections, that arrive from now on."""

    def __init__(self, client: Client, connection: str | None) -> None:
        """Note which deliveries are there already. Raises `ApiError`."""
        self._client = client
        self._connection = connection
        # The ids of those that were received since `_horizon`.
        self._seen: set[str] = set()
        self._horizon: datetime | None = None
        self.look()

    def follow(self, patience: Patience) -> Iterator[list[Any]]:
        """Yield about every second what has arrived since, oldest first: each delivery once."""
        while True:
            yield patience.insist(self.look)
            time.sleep(_POLL_SECONDS)

    def look(self) -> list[Any]:
        """Return what has arrived since the last look, oldest first."""
        seen, horizon = self._seen, self._horizon
        found: list[tuple[datetime, Any]] = []
        for delivery in self._newest():
            received_at = datetime.fromisoformat(delivery["received_at"])
            # The first look notes those that the second one finds again.
            horizon = received_at - _OVERLAP if horizon is None else horizon
            if received_at < horizon:
                break
            found.append((received_at, delivery))
        latest = max((at for at, _ in found), default=None)
        # Without any delivery, all that come are new.
        self._horizon = latest - _OVERLAP if latest is not None else horizon or _EVER
        self._seen = {delivery["id"] for at, delivery in found if at >= self._horizon}
        return [delivery for _, delivery in found[::-1] if delivery["id"] not in seen]

    def _newest(self) -> Iterator[Any]:
        cursor = None
        while True:
            page = self._client.get("/deliveries", connection=self._connection, limit=_PAGE, cursor=cursor)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return
