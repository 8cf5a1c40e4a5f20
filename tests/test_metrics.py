"""The content of `/metrics`, as Prometheus reads it."""

import math
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from testing.broker import Broker
from testing.github import push_payload
from testing.postgres import Postgres
from testing.service import Project, Service, wait_for


def metrics(service: Service) -> tuple[str, dict[tuple[str, ...], float]]:
    """Return the text, and each sample by its name and the values of its labels."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        text = answered.read().decode()
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return text, found


def test_what_happens_is_counted(service: Service, project: Project) -> None:
    """With few labels; it contains no repository and no secret."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    body = project.payload(project.first, pushed)
    _, answer = service.deliver(connection, body)
    service.settled(answer["delivery"])
    service.deliver(connection, body)
    service.deliver({**connection, "secret": "wrong"}, body)
    text, found = metrics(service)
    assert found["pushgate_deliveries_total", "accepted", "github"] == 1
    assert found["pushgate_deliveries_total", "duplicate", "github"] == 1
    assert found["pushgate_refused_total", "401", "not verified"] == 1
    assert found["pushgate_ref_updates_settled_total", "planned"] == 1
    for stage in ("queue", "fetch", "plan"):
        assert found["pushgate_stage_seconds_count", stage] == 1
    assert found["pushgate_stage_seconds_count", "accept"] == 2
    assert found["pushgate_pending_requests",] == 1
    assert found["pushgate_pending_events",] == 0
    assert found["pushgate_pending_ref_updates",] == 0
    assert found["pushgate_oldest_pending_seconds",] == 0
    assert "digits" not in text


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


def test_what_is_published_is_counted(tmp_path: Path, project: Project, broker: Broker) -> None:
    """With the time that it took from the plan to the confirm."""
    with Service(tmp_path / "data", AMQP_URL=broker.url) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        service.deliver(connection, project.payload(project.first, pushed))
        wait_for(lambda: service.api.get("/executions", state="published")["items"], "it is published")
        _, found = metrics(service)
    assert found["pushgate_requests_published_total",] == 1
    assert found["pushgate_stage_seconds_count", "publish"] == 1
    assert found["pushgate_pending_requests",] == 0
