"""Observes what people want to be told, and puts it into the outbox when it changes."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import sqlalchemy

from gateway.errors import BrokerUnavailable, NotFound, PublishError
from gateway.logs import Condition
from gateway.plan.globs import matches
from gateway.store import connections, notification_channels, notification_states, reconciliations
from gateway.store.connection_facts import facts
from gateway.store.connections import Connection
from gateway.store.database import Database, Lock
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.notification_channels import Channel
from gateway.store.notification_states import Observed, Result, State, Told, What, key_of, run_key
from gateway.store.notify import Subscription
from gateway.worker.connection_health import Finding, access_of, health
from gateway.worker.notification_texts import Body, of_condition, of_dead_letters, of_result
from gateway.worker.polling import poll

_SECONDS = 10.0
# Where a host is down, its thousands of connections are told in several turns.
_MAX_CONDITIONS = 200
_FINDINGS: Mapping[What, tuple[str, ...]] = {
    "webhook-silent": ("silence",),
    "remote-refuses": ("remote", "identity"),
}
# A user of the broker without this right, or an operator's own topology without the queue.
_UNCOUNTED = Condition("nobody is notified of dead letters", every=3600.0)
_UNKNOWN = Finding(what="remote", state="failing", reason="Its provider refuses Pushgate.", repair="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What has changed: the states that begin or change, the keys of those that end, and what to say."""

    begun: list[State] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationObserver:
    """Observes runs, the conditions of connections, and dead letters. One process leads.

    `count_dead_letters` is None without a broker; `dead_queue` is the name of their queue. The pages of
    the dashboard begin with `base_url`.
    """

    database: Database
    count_dead_letters: Callable[[], Awaitable[int]] | None
    dead_queue: str
    base_url: str

    async def run(self) -> None:
        """Observe until cancelled."""
        failure = "observing what to notify of failed"
        await poll(self.observe, wakeups=Subscription(), failure=failure, seconds=_SECONDS)

    async def observe(self) -> bool:
        """Observe once; return whether there may be more at once."""
        if not await self.database.is_leader(Lock.NOTIFICATIONS, for_seconds=TAKE_OVER_SECONDS):
            return False
        channels = await self.database.read(notification_channels.page)
        now, cursor = datetime.now(UTC), await self.database.read(notification_states.cursor)
        if not channels:
            if cursor is not None:
                await self.database.write(notification_states.forget)
            return False
        letters = await self._letters()
        if cursor is None:
            await self.database.write(self._begin, letters=letters, now=now)
            return False
        observed, changes = await self.database.read(self._changes, after=cursor, letters=letters, now=now)
        if not (changes.begun or changes.ended or changes.bodies or observed.is_news):
            return False
        told = Told(begun=changes.begun, ended=changes.ended, bodies=_shared(channels, changes.bodies))
        is_recorded = await self.database.write(notification_states.record, observed, told, now=now)
        return is_recorded and observed.is_full

    async def _letters(self) -> int | None:
        """Return the number of dead letters; None if it is not known."""
        if self.count_dead_letters is None:
            return None
        try:
            return await self.count_dead_letters()
        except BrokerUnavailable:
            return None  # the relay logs it
        except PublishError as error:
            _UNCOUNTED.holds(reason=str(error))
            return None

    def _begin(self, conn: sqlalchemy.Connection, *, letters: int | None, now: datetime) -> None:
        states = [
            _condition(what, connection, now=now)
            for what, found in _conditions(conn).items()
            for connection in found
        ]
        if letters:
            states.append(_dead_letters(letters, now=now))
        notification_states.begin(conn, states, now=now)

    def _changes(
        self, conn: sqlalchemy.Connection, *, after: int, letters: int | None, now: datetime
    ) -> tuple[Observed, Changes]:
        observed = notification_states.observe(conn, after)
        changes = changed_results(observed, base_url=self.base_url, now=now)
        for what, found in _conditions(conn).items():
            self._compare(conn, observed, changes, what, found, now=now)
        if letters is not None:
            self._compare_letters(observed, changes, letters, now=now)
        return observed, changes

    def _compare(
        self,
        conn: sqlalchemy.Connection,
        observed: Observed,
        changes: Changes,
        what: What,
        found: Sequence[str],
        *,
        now: datetime,
    ) -> None:
        """Add the connections for which a condition begins or ends."""
        known = {state.connection: state for state in observed.states.values() if state.what == what}
        begun = [one for one in found if one not in known][:_MAX_CONDITIONS]
        met = set(found)
        over = [state for one, state in known.items() if one not in met][:_MAX_CONDITIONS]
        of = _connections(conn, [*begun, *(state.connection or "" for state in over)])
        findings = _findings(conn, [of[one] for one in begun if one in of], what, now=now)
        for one in begun:
            changes.begun.append(_condition(what, one, now=now))
        changes.ended.extend(state.key for state in over)
        for state in over:
            if state.connection in of:  # otherwise it was deleted
                findings[state.connection] = None
        for one, finding in findings.items():
            changes.bodies.append(of_condition(what, of[one], finding, base_url=self.base_url, now=now))

    def _compare_letters(self, observed: Observed, changes: Changes, letters: int, *, now: datetime) -> None:
        """Add that there are dead letters where there were none, or at least twice as many as last told."""
        key = key_of("dead-letters")
        known = observed.states.get(key)
        if letters == 0:
            changes.ended.extend([key] if known else [])
        elif known is None or letters >= 2 * known.position:
            changes.begun.append(_dead_letters(letters, now=now))
            changes.bodies.append(of_dead_letters(letters, self.dead_queue, base_url=self.base_url, now=now))


