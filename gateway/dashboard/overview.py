"""The overview: the health of the components, what needs attention, and the newest records."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Self

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connection_views import ConnectionHealthView
from gateway.api.executions import Executions
from gateway.api.health_overview import in_states
from gateway.api.statistics import Statistics, StatisticsView
from gateway.api.views import DeliveryView
from gateway.dashboard.charts import span_bars, stacked_bars
from gateway.dashboard.components import MAX_AGE, Components, StoreFacts
from gateway.dashboard.contents import newest
from gateway.dashboard.rendering import Renderer
from gateway.errors import StoreUnavailable
from gateway.intake.lookup_cache import LookupCache
from gateway.messages.execution_states import ExecutionState
from gateway.store import executions, identities
from gateway.store.executions import StoredRequest
from gateway.store.outcomes import Outcome
from gateway.worker.connection_health import State, warn_before

# How many of the newest records, and how many problems of each kind, the overview shows.
_MAX_SHOWN = 8
# What has failed longer ago is history, not news.
RECENT = timedelta(days=1)


# How many executions in one state are counted; more are "more than".
_MAX_COUNTED = 100
_ADVICE: Mapping[ExecutionState, str] = {
    "undeliverable": "The broker refuses the message: correct the cause, and republish or drop it.",
    "lost": "No runner has reported for too long: look at the runner, and run the execution again.",
    "rejected": "A runner has refused to run it.",
    "failed": "The run has failed.",
}
_REPLAY = "In the last 24 hours. The pages of the deliveries say why: correct the cause, and replay them."
_REFUSED = "In the last 24 hours. Their signature, URL or size was wrong: the list says what to do."
_DEAD_LETTERS = (
    "Runners rejected or never acknowledged them: correct the cause, and put them back or drop them."
)
# Other pages of the last seconds had the same number; a broker that is slower is not waited for.
_COUNT_SECONDS = 10.0
_COUNT_TIMEOUT = 1.0
# The outcomes in a bar, from the bottom up.
_STACK: tuple[Outcome, ...] = (
    "ran",
    "superseded",
    "nothing-matched",
    "ignored",
    "duplicate",
    "waiting",
    "failed",
)
# The only key of a cache of one value.
_ALL = "all"
_HOURS = RECENT // timedelta(hours=1)
# What needs attention however old it is, and what does only while it is recent.
_LASTING: tuple[ExecutionState, ...] = ("undeliverable", "lost")
_PASSING: tuple[ExecutionState, ...] = ("rejected", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that needs attention, how bad it is, and the `path` of its page with a `query`."""

    state: str
    what: str
    text: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class LetterCount:
    """The number of dead letters at the broker, which is counted rarely, as that takes a connection to it."""

    count: Callable[[], Awaitable[int | None]]
    _last: int | None = field(default=None, init=False)
    _valid_until: float = field(default=0.0, init=False)

    def forget(self) -> None:
        """Count again at the next request."""
        self._valid_until = 0.0

    async def problems(self) -> list[Problem]:
        """Return that there are dead letters; nothing without any, or if their number is not known."""
        if monotonic() >= self._valid_until:
            self._valid_until = monotonic() + _COUNT_SECONDS
            try:
                self._last = await asyncio.wait_for(self.count(), _COUNT_TIMEOUT)
            except TimeoutError:
                self._last = None
        if not self._last:
            return []
        what = f"{self._last} dead letter{'' if self._last == 1 else 's'}"
        return [Problem(state="failed", what=what, text=_DEAD_LETTERS, path="/dead-letters")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """What the store says about the components, and which connections and executions need attention."""

    facts: StoreFacts
    connections: Mapping[State, Sequence[ConnectionHealthView]]
    executions: Sequence[Problem]
    identities: Sequence[Problem]

    @classmethod
    def of(cls, conn: sqlalchemy.Connection, *, now: datetime) -> Self:
        """Read it."""
        problems = [_of_executions(conn, state, since=None) for state in _LASTING]
        problems += [_of_executions(conn, state, since=now - RECENT) for state in _PASSING]
        return cls(
            facts=StoreFacts.of(conn, now=now),
            connections=in_states(conn, ("failing", "warning"), limit=_MAX_SHOWN),
            executions=list(filter(None, problems)),
            identities=_of_unused_identities(conn, now=now),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The handler of the overview.

    All viewers share what is counted and examined, which is at most ten seconds old; an open page gets what
    was read for its refresh before. What an action has changed is read again: see `forget`.
    """

    components: Components
    dead_letters: LetterCount
    statistics: Statistics
    executions: Executions
    renderer: Renderer
    _standing: LookupCache[_Standing] = field(init=False)

    def __post_init__(self) -> None:
        """Start with an empty cache."""
        object.__setattr__(self, "_standing", LookupCache(self._read_standing))

    def forget(self) -> None:
        """Read everything again at the next request, because somebody has changed something."""
        self._standing.clear()
        self.statistics.forget()
        self.components.forget()
        self.dead_letters.forget()

    async def show(self, _request: Request) -> Response:
        """`GET /`: show the state of the gateway, also while its database does not answer."""
        now = datetime.now(UTC)
        try:
            return await self._shown(now)
        except StoreUnavailable as error:
            components = await self.components.without_store(str(error))
            return self.renderer.page("overview.html", 503, components=components, has_store=False)

    async def _shown(self, now: datetime) -> Response:
        standing, (deliveries, planned), counted = await asyncio.gather(
            self._standing.find(_ALL, max_age=MAX_AGE),
            self.components.database.read(_newest, self.executions),
            self.statistics.of_the_last(_HOURS, max_age=MAX_AGE),
        )
        return self.renderer.page(
            "overview.html",
            has_store=True,
            has_connections=standing.facts.progress.connections > 0,
            components=await self.components.described(standing.facts, now=now),
            problems=[
                *map(_of_connection, standing.connections["failing"]),
                *_of_deliveries(counted, since=now - RECENT),
                *standing.executions,
                *await self.dead_letters.problems(),
                *map(_of_connection, standing.connections["warning"]),
                *standing.identities,
            ],
            since=counted.buckets[0].since,
            outcomes=stacked_bars([(each.since, each.counts) for each in counted.buckets], _STACK),
            latencies=span_bars(
                [(each.stage, each.count, each.median, each.p95) for each in counted.latencies]
            ),
            deliveries=deliveries,
            executions=await self.executions.views(planned),
        )

    async def _read_standing(self, _key: str) -> _Standing:
        return await self.components.database.read(_Standing.of, now=datetime.now(UTC))


def _newest(
    conn: sqlalchemy.Connection, shown: Executions
) -> tuple[Sequence[DeliveryView], Sequence[StoredRequest]]:
    """Return the newest deliveries and executions."""
    planned, _ = executions.page(
        conn, connection=None, delivery=None, state=None, before=None, limit=_MAX_SHOWN
    )
    return newest(conn, connection=None), shown.explained(conn, planned)


def _of_executions(
    conn: sqlalchemy.Connection, state: ExecutionState, *, since: datetime | None
) -> Problem | None:
    """Count the newest executions in a state, those planned since then; None without any."""
    found = executions.newest_planned(conn, state, limit=_MAX_COUNTED + 1)
    count = len(found) if since is None else sum(planned_at >= since for planned_at in found)
    if count == 0:
        return None
    number = f"more than {_MAX_COUNTED}" if count > _MAX_COUNTED else str(count)
    what = f"{number} execution{'' if count == 1 else 's'}"
    text = _ADVICE[state] if since is None else f"{_ADVICE[state]} Planned in the last 24 hours."
    return Problem(state=state, what=what, text=text, path="/executions", query={"state": state})


def _of_deliveries(counted: StatisticsView, *, since: datetime) -> Iterator[Problem]:
    """Yield the deliveries that have failed, and the requests that were refused."""
    failed = sum(each.counts.get("failed", 0) for each in counted.buckets)
    for outcome, count, noun, text in (
        ("failed", failed, "failed delivery" if failed == 1 else "failed deliveries", _REPLAY),
        ("refused", counted.refused, f"refused request{'' if counted.refused == 1 else 's'}", _REFUSED),
    ):
        if count:
            query = {"outcome": outcome, "since": since.isoformat(timespec="minutes")}
            yield Problem(state=outcome, what=f"{count} {noun}", text=text, path="/deliveries", query=query)


def _of_unused_identities(conn: sqlalchemy.Connection, *, now: datetime) -> list[Problem]:
    """Return the identities that end soon, or have ended, and that no connection uses.

    The health of a connection names the identity that it uses.
    """
    found = [
        identity
        for identity in identities.expiring(conn, before=now + warn_before(rotates=False))
        if identity.expires_at is not None
        and identity.expires_at <= now + warn_before(rotates=identity.rotates)
    ]
    used = identities.usage(conn, [identity.id for identity in found])
    return [
        Problem(
            state="warning",
            what=identity.name,
            text=f"The identity {'has ended' if identity.expires_at <= now else 'ends soon'}, and no"
            " connection uses it: renew it, or delete it.",
            path=f"/identities/{identity.id}",
        )
        for identity in found
        if identity.expires_at is not None and not used.get(identity.id)
    ][:_MAX_SHOWN]


def _of_connection(found: ConnectionHealthView) -> Problem:
    worst = found.health.findings[0]
    return Problem(
        state=found.health.state,
        what=found.name,
        text=f"{worst.reason} {worst.repair}",
        path=f"/connections/{found.id}",
    )
