"""The content of `/metrics`, as Prometheus reads it, and what the dashboard and the alerts make of it."""

import asyncio
import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from gateway.api.http_meter import HttpMeter
from gateway.metrics import DESCRIBED, REGISTRY, Hosts
from testing.broker import Broker
from testing.documents import DASHBOARD, ROOT
from testing.git_host import GitHost
from testing.github import push_payload
from testing.postgres import Postgres
from testing.service import Project, Service, wait_for

Found = dict[tuple[str, ...], float]
# Label values that this gateway does not expose: those of failures, and of another role.
UNSEEN = {
    ("pushgate_build_info", "role"): {"web"},
    ("pushgate_refused_total", "status"): {"503"},
    ("pushgate_http_request_seconds_count", "status"): {"5xx"},
    ("pushgate_statuses_total", "outcome"): {"refused"},
    ("pushgate_notifications_total", "outcome"): {"refused"},
}
# The labels of a target, which Prometheus adds.
OF_TARGETS = {"namespace", "job", "pod", "instance", "le"}
_SELECTOR = re.compile(r"\b((?:pushgate|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_GROUPING = re.compile(r"by \(([^)]*)\)")


def metrics(service: Service) -> tuple[str, Found]:
    """Return the text, and each sample by its name and the values of its labels."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        text = answered.read().decode()
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return text, found


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What a gateway exposes that has worked, and the connections that it has worked on."""

    text: str
    found: Found
    connections: list[str]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Worked]:
    """Let a gateway accept, repeat, refuse, fetch, fail to fetch, plan and publish."""
    folder = tmp_path_factory.mktemp("worked")
    with (
        GitHost(folder / "git") as host,
        Service(folder / "data", AMQP_URL=broker.url) as service,
    ):
        project = Project(host, folder)
        connection = service.connect(project.url, "train@main")
        away = service.connect("http://127.0.0.1:9/acme/gone.git", "train@main")
        payload = json.loads(project.payload(project.first, project.push("Second", {"a.py": "2\n"})))
        payload["repository"]["pushed_at"] = int(time.time()) - 20
        body = json.dumps(payload).encode()
        _, answer = service.deliver(connection, body)
        service.settled(answer["delivery"])
        service.deliver(connection, body)
        service.deliver({**connection, "secret": "wrong"}, body)
        of_away = {"url": away["url"], "full_name": "acme/gone", "before": None, "after": "a" * 40}
        service.deliver(away, push_payload(**of_away, ref="refs/heads/main"))
        for path in ("/secret-path", "/api/v1/connections"):
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(service.url + path).close()  # noqa: S310 - our own gateway
        wait_for(lambda: service.api.get("/executions", state="published")["items"], "it is published")

        def everything() -> tuple[str, Found] | None:
            text, found = metrics(service)
            is_postponed = ("pushgate_ref_updates_postponed_total", "unreachable", "127.0.0.1") in found
            is_published = found["pushgate_requests_published_total",] == 1
            return (text, found) if is_postponed and is_published else None

        text, found = wait_for(everything, "all of it is counted")
        yield Worked(text=text, found=found, connections=[connection["id"], away["id"]])


def test_what_happens_is_counted(worked: Worked) -> None:
    """Each delivery by its verdict, each stage once, and the lag of the provider."""
    found = worked.found
    assert found["pushgate_deliveries_total", "accepted", "github"] == 2
    assert found["pushgate_deliveries_total", "duplicate", "github"] == 1
    assert found["pushgate_refused_total", "401", "not verified"] == 1
    assert found["pushgate_ref_updates_settled_total", "planned"] == 1
    for stage in ("queue", "fetch", "plan", "publish"):
        assert found["pushgate_stage_seconds_count", stage] == 1
    assert found["pushgate_stage_seconds_count", "accept"] == 3
    assert found["pushgate_push_seconds_count",] == 1
    assert found["pushgate_provider_lag_seconds_count", "github"] == 1
    assert 20 <= found["pushgate_provider_lag_seconds_sum", "github"] < 120
    assert found["pushgate_fetched_bytes_total", "127.0.0.1"] > 100
    assert found["pushgate_pending_requests",] == found["pushgate_pending_events",] == 0
    assert found["pushgate_pending_ref_updates",] == 1


def test_the_stages_do_not_overlap(worked: Worked) -> None:
    """Queue, fetch and plan of a push are together the time from its webhook to its plan."""
    stages = [worked.found["pushgate_stage_seconds_sum", stage] for stage in ("queue", "fetch", "plan")]
    assert sum(stages) == pytest.approx(worked.found["pushgate_push_seconds_sum",], abs=0.001)


def test_failures_have_a_host_and_a_reason(worked: Worked) -> None:
    """The postponed push is in the queue, as such."""
    assert worked.found["pushgate_fetch_failures_total", "unreachable", "127.0.0.1"] >= 1
    assert worked.found["pushgate_ref_updates_postponed_total", "unreachable", "127.0.0.1"] >= 1
    states = [worked.found["pushgate_queue_connections", state] for state in ("waiting", "held", "postponed")]
    assert sum(states) == 1


