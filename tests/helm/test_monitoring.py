"""The alerts and the dashboard of the chart: Prometheus and Grafana accept them.

tests/test_metrics.py compares both with the metrics of a gateway.
"""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError

from testing.documents import DASHBOARD, ROOT
from testing.grafana import SCHEMA_VERSION, dashboard
from testing.grafana_panels import ROWS
from testing.npm import installed
from tests.helm.chart import NAMESPACE, Manifest, merged, objects, read_values, render, value_sets

RULES = "prometheusRule: {enabled: true, runbookUrl: https://docs.example.com/alerts}"
# Grafana's own types of dashboards: https://www.npmjs.com/package/@grafana/schema
SCHEMAS = ("@grafana/schema@11.6.16", "@grafana/schema@12.4.11")
TYPES = """
import type { Dashboard, Panel, RowPanel } from "@grafana/schema";
import type { Options as Stat } from "FOLDER/stat/panelcfg/x/StatPanelCfg_types.gen";
import type { Options as Lines } from "FOLDER/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type { FieldConfig as Config } from "FOLDER/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
// JSON has the values of enumerations, not their names.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
interface Named { RowPanel: RowPanel; Panel: Panel; Dashboard: Dashboard; Stat: Stat; Lines: Lines }
interface Named { Config: Config }
function is<K extends keyof Named>(kind: K, value: Plain<Named[K]>) {}
""".replace("FOLDER", "./node_modules/@grafana/schema/dist/esm/raw/composable")
# https://github.com/grafana/grafana/blob/main/packages/grafana-data/src/valueFormats/categories.ts
UNITS = {"Bps", "bytes", "ops", "percentunit", "reqps", "s", "short"}
CONTENT: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = CONTENT["panels"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def rendered(kind: str, values: str, name: str = "acme-pushgate") -> Manifest:
    """Return this object of a release with these values."""
    made = objects(render(merged(value_sets()["minimal"], read_values(values))))
    [found] = [one for one in made if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def alerts(values: str = RULES) -> dict[str, Any]:
    """Return the alerts of a release with these values, by their names."""
    [group] = rendered("PrometheusRule", values)["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def promtool(*arguments: str | Path) -> None:
    """Assert that Prometheus accepts a file."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rendered_alerts_fire_and_only_for_their_namespace(tmp_path: Path) -> None:
    """With the tests of the rules in the repository, their series in the namespace of the release or not."""
    spec = rendered("PrometheusRule", RULES)["spec"]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    text = (ROOT / "tests" / "docs" / "alerts.test.yaml").read_text(encoding="utf-8")
    ours = text.replace('{instance="', f'{{namespace="{NAMESPACE}",instance="')
    (tmp_path / "ours.yaml").write_text(ours, encoding="utf-8")
    elsewhere = yaml.safe_load(text)
    [each] = [one for one in elsewhere["tests"] if one["name"] == "each other alert fires"]
    # That no process is here.
    each["promql_expr_test"][0]["exp_samples"] = [{"value": 1}]
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump({**elsewhere, "tests": [each]}), encoding="utf-8")
    promtool("check", "rules", tmp_path / "alerts.yaml")
    promtool("test", "rules", tmp_path / "ours.yaml", tmp_path / "elsewhere.yaml")


def test_each_alert_links_to_its_section() -> None:
    """The headings of docs/alerts.md are the anchors; without a URL there is no link."""
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    anchors = {name.lower() for name in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    linked = {rule["annotations"]["runbook_url"] for rule in alerts().values()}
    assert linked == {f"https://docs.example.com/alerts#{anchor}" for anchor in anchors}
    bare = alerts("prometheusRule: {enabled: true}")
    assert all("runbook_url" not in rule["annotations"] for rule in bare.values())


def test_an_alert_can_be_changed_and_switched_off() -> None:
    """Its threshold, its time and its severity; all get the labels, and there may be more rules."""
    whole = """
    prometheusRule:
      enabled: true
      selector: job=~"pushgate_a$"
      alertLabels: {team: ml}
      extraRules: [{alert: Mine, expr: vector(1)}]
      rules:
        PushgatePushesWait: {threshold: 1800, for: 10m, severity: page}
        PushgateDeliveriesNotStored: {threshold: 5}
        PushgateSlow: {enabled: false}
    """
    found = alerts(whole)
    assert set(alerts()) ^ set(found) == {"PushgateSlow", "Mine"}
    changed = found["PushgatePushesWait"]
    assert changed["expr"] == 'max(pushgate_oldest_pending_seconds{job=~"pushgate_a$"}) > 1800'
    both = found["PushgateDeliveriesNotStored"]["expr"]
    assert (both.count("> 5"), both.count("> 0"), both.count("pushgate_a")) == (2, 0, 3)
    assert (changed["for"], changed["labels"]) == ("10m", {"severity": "page", "team": "ml"})
    assert found["PushgateDown"]["labels"] == {"severity": "critical", "team": "ml"}
    assert found["Mine"] == {"alert": "Mine", "expr": "vector(1)"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("PushgateNone: {enabled: false}", "there is no alert of this name"),
        ("PushgateDown: {threshold: 1}", "this alert has no threshold"),
        ("PushgateSlow: {treshold: 1}", "treshold"),
    ],
)
def test_a_change_of_no_effect_is_refused(change: str, message: str) -> None:
    """A typing error must not leave an alert as it was."""
    values = f"prometheusRule: {{enabled: true, rules: {{{change}}}}}"
    with pytest.raises(HelmError, match=message):
        rendered("PrometheusRule", values)


def test_the_dashboard_is_that_of_its_panels() -> None:
    """If this fails, run `make documents`. The ConfigMap has it for Grafana's sidecar."""
    assert dashboard(ROWS) == CONTENT
    config_map = rendered("ConfigMap", "grafanaDashboard: {enabled: true}", "acme-pushgate-dashboard")
    assert json.loads(config_map["data"]["pushgate.json"]) == CONTENT
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["metadata"]["annotations"] == {"grafana_folder": "Pushgate"}


def test_grafana_can_import_the_dashboard() -> None:
    """What Grafana demands: ids, places, letters of queries, units that it has, and variables."""
    assert CONTENT["schemaVersion"] == SCHEMA_VERSION
    assert not {"id", "__inputs", "__requires"} & set(CONTENT)
    assert [one["name"] for one in CONTENT["templating"]["list"]] == ["datasource", "namespace", "job", "pod"]
    assert [row["title"] for row in PANELS if row["type"] == "row"] == list(ROWS)
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert {target["refId"] for target in panel["targets"]} == set("ABC"[: len(panel["targets"])])
        assert all(one["datasource"] == SOURCE for one in (panel, *panel["targets"]))
    assert max(taken.values()) == 1


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_dashboard_has_the_types_of_grafana(
    schema: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """Each panel, its options and its fields: a name or a value that Grafana does not have is an error."""
    checks: list[tuple[str, Any]] = [("Dashboard", {**CONTENT, "panels": []})]
    for panel in PANELS:
        checks.append(("RowPanel" if panel["type"] == "row" else "Panel", panel))
        if panel["type"] == "stat":
            checks.append(("Stat", panel["options"]))
        if panel["type"] == "timeseries":
            checks.append(("Lines", panel["options"]))
            checks.append(("Config", panel["fieldConfig"]["defaults"]["custom"]))
    text = TYPES + "".join(f'is("{kind}", {json.dumps(value)});\n' for kind, value in checks)
    (tmp_path / "dashboard.ts").write_text(text, encoding="utf-8")
    modules = installed(pytestconfig.cache, schema, "typescript@5.9.3")
    (tmp_path / "node_modules").symlink_to(modules)
    options = [
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
    ]
    done = subprocess.run(
        [modules / ".bin" / "tsc", *options, "dashboard.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """Each is about the chosen pods only, and sums the rates of several processes."""
    queries = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
    recorded = []
    for number, query in enumerate(queries):
        assert query.count('namespace=~"$namespace",job=~"$job",pod=~"$pod"') == len(
            re.findall(r"\b(?:pushgate|process)_\w+\{", query)
        )
        assert "rate(" not in query or "sum" in query
        recorded.append({"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m")})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}), encoding="utf-8")
    promtool("check", "rules", file)
