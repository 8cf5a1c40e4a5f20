"""The Grafana dashboard of the chart, helm/dashboards/pushgate.json: rows of panels over the metrics.

`make documents` writes it. It imports into Grafana 11 and later: the data source is a variable, and so are
namespace, job and pod, which need not exist outside Kubernetes.
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 39
"""That of Grafana 11; later versions migrate it."""

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_FILTER = 'namespace=~"$namespace",job=~"$job",pod=~"$pod"'
_WIDTH = 24
_HEIGHTS = {"stat": 4, "timeseries": 8}

Target = tuple[str, str]
"""An expression, and the legend of its series."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. `steps` are the thresholds after green: from which value on, in which colour."""

    title: str
    text: str
    unit: str
    targets: Sequence[Target]
    _: KW_ONLY
    kind: Literal["stat", "timeseries"] = "timeseries"
    width: int = 8
    steps: Sequence[tuple[float, str]] = ()
    words: Mapping[str, str] = field(default_factory=dict)


def series(name: str, **labels: str) -> str:
    """Return a selector of the chosen pods, and of the labels with these values (regular expressions)."""
    chosen = [f'{key}=~"{value}"' for key, value in labels.items()]
    return f"{name}{{{','.join([_FILTER, *chosen])}}}"


def rate(name: str, by: str = "", **labels: str) -> Target:
    """Return the rate of a counter, the sum of all processes."""
    return f"sum{_by(by)} (rate({series(name, **labels)}[$__rate_interval]))", _legend(by) or name


def quantile(name: str, of: float = 0.95, by: str = "", **labels: str) -> Target:
    """Return a quantile of a histogram, over all processes."""
    buckets = series(f"{name}_bucket", **labels)
    grouped = ", ".join(["le", *filter(None, [by])])
    rates = f"sum by ({grouped}) (rate({buckets}[$__rate_interval]))"
    return f"histogram_quantile({of}, {rates})", _legend(by) or f"{of:.0%}"


def quantiles(name: str, **labels: str) -> list[Target]:
    """Return the median and the higher quantiles of a histogram."""
    return [quantile(name, of, **labels) for of in (0.5, 0.95, 0.99)]


def most(name: str, by: str = "", **labels: str) -> Target:
    """Return the highest value of a gauge: the one that all processes report of the whole store."""
    return f"max{_by(by)} ({series(name, **labels)})", _legend(by) or name


def total(name: str, by: str = "", **labels: str) -> Target:
    """Return the sum of a gauge over all processes."""
    return f"sum{_by(by)} ({series(name, **labels)})", _legend(by) or name


def share(aggregate: str, part: str, whole: str, by: str) -> Target:
    """Return what share of a gauge another one is, aggregated over the processes."""
    return f"{aggregate}{_by(by)} ({series(part)} / {series(whole)})", _legend(by)


def named(target: Target, legend: str) -> Target:
    """Return a target with another legend."""
    return target[0], legend


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _legend(labels: str) -> str:
    return " ".join(f"{{{{{label.strip()}}}}}" for label in labels.split(",") if label.strip())


def dashboard(rows: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    """Return the dashboard with these rows."""
    return {
        "uid": "pushgate",
        "title": "Pushgate",
        "description": "Webhooks of git providers in, execution requests out.",
        "tags": ["pushgate"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(_variables())},
        "panels": list(_placed(rows)),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"selected": True, "text": "default", "value": "default"},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
    }
    known = ""
    for name in ("namespace", "job", "pod"):
        query = f"label_values(pushgate_build_info{{{known}}}, {name})"
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            # Also what has no such label.
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "hide": 0,
            "includeAll": True,
            "multi": True,
            "options": [],
            "refresh": 2,
            "regex": "",
            "sort": 1,
        }
        known = ",".join([*filter(None, [known]), f'{name}=~"${name}"'])


def _placed(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for title, panels in rows.items():
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in panels:
            if left + panel.width > _WIDTH:
                top, left, height = top + height, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": _HEIGHTS[panel.kind]}
            yield {"id": number, "gridPos": place, **_content(panel)}
            number, left, height = number + 1, left + panel.width, max(height, _HEIGHTS[panel.kind])
        top += height


def _content(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in panel.steps]
    words = {value: {"text": text, "index": index} for index, (value, text) in enumerate(panel.words.items())}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                "range": panel.kind == "timeseries",
                "instant": panel.kind == "stat",
            }
            for index, (expression, legend) in enumerate(panel.targets)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "mappings": [{"type": "value", "options": words}] if words else [],
                "thresholds": {"mode": "absolute", "steps": steps},
                "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
                "custom": {} if panel.kind == "stat" else _lines(panel),
            },
            "overrides": [],
        },
        "options": _STAT if panel.kind == "stat" else _LINES,
    }


_STAT = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "none",
    "justifyMode": "auto",
    "orientation": "auto",
    "percentChangeColorMode": "standard",
    "showPercentChange": False,
    "textMode": "auto",
    "wideLayout": True,
}
_LINES = {
    "legend": {"calcs": ["mean", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def _lines(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "never",
        "spanNulls": False,
        "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
    }
