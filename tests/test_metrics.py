"""What `/metrics` tells, as Prometheus reads it."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.service import Project, Service


def test_what_happens_is_counted(service: Service, project: Project) -> None:
    """By few labels; nothing of a repository or a secret is in it."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    body = project.payload(project.first, pushed)
    _, answer = service.deliver(connection, body)
    service.settled(answer["delivery"])
    service.deliver(connection, body)
    service.deliver({**connection, "secret": "wrong"}, body)
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        text = answered.read().decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["pushgate_deliveries_total", "accepted", "github"] == 1
    assert found["pushgate_deliveries_total", "duplicate", "github"] == 1
    assert found["pushgate_refused_total", "401"] == 1
    assert found["pushgate_ref_updates_settled_total", "planned"] == 1
    assert found["pushgate_stage_seconds_count", "fetch"] == 1
    assert found["pushgate_pending_requests",] == 1
    assert found["pushgate_pending_events",] == 0
    assert found["pushgate_pending_ref_updates",] == 0
    assert "digits" not in text
