"""The REST API under /api/v1: messages that nobody could deliver, in the store and at the broker.

A request that the broker refuses permanently stays in the store as `undeliverable`. A message that a runner
rejects, or fails to acknowledge too often, waits at the broker, in the queue of dead letters.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
import structlog
from pydantic import Field
from starlette.requests import Request

from gateway.api.endpoints import read
from gateway.api.executions import Executions
from gateway.api.openapi import Operation
from gateway.api.schemas import RequestBody
from gateway.api.views import ExecutionSummary, View
from gateway.errors import NotFound, PublishError, PushgateError, SettingError
from gateway.publish.brokers import Brokers
from gateway.publish.dead_letters import (
    MAX_READ,
    DeadLetter,
    count_dead_letters,
    read_dead_letters,
    remove_dead_letters,
)
from gateway.publish.topology import Topology
from gateway.store import undelivered
from gateway.store.executions import StoredRequest

log = structlog.get_logger()

# https://www.rabbitmq.com/docs/dlx#effects
_CAUSES: Mapping[str, str] = {
    "rejected": "a runner rejected it",
    "delivery_limit": "runners took it too often without acknowledging it",
    "expired": "its time to live ended",
    "maxlen": "the queue was full",
}


class DeadLetterView(View):
    """A message that nobody could deliver."""

    id: str = Field(description="the id of the message: that of the execution request, if it is one")
    reason: str = Field(description="why nobody could deliver it, in a sentence for people")
    since: datetime | None = Field(description="since when; null if the broker does not say")
    is_at_broker: bool = Field(
        description="whether it waits in the broker's queue of dead letters; otherwise the broker refuses it"
    )
    execution: ExecutionSummary | None = Field(
        description="the execution request; null for another message, and for one that is no longer stored"
    )


class DeadLetterListing(View):
    """The dead letters, the oldest first: up to 200 of those at the broker, and 200 others.

    There are no pages, because a queue can be read only from its beginning: what is put back or dropped makes
    room for others.
    """

    items: list[DeadLetterView] = Field(description="those that the broker refuses, and those at the broker")
    at_broker: int | None = Field(
        description="how many wait at the broker; null without a broker, and if it does not answer"
    )
    problem: str | None = Field(
        description="why those at the broker are missing here; null if they are not missing"
    )


class DeadLetterIds(RequestBody):
    """Which dead letters."""

    ids: list[str] = Field(
        min_length=1, max_length=MAX_READ, description="the ids of up to 200 dead letters", examples=[["…"]]
    )


class FailureView(View):
    """Why nothing was done about a dead letter."""

    id: str = Field(description="its id")
    reason: str = Field(description="why, in a sentence for people")


class DeadLettersDone(View):
    """What was done about dead letters."""

    done: list[str] = Field(description="the ids of those about which it was done")
    failed: list[FailureView] = Field(description="the others")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """The endpoints for dead letters. `brokers` returns None without a broker, and raises `SettingError`."""

    executions: Executions
    brokers: Callable[[], Brokers | None]
    topology: Topology

    def operations(self) -> list[Operation]:
        """Return the operations on dead letters."""
        path = "/dead-letters"
        return [
            Operation(method="GET", path=path, endpoint=self.list_dead_letters),
            Operation(
                method="POST",
                path=f"{path}/put-back",
                endpoint=self.put_back_dead_letters,
                body=DeadLetterIds,
            ),
            Operation(
                method="POST", path=f"{path}/drop", endpoint=self.drop_dead_letters, body=DeadLetterIds
            ),
        ]

    async def list_dead_letters(self, _request: Request) -> DeadLetterListing:
        """`GET /dead-letters`: list the messages that nobody could deliver, the oldest first."""
        letters, count, problem = await self._at_broker()
        refused, known = await self.executions.database.read(_stored, [letter.id for letter in letters])
        views = [_of_refused(stored) for stored in refused]
        views += [_of_letter(letter, known.get(letter.id)) for letter in letters]
        return DeadLetterListing(items=views, at_broker=count, problem=problem)

    async def count_at_broker(self) -> int | None:
        """Return how many dead letters wait at the broker; None without one, or if it does not answer."""
        try:
            brokers = self.brokers()
            return None if brokers is None else await count_dead_letters(brokers, self.topology)
        except (PublishError, SettingError):
            # The relay logs and shows what is wrong with the broker.
            return None

    async def put_back_dead_letters(self, request: Request) -> DeadLettersDone:
        """`POST /dead-letters/put-back`: publish execution requests again, with the same ids.

        Each gets a new URL for its package, and is then no dead letter any more.
        """
        body = await read(request, DeadLetterIds)
        return await self.put_back(body.ids)

    async def drop_dead_letters(self, request: Request) -> DeadLettersDone:
        """`POST /dead-letters/drop`: give dead letters up, for good."""
        body = await read(request, DeadLetterIds)
        return await self.drop(body.ids)

    async def put_back(self, ids: Collection[str]) -> DeadLettersDone:
        """Publish execution requests again, and remove their dead letters."""
        began_at = datetime.now(UTC)
        done = await _each(ids, self.executions.republish)
        # In this order, so that nothing is lost: a message that is published twice has the same id.
        try:
            await self._remove(done.done, before=began_at)
        except (PublishError, SettingError) as error:
            reason = f"it is published again, but its dead letter was not removed: {error}"
            return DeadLettersDone(
                done=[], failed=[*done.failed, *(FailureView(id=one, reason=reason) for one in done.done)]
            )
        log.info("dead letters put back", ids=done.done)
        return done

    async def drop(self, ids: Collection[str]) -> DeadLettersDone:
        """Remove dead letters from the broker, and give undeliverable requests up."""
        problem = "no dead letter has this id"
        try:
            removed = await self._remove(ids, before=datetime.now(UTC))
        except (PublishError, SettingError) as error:
            removed, problem = set(), str(error)
        refused, _ = await self.executions.database.read(_stored, [])
        undeliverable = {stored.id for stored in refused} & set(ids)
        given_up = await _each(sorted(undeliverable), self.executions.drop)
        done = [one for one in ids if one in removed or one in given_up.done]
        missing = [one for one in ids if one not in removed and one not in undeliverable]
        log.info("dead letters dropped", ids=done)
        return DeadLettersDone(
            done=done, failed=[*given_up.failed, *(FailureView(id=one, reason=problem) for one in missing)]
        )

    async def _at_broker(self) -> tuple[Sequence[DeadLetter], int | None, str | None]:
        """Return the dead letters at the broker, their number, and why that is not known."""
        try:
            brokers = self.brokers()
            if brokers is None:
                return (), None, None
            letters, count = await read_dead_letters(brokers, self.topology)
        except (PublishError, SettingError) as error:
            return (), None, str(error)
        return letters, count, None

    async def _remove(self, ids: Collection[str], *, before: datetime) -> set[str]:
        brokers = self.brokers()
        if brokers is None or not ids:
            return set()
        return await remove_dead_letters(brokers, self.topology, ids, before=before)


async def _each(ids: Collection[str], act: Callable[[str], Awaitable[StoredRequest]]) -> DeadLettersDone:
    """Do something about each execution request, and return about which it was done."""
    done, failed = [], []
    for one in dict.fromkeys(ids):
        try:
            await act(one)
        except NotFound:
            reason = "it is no execution request that is still stored: it can only be dropped"
            failed.append(FailureView(id=one, reason=reason))
        except PushgateError as error:
            failed.append(FailureView(id=one, reason=str(error)))
        else:
            done.append(one)
    return DeadLettersDone(done=done, failed=failed)


def _stored(
    conn: sqlalchemy.Connection, ids: Sequence[str]
) -> tuple[list[StoredRequest], dict[str, StoredRequest]]:
    """Return the undeliverable requests, the oldest first, and those with these ids."""
    return undelivered.undeliverable(conn, limit=MAX_READ), undelivered.named(conn, ids)


def _of_refused(stored: StoredRequest) -> DeadLetterView:
    return DeadLetterView(
        id=stored.id,
        reason=stored.reason or "the broker refuses it",
        since=stored.republished_at or stored.planned_at,
        is_at_broker=False,
        execution=ExecutionSummary.summary_of(stored),
    )


def _of_letter(letter: DeadLetter, stored: StoredRequest | None) -> DeadLetterView:
    cause = _CAUSES.get(letter.cause or "", f"the broker says {letter.cause or 'nothing'}")
    times = f", {letter.count} times" if letter.count > 1 else ""
    where = f" ({letter.queue})" if letter.queue else ""
    return DeadLetterView(
        id=letter.id,
        reason=f"{cause}{times}{where}",
        since=letter.since,
        is_at_broker=True,
        execution=None if stored is None else ExecutionSummary.summary_of(stored),
    )
