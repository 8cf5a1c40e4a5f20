"""Charts of the overview."""

from datetime import UTC, datetime, timedelta

from gateway.dashboard.charts import HEIGHT, span_bars, stacked_bars

START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_the_parts_of_a_bar_stand_on_each_other() -> None:
    """From the bottom up, in the order of the kinds, on a scale that reads well."""
    chart = stacked_bars([(START, {"ran": 3, "failed": 1}), (START + HOUR, {})], ["ran", "failed"])
    assert (chart.top, chart.total, chart.totals) == (5, 4, {"ran": 3, "failed": 1})
    full, empty = chart.bars
    ran, failed = full.parts
    assert (ran.kind, ran.y + ran.height) == ("ran", HEIGHT)
    assert (failed.kind, failed.y + failed.height) == ("failed", ran.y)
    assert ran.height == 3 * failed.height
    assert (full.total, empty.total, list(empty.parts)) == (4, 0, [])
    assert all(bar.x >= 0 and bar.x + chart.bar_width <= chart.width for bar in chart.bars)


def test_without_deliveries_a_chart_is_empty() -> None:
    """Nothing is divided by zero."""
    chart = stacked_bars([(START, {})], ["ran"])
    assert (chart.top, chart.total) == (1, 0)
    assert span_bars([]) == []
    assert [bar.p95_share for bar in span_bars([("plan", 1, 0, 0)])] == [0]


def test_durations_share_the_scale_of_the_longest() -> None:
    """Which fills the width."""
    fetch, plan = span_bars([("fetch", 9, 1, 4), ("plan", 8, 0.5, 2)])
    assert (fetch.p95_share, fetch.median_share) == (100, 25)
    assert (plan.p95_share, plan.median_share, plan.count) == (50, 12.5, 8)
    assert plan.median == timedelta(seconds=0.5)
