"""The REST API under /api/v1: statistics of the last hours."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import sqlalchemy
from pydantic import BaseModel, Field
from starlette.requests import Request

from gateway.api.openapi import Operation
from gateway.api.query import whole_number
from gateway.api.views import View, view_of
from gateway.intake.lookup_cache import MAX_AGE, LookupCache
from gateway.store import statistics
from gateway.store.database import Database
from gateway.store.statistics import MAX_HOURS


class BucketView(View):
    """The deliveries that were received in a part of the time."""

    since: datetime = Field(description="its beginning")
    until: datetime = Field(description="its end")
    counts: dict[str, int] = Field(
        description="how many deliveries have each outcome; an outcome without any is left out"
    )


class LatencyView(View):
    """How long a stage of the newest pushes took."""

    stage: str = Field(
        description="`fetch`, from the webhook until the commit was in the mirror (the stages `queue` and"
        " `fetch` of the metrics); `plan`, until its requests were stored; `publish`, until the broker"
        " confirmed the first; `total`, from the webhook"
    )
    count: int = Field(description="of how many ref updates")
    median: float = Field(description="the median, in seconds")
    p95: float = Field(description="the 95th percentile, in seconds")


class StatisticsView(BaseModel):
    """Statistics of the last hours."""

    buckets: list[BucketView] = Field(description="the parts of the time, oldest first")
    refused: int = Field(description="how many requests were refused")
    latencies: list[LatencyView] = Field(
        description="how long each stage took, of the newest 500 ref updates; empty if there are none"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The endpoint for statistics. Requests share what is counted."""

    database: Database
    _counted: LookupCache[StatisticsView] = field(init=False)

    def __post_init__(self) -> None:
        """Start with an empty cache."""
        object.__setattr__(self, "_counted", LookupCache(self._count))

    def operations(self) -> list[Operation]:
        """Return the operations on statistics."""
        return [
            Operation(method="GET", path="/statistics", endpoint=self.get_statistics, query=("hours",)),
        ]

    async def get_statistics(self, request: Request) -> StatisticsView:
        """`GET /statistics`: count deliveries by outcome over time, and measure the stages of pushes."""
        hours = whole_number(request.query_params.get("hours", "24"), "hours", most=MAX_HOURS)
        return await self.of_the_last(hours)

    async def of_the_last(self, hours: int, *, max_age: float = MAX_AGE) -> StatisticsView:
        """Return the statistics of the last hours, at most `max_age` seconds old."""
        return await self._counted.find(str(hours), max_age=max_age)

    def forget(self) -> None:
        """Count again at the next request, because something has changed."""
        self._counted.clear()

    async def _count(self, key: str) -> StatisticsView:
        hours = int(key)
        now = datetime.now(UTC)
        since = now - timedelta(hours=hours)

        def read(conn: sqlalchemy.Connection) -> StatisticsView:
            counted = statistics.buckets(conn, hours=hours, now=now)
            measured = statistics.latencies(conn, since=since)
            return StatisticsView(
                buckets=[view_of(BucketView, bucket) for bucket in counted],
                refused=statistics.refused(conn, since=since),
                latencies=[view_of(LatencyView, latency) for latency in measured],
            )

        return await self.database.read(read)
