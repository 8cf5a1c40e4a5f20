"""The overview: the health of the components, what needs attention, and the newest records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connection_views import ConnectionHealthView
from gateway.api.executions import Executions
from gateway.api.health_overview import HealthOverview
from gateway.api.statistics import Statistics, StatisticsView
from gateway.api.views import DeliveryView
from gateway.dashboard.charts import span_bars, stacked_bars
from gateway.dashboard.components import Components, StoreFacts
from gateway.dashboard.contents import newest
from gateway.dashboard.rendering import Renderer
from gateway.errors import StoreUnavailable
from gateway.messages.execution_states import ExecutionState
from gateway.store import executions
from gateway.store.executions import StoredRequest
from gateway.store.outcomes import Outcome

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The handler of the overview."""

    components: Components
    health: HealthOverview
    statistics: Statistics
    executions: Executions
    renderer: Renderer

    async def show(self, _request: Request) -> Response:
        """`GET /`: show the state of the gateway, also while its database does not answer."""
        now = datetime.now(UTC)
        try:
            return await self._shown(now)
        except StoreUnavailable as error:
            components = await self.components.without_store(str(error))
            return self.renderer.page("overview.html", 503, components=components, has_store=False)

    async def _shown(self, now: datetime) -> Response:
        database = self.components.database
        facts = await database.read(StoreFacts.of, now=now)
        deliveries, planned, failed = await database.read(_newest, self.executions, since=now - RECENT)
        counted = await self.statistics.of_the_last(_HOURS)
        failing = await self.health.page(state="failing", after=None, max_items=_MAX_SHOWN)
        warnings = await self.health.page(state="warning", after=None, max_items=_MAX_SHOWN)
        return self.renderer.page(
            "overview.html",
            has_store=True,
            has_connections=facts.progress.connections > 0,
            components=await self.components.described(facts, now=now),
            problems=[
                *map(_of_connection, failing.items),
                *_of_deliveries(counted, since=now - RECENT),
                *failed,
                *map(_of_connection, warnings.items),
            ],
            since=counted.buckets[0].since,
            outcomes=stacked_bars([(each.since, each.counts) for each in counted.buckets], _STACK),
            latencies=span_bars(
                [(each.stage, each.count, each.median, each.p95) for each in counted.latencies]
            ),
            deliveries=deliveries,
            executions=await self.executions.views(planned),
        )


def _newest(
    conn: sqlalchemy.Connection, shown: Executions, *, since: datetime
) -> tuple[Sequence[DeliveryView], Sequence[StoredRequest], Sequence[Problem]]:
    """Return the newest deliveries and executions, and what has become of executions since then."""
    planned, _ = executions.page(
        conn, connection=None, delivery=None, state=None, before=None, limit=_MAX_SHOWN
    )
    problems = [_of_executions(conn, state, since=None) for state in _LASTING]
    problems += [_of_executions(conn, state, since=since) for state in _PASSING]
    return newest(conn, connection=None), shown.explained(conn, planned), list(filter(None, problems))


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


def _of_connection(found: ConnectionHealthView) -> Problem:
    worst = found.health.findings[0]
    return Problem(
        state=found.health.state,
        what=found.name,
        text=f"{worst.reason} {worst.repair}",
        path=f"/connections/{found.id}",
    )
