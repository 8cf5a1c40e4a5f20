"""The reconciler: compares the remote's refs with what was delivered, and recovers missed pushes.

Webhooks get lost: providers drop them for more than three tags in one push or for a payload that is too
large, and Pushgate may be down. A reconciliation records what it finds as a delivery of its own, which is
then handled like any other. A second look, to confirm the first, is scheduled; no task waits for it.
"""

import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import structlog

from gateway.backoff import backoff
from gateway.errors import FetchError, NotFound, StoreUnavailable
from gateway.metrics import RECONCILIATION_SECONDS
from gateway.store import connections, looks, reconciliations
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.notify import Waiter
from gateway.store.reconciliations import Reconciliation
from gateway.tracing import attributes, spans
from gateway.tracing.spans import SpanIds
from gateway.worker.polling import PAUSE_SECONDS, poll, work_on
from providers.errors import Malformed
from providers.model import RefUpdate
from providers.normalize import ref_update

log = structlog.get_logger()

# A reconciliation that has not ended by then belongs to a process that died.
_LEASE = timedelta(minutes=15)
_FIRST_DELAY = 15.0
_MAX_DELAY = 3600.0
_PEELED = "^{}"


class Remotes(Protocol):
    """Reads the refs of remotes."""

    async def refs(self, connection: Connection) -> dict[str, str]:
        """Return the remote's branches and tags with their ids. Raises `FetchError`."""

    async def default_branch(self, connection: Connection) -> str | None:
        """Return the short name of the remote's default branch, if it has one. Raises `FetchError`."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    """Reconciles each connection every `every` seconds, less often if webhooks report every move.

    A second look confirms an undelivered move after `grace` seconds, because its webhook may be on its way,
    or the remote may be a lagging replica; 0 disables the second look. Any number of reconcilers may run side
    by side. Together with the workers they use at most `per_host` connections to a git host; 0 is no limit.
    `notify` is called after missed pushes were recovered.
    """

    database: Database
    remotes: Remotes
    wakeups: Waiter
    notify: Callable[[], None]
    every: float
    grace: float
    per_host: int
    clock: Callable[[], datetime] = _now

    async def run(self) -> None:
        """Reconcile until cancelled. Record failures on the connection, and go on."""
        failure = "the reconciler failed"
        await poll(self.reconcile_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def reconcile_next(self) -> bool:
        """Do the next due reconciliation, if there is one; return whether there was."""
        return await work_on(self._claim(), self._reconcile, self._give_back)

    async def _claim(self) -> Reconciliation | None:
        now = self.clock()
        longest = _LEASE + max(
            timedelta(seconds=_MAX_DELAY * 1.5),
            timedelta(seconds=self.every * looks.MAX_INTERVAL_FACTOR * 1.1),
        )
        limits: dict[str, Any] = {"now": now, "longest": longest, "per_host": self.per_host}
        if not await self.database.read(reconciliations.is_due, **limits):
            return None
        return await self.database.write(partial(reconciliations.claim, until=now + _LEASE, **limits))

    async def _reconcile(self, reconciliation: Reconciliation) -> None:
        began_at, outcome = time.monotonic(), "failed"
        try:
            connection = await self.database.read(connections.get, connection_id=reconciliation.connection)
            receipt = await self._compare(connection, reconciliation)
        except NotFound:
            return  # the connection was deleted meanwhile
        except FetchError as error:
            await self._fail(reconciliation, str(error))
        except StoreUnavailable:
            raise
        except Exception as error:
            # A bug of ours or of a library: users see it on the connection, not only in the log.
            log.exception("reconciliation failed", connection=reconciliation.connection)
            await self._fail(reconciliation, f"internal error ({type(error).__name__}): see the log")
        else:
            outcome = "agrees"
            if receipt is not None and receipt.verdict == "accepted":
                outcome = "recovered"
                log.info(
                    "missed pushes recovered", connection=reconciliation.connection, delivery=receipt.delivery
                )
                self.notify()
        RECONCILIATION_SECONDS.labels(outcome).observe(time.monotonic() - began_at)

    async def _give_back(self, reconciliation: Reconciliation) -> None:
        await self.database.write(reconciliations.give_back, reconciliation, now=self.clock())

    async def _fail(self, reconciliation: Reconciliation, reason: str) -> None:
        delay = backoff(reconciliation.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        next_at = self.clock() + timedelta(seconds=delay)
        log.warning(
            "reconciliation failed",
            connection=reconciliation.connection,
            next_try_at=next_at.isoformat(),
            reason=reason,
        )
        await self.database.write(
            reconciliations.fail, reconciliation=reconciliation, reason=reason, next_at=next_at
        )

    async def _compare(self, connection: Connection, reconciliation: Reconciliation) -> Receipt | None:
        started_ns = time.time_ns()
        known = await self.database.read(reconciliations.known_refs, connection=connection.id)
        remote = await self.remotes.refs(connection)
        if not remote and any(known.values()):
            raise FetchError(
                "the remote shows no branches or tags at all; ignored, because that may be a fault"
            )
        branch = await self._default_branch(connection, reconciliation)
        moves = differences(known, remote)
        moved = {move.ref for move in moves}
        now = self.clock()
        ending = partial(
            looks.record,
            reconciliation=reconciliation,
            new=_delivery_of(moves, connection=connection.id, now=now),
            next_at=now + timedelta(seconds=self.every * random.uniform(0.9, 1.1)),  # noqa: S311 - spreads
            look_again_at=now + timedelta(seconds=self.grace) if self.grace else None,
            agreeing={
                ref: position
                for ref, position in known.items()
                if ref not in moved and not ref.startswith("refs/pull/")
            },
            default_branch=branch,
        )
        receipt = await self.database.write(ending)
        if receipt is not None:
            spans.record(
                "reconcile",
                SpanIds.root(receipt.delivery),
                started_ns=started_ns,
                attributes=attributes.of_repository(provider=connection.provider, url=connection.url),
            )
        return receipt

    async def _default_branch(self, connection: Connection, reconciliation: Reconciliation) -> str | None:
        """Return the remote's default branch if a user waits for this look; reading it takes another git."""
        is_for_user = reconciliation.asked and reconciliation.asked_by is None
        if not (reconciliation.is_first or is_for_user):
            return None
        with suppress(FetchError):  # its refs were read, which is what counts
            return await self.remotes.default_branch(connection)
        return None