def test_routes_are_templates(worked: Worked) -> None:
    """No path, id or name is in any label."""
    routes = {key[2] for key in worked.found if key[0] == "pushgate_http_request_seconds_count"}
    assert {"/hooks/{connection}", "/api/v1/connections", "other"} <= routes
    for secret in ("secret-path", "digits", *worked.connections):
        assert secret not in worked.text


def test_what_the_process_needs_is_measured(worked: Worked) -> None:
    """Also without several processes; the versions are in one metric."""
    [build] = [key for key in worked.found if key[0] == "pushgate_build_info"]
    assert {"all", "sqlite"} <= set(build)
    assert worked.found["process_cpu_seconds_total", "0"] > 0
    assert worked.found["pushgate_worker_processes_alive",] == worked.found["pushgate_processes",] == 1
    assert worked.found["pushgate_relays_leading", "request"] == 1
    assert worked.found["pushgate_broker_connected", "event"] == 1
    for folder in ("data", "mirrors"):
        free, size = (worked.found[f"pushgate_disk_{what}_bytes", folder] for what in ("free", "size"))
        assert 0 < free < size
    assert worked.found["pushgate_store_statement_seconds_count",] > 0
    assert worked.found["pushgate_store_commit_seconds_count",] > 0


def test_prometheus_finds_no_fault_in_the_names(worked: Worked) -> None:
    """Units, suffixes and help texts."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=worked.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_method_of_no_http_is_no_label() -> None:
    """Anybody may send one, and each would be a series of its own."""

    async def teapot(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 418})

    async def ignored(*_: object) -> Any:
        """Receive nothing, and send nowhere."""

    for method in ("BREW", "WHEN"):
        asyncio.run(HttpMeter(teapot)({"type": "http", "method": method}, ignored, ignored))
    labels = {"method": "other", "route": "other", "status": "4xx"}
    assert REGISTRY.get_sample_value("pushgate_http_request_seconds_count", labels) == 2


def test_only_the_first_hosts_have_a_label_of_their_own() -> None:
    """However many there are."""
    hosts = Hosts(2)
    assert [hosts.label(one) for one in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


def expressions() -> list[str]:
    """Return the expressions of the alerts and of the dashboard."""
    [group] = yaml.safe_load((ROOT / "helm" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    of_panels = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [*(rule["expr"] for rule in group["rules"]), *of_panels]


def test_dashboard_and_alerts_are_about_what_is_there(worked: Worked) -> None:
    """Each metric in them, each label, and each value of a label."""
    exposed = list(text_string_to_metric_families(worked.text))
    labels = {one.name: {*one.labels, *OF_TARGETS} for one in DESCRIBED} | {
        sample.name: {"process", *OF_TARGETS}
        for family in exposed
        for sample in family.samples
        if sample.name.startswith("process_")
    }
    for expression in expressions():
        used = {}
        for name, matchers in _SELECTOR.findall(expression):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            metric = name if name in labels else base
            assert metric in labels, (name, expression)
            assert any(family.name == re.sub("_total$", "", metric) for family in exposed), metric
            used[metric] = labels[metric]
            for label, operator, value in _MATCHER.findall(matchers):
                assert label in labels[metric], (label, expression)
                if label not in OF_TARGETS:
                    check_value(exposed, name, label, value if operator == "=~" else re.escape(value))
        for grouping in _GROUPING.findall(expression):
            for label in re.split(r", *", grouping):
                assert all(label in known for known in used.values()), (label, expression)


def check_value(exposed: list[Any], name: str, label: str, pattern: str) -> None:
    """Check that samples of a metric have each of these values."""
    seen = {
        sample.labels[label]
        for family in exposed
        for sample in family.samples
        if sample.name == name and label in sample.labels
    } | UNSEEN.get((name, label), set())
    for one in pattern.split("|"):
        assert any(re.fullmatch(one, value) for value in seen), (name, label, one, seen)


def test_every_process_reports_what_waits_in_the_whole_store(tmp_path: Path, postgres: Postgres) -> None:
    """Also a process without a part in it; while the store is unavailable, the value is NaN."""
    shared = {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32}
    with (
        Service(tmp_path / "web", **shared, ROLE="web") as web,
        Service(tmp_path / "other", **shared, ROLE="web") as other,
    ):
        connection = web.connect("http://127.0.0.1:9/acme/digits.git")
        body = push_payload(
            url=connection["url"], full_name="acme/digits", ref="refs/heads/main", before=None, after="a" * 40
        )
        assert web.deliver(connection, body)[0] == 202
        for process in (web, other):
            _, found = metrics(process)
            assert found["pushgate_pending_ref_updates",] == 1
            assert found["pushgate_oldest_pending_seconds",] > 0
        postgres.stop()
        try:
            # What was read a moment ago counts until then.
            wait_for(
                lambda: math.isnan(metrics(web)[1]["pushgate_pending_ref_updates",]), "the outage is shown"
            )
            _, found = metrics(web)
            assert found["pushgate_deliveries_total", "accepted", "github"] == 1
        finally:
            postgres.start()