def changed_results(observed: Observed, *, base_url: str, now: datetime) -> Changes:
    """Return what the results change: a failure begins with the first, and ends with a later success."""
    failing, before = dict(observed.states), observed.states
    bodies: list[Body] = []
    for result in observed.results:
        own, of_ref = run_key(result, result.trigger), run_key(result, None)
        if not result.is_success:
            known = failing.get(own)
            if known is None:
                bodies.append(of_result(result, base_url=base_url, now=now))
            failing[own] = _failed(own, result, known, now=now)
            continue
        for key in dict.fromkeys((own, of_ref)):
            known = failing.get(key)
            # A success of an earlier push shows nothing about the later one that failed.
            if known is not None and result.position >= known.position:
                del failing[key]
                if key == own or own not in before:
                    bodies.append(of_result(result, base_url=base_url, now=now))
    return Changes(
        begun=[state for key, state in failing.items() if state != before.get(key)],
        ended=[key for key in before if key not in failing],
        bodies=bodies,
    )


def _failed(key: str, result: Result, known: State | None, *, now: datetime) -> State:
    if known is not None:
        return replace(known, position=max(known.position, result.position))
    return State(key=key, what="run", connection=result.connection, position=result.position, since=now)


def _conditions(conn: sqlalchemy.Connection) -> dict[What, list[str]]:
    """Return the connections for which each condition is met."""
    failing = (one.connection for one in reconciliations.failing(conn, limit=100_000))
    return {
        "webhook-silent": reconciliations.silent(conn),
        "remote-refuses": list(dict.fromkeys((*failing, *notification_states.refused(conn)))),
    }


def _condition(what: What, connection: str, *, now: datetime) -> State:
    return State(key=key_of(what, connection), what=what, connection=connection, position=0, since=now)


def _dead_letters(letters: int, *, now: datetime) -> State:
    return State(
        key=key_of("dead-letters"), what="dead-letters", connection=None, position=letters, since=now
    )


def _connections(conn: sqlalchemy.Connection, ids: Sequence[str]) -> dict[str, Connection]:
    found: dict[str, Connection] = {}
    for one in ids:
        with suppress(NotFound):
            found[one] = connections.get(conn, one)
    return found


def _findings(
    conn: sqlalchemy.Connection, found: Sequence[Connection], what: What, *, now: datetime
) -> dict[str, Finding | None]:
    """Return what the health of each connection says about a condition."""
    known = facts(conn, found, now=now) if found else {}

    def first(connection: Connection) -> Finding:
        shown = health(connection, known[connection.id], access_of(connection), now=now).findings
        fitting: Iterator[Finding] = (one for one in shown if one.what in _FINDINGS[what])
        return next(fitting, _UNKNOWN)

    return {connection.id: first(connection) for connection in found}


def _shared(channels: Sequence[Channel], bodies: Sequence[Body]) -> dict[str, list[Body]]:
    """Return what each channel is told, by its id."""
    return {channel.id: [body for body in bodies if _wants(channel, body)] for channel in channels}


def _wants(channel: Channel, body: Body) -> bool:
    """Return whether a channel gets a notification: one about no connection is for all."""
    if body["happening"] not in channel.happenings:
        return False
    about = body.get("connection")
    if about is None:
        return True
    return matches(channel.connections, about["name"]) and matches(channel.projects, about["project"])
