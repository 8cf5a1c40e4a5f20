"""An outage of the broker is shown in metrics, executions, explain and the dashboard."""

import http.client
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from testing.broker import Broker
from testing.service import ADMIN_TOKEN, Project, Service, run_pushgate, wait_for
from tests.test_metrics import metrics

NOWHERE = "amqp://127.0.0.1:1/"


def overview(service: Service) -> str:
    """Return the dashboard's first page for a signed-in user."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=30)
    connection.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN}))
    cookie = str(connection.getresponse().headers["set-cookie"]).partition(";")[0]
    connection.close()
    asked = urllib.request.Request(service.url, headers={"cookie": cookie})  # noqa: S310 - our own gateway
    with urllib.request.urlopen(asked) as answer:  # noqa: S310 - the same
        return str(answer.read().decode())


def test_an_outage_of_the_broker_and_its_end_are_shown_everywhere(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """Waiting requests have the outage as their reason; once published, they no longer show it."""
    name = f"outage-{uuid.uuid4().hex}"
    settings = {"AMQP_EXCHANGE": name, "AMQP_QUEUE": name, "AMQP_EVENTS": "push.fetched"}
    data = tmp_path / "data"
    with Service(data, AMQP_URL=NOWHERE, **settings) as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        service.settled(answer["delivery"])

        def execution() -> str:
            [one] = service.api.get("/executions")["items"]
            assert one["state"] == "pending"
            return str(one["reason"])

        away = "the broker at 127.0.0.1:1 cannot be reached"
        wait_for(lambda: away in execution(), "the outage is shown")
        assert f"pending: {away}" in run_pushgate("explain", pushed, service=service).stdout
        assert "Requests are not published" in overview(service)

        def an_outage_of_events_is_shown() -> bool:
            return "Events are not published" in overview(service)

        wait_for(an_outage_of_events_is_shown, "that of events as well")
        _, found = metrics(service)
        assert found["pushgate_broker_connected", "request"] == 0
        assert found["pushgate_broker_connected", "event"] == 0
        assert found["pushgate_oldest_unpublished_request_seconds",] > 0
        assert found["pushgate_oldest_unpublished_event_seconds",] > 0

    with Service(data, AMQP_URL=broker.url, **settings) as service:
        wait_for(lambda: service.api.get("/executions", state="published")["items"], "it is published")
        wait_for(lambda: "not published" not in overview(service), "the outage is over")

        def is_well() -> bool:
            found = metrics(service)[1]
            ages = [found[f"pushgate_oldest_unpublished_{what}_seconds",] for what in ("request", "event")]
            connected = [found.get(("pushgate_broker_connected", what)) for what in ("request", "event")]
            return ages == [0, 0] and connected == [1, 1]

        wait_for(is_well, "the metrics say so")


def test_without_a_broker_nothing_is_out(service: Service, project: Project) -> None:
    """Requests stay in the store, by choice: no age metric grows, and no outage is shown."""
    connection = service.connect(project.url, "train@main")
    _, answer = service.deliver(connection, project.payload(None, project.first))
    service.settled(answer["delivery"])
    text, found = metrics(service)
    assert found["pushgate_pending_requests",] == 1
    assert found["pushgate_oldest_unpublished_request_seconds",] == 0
    assert "pushgate_broker_connected{" not in text
    assert "not published" not in overview(service)