def _delivery_of(moves: tuple[RefUpdate, ...], *, connection: str, now: datetime) -> NewDelivery:
    """Return the delivery that records the moves."""
    body = {"updates": [{"ref": move.ref, "before": move.before, "after": move.after} for move in moves]}
    return NewDelivery(
        id=delivery_id(now),
        connection=connection,
        source="reconciliation",
        event="reconciliation",
        provider_delivery_id=None,
        received_at=now,
        verdict="accepted",
        reason=None,
        pusher=None,
        repository=None,
        headers={},
        secret=None,
        body=json.dumps(body).encode(),
        updates=moves,
    )


def differences(known: Mapping[str, str | None], remote: Mapping[str, str]) -> tuple[RefUpdate, ...]:
    """Return the moves that lead from the `known` refs to those of the remote."""
    moves: list[RefUpdate] = []
    for ref in sorted(known.keys() | remote.keys()):
        before, after, peeled = known.get(ref), remote.get(ref), remote.get(ref + _PEELED)
        # Bitbucket Cloud reports the commit of an annotated tag, not the tag object.
        if ref.endswith(_PEELED) or before == after or (before is not None and before == peeled):
            continue
        try:
            move = ref_update(ref=ref, before=before, after=after, peeled=peeled)
        except Malformed as error:
            log.warning("ignored a ref with a name that git does not allow", reason=str(error))
            continue
        if move is not None:
            moves.append(move)
    return tuple(moves)
