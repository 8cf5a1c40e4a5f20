"""The trace of a push, as a collector receives it from several processes that are killed in between."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.broker import Broker
from testing.collector import Collector, ReceivedSpan
from testing.postgres import Postgres
from testing.provider_apis.fake import serving
from testing.service import Command, Project, Service, wait_for
from tests.publish.runner import Runner

EXCHANGE = "traces"
SECRETS = {
    "webhook": "the-secret-of-the-webhook",
    "query": "the-token-in-a-query",
    "header": "the-token-in-a-header",
    "collector": "the-key-of-the-collector",
    "page": "the-signature-of-a-page",
    "body": "the-secret-in-a-body",
    "password": "the-password-of-a-url",
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Run a collector, to which every gateway of the test exports."""
    collector = Collector()
    with serving(collector), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRETS['collector']}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


def deliver(service: Service, connection: Any, project: Project, commit: str) -> str:
    """Deliver a push with a secret wherever a sender can put one; return the delivery's id."""
    body = json.loads(project.payload(project.first, commit))
    body["repository"] |= {"pushed_at": 1_790_000_000, "deploy_key": SECRETS["body"]}
    body["repository"]["html_url"] = f"https://ada:{SECRETS['password']}@git.example/acme/digits"
    url = {**connection, "path": f"{connection['path']}?token={SECRETS['query']}"}
    status, answer = service.deliver(url, json.dumps(body).encode(), x_token=SECRETS["header"])
    assert status == 202, answer
    return str(answer["delivery"])


def report(service: Service, execution: str, state: str, at: str, sequence: int) -> None:
    """Report what became of an execution, with a page whose URL is signed."""
    page = f"https://ada:{SECRETS['password']}@runs.example/7?signature={SECRETS['page']}"
    body = {"id": execution, "state": state, "at": at, "sequence": sequence, "url": page}
    service.api.send("POST", f"/executions/{execution}/status", body)


def taken(broker: Broker) -> Any:
    """Take the message of the execution request."""

    async def one() -> Any:
        async with Runner(broker.url) as runner:
            return (await runner.take(EXCHANGE, 1))[0]

    return asyncio.run(one())


def test_a_push_is_one_trace_although_every_process_is_killed_on_the_way(
    tmp_path: Path, postgres: Postgres, broker: Broker, project: Project, collector: Collector
) -> None:
    """From the request to the end of the run; the message names the span that has published it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    shared = {
        "DATABASE_URL": postgres.database(),
        "SECRET_KEY": "trace" * 10,
        "AMQP_URL": broker.url,
        "AMQP_EXCHANGE": EXCHANGE,
        "AMQP_QUEUE": EXCHANGE,
        "PACKAGES_URL": packages.as_uri(),
        "LOG_DELIVERIES": "true",
    }
    commit = project.push("A faster model", {"train.py": "print(2)\n"})

    def seen(name: str) -> ReceivedSpan:
        found: ReceivedSpan = wait_for(lambda: collector.of(trace).get(name), f"a span {name} is exported")
        return found

    with Service(tmp_path / "web", **shared, ROLE="web") as web:
        connection = web.connect(project.url, "train@main", secret=SECRETS["webhook"])
        delivery = deliver(web, connection, project, commit)
        [line] = wait_for(lambda: [one for one in web.log() if one["event"] == "delivery accepted"], "it")
        trace = line["trace_id"]
        request = seen("POST /hooks/{connection}")
        web.kill()
        with Command(tmp_path / "worker", **shared, ROLE="worker", WORKERS="2") as worker:
            published = seen(f"publish {EXCHANGE}")
            message = taken(broker)
            settled = next(one for one in worker.log() if one["event"] == "push settled")
            worker.kill()
        web.start()
        report(web, message.message_id, "running", "2026-11-30T12:00:00Z", 1)
        report(web, message.message_id, "succeeded", "2026-11-30T12:05:00Z", 2)
        run = seen("RUN train")
        assert web.stop() == 0
        lines = web.log()

    spans = collector.of(trace)
    assert message.headers["traceparent"] == f"00-{trace}-{published.id}-01"
    assert {name: span.parent for name, span in spans.items()} == {
        request.name: "",
        "fetch": request.id,
        "plan": request.id,
        "build package": spans["plan"].id,
        published.name: request.id,
        "RUN train": published.id,
    }
    assert [request.kind, published.kind, run.kind] == ["server", "producer", "server"]
    assert request.attributes.items() >= {
        ("http.request.method", "POST"),
        ("http.route", "/hooks/{connection}"),
        ("http.response.status_code", 202),
        ("vcs.provider.name", "github"),
        ("vcs.repository.name", "digits"),
        ("vcs.ref.head.revision", commit),
        ("pushgate.delivery.id", delivery),
    }
    assert request.events["push"] == 1_790_000_000 * 10**9
    assert request.started_ns < request.events["verified"] < request.ended_ns
    assert run.ended_ns - run.started_ns == 300 * 10**9
    assert run.attributes["cicd.pipeline.result"] == "success"
    assert run.attributes["cicd.pipeline.run.url.full"] == "https://runs.example/7"
    assert {span.resource["pushgate.role"] for span in spans.values()} == {"web", "worker"}
    assert {span.resource["service.name"] for span in spans.values()} == {"pushgate"}
    assert settled["trace_id"] == trace
    assert all({"version", "role"} <= line.keys() for line in lines)
    received = b"".join(request.body for request in collector.requests)
    hidden = [*SECRETS.values(), connection["id"], shared["SECRET_KEY"], broker.password, web.admin_token]
    assert [secret for secret in hidden if secret.encode() in received] == []
    assert [secret for secret in hidden[: len(SECRETS)] if secret in json.dumps(lines)] == []


def test_a_collector_that_is_down_is_logged_once_and_delays_nothing(
    tmp_path: Path, project: Project, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outage is one line, not one for each batch, and the gateway ends soon."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with Service(tmp_path / "data") as service:
        connection = service.connect(project.url, "train@main")

        def lost() -> list[Any]:
            return [line for line in service.log() if line["event"].startswith("spans are lost")]

        service.settled(deliver(service, connection, project, project.first))
        [line] = wait_for(lost, "the outage is logged")
        assert line["reason"] == "it cannot be reached (ConnectionError)"
        for number in range(5):
            service.settled(
                deliver(service, connection, project, project.push(str(number), {"a": str(number)}))
            )
        assert len(lost()) == 1
        assert service.stop() == 0
        libraries = [line for line in service.log() if "span batch" in line["event"]]
    assert libraries == []
    assert collector.requests == []
