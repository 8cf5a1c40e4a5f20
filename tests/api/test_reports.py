"""`POST /executions/{id}/status`: who may report, what is answered, and what becomes of it."""

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.api.reports import ReportWriter
from gateway.cli.api_client import ApiError
from gateway.cli.output import state_line
from gateway.errors import StoreUnavailable
from gateway.messages.execution_status import MAX_REPORT_BYTES, STATUS_TYPE, ExecutionStatus
from gateway.store import executions
from gateway.store.database import Database
from testing.records import NOW, connection
from testing.service import Project, Service, run_pushgate
from tests.dashboard.getting import got, signed_in
from tests.store.requests import LATEST, plan, push

AT = "2026-05-04T12:31:40Z"


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Post a body without the token; return the status and the answer."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=30)) as client:
        client.request("POST", f"{parts.path}?{parts.query}", body, headers)
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())


def execution_of(service: Service, project: Project) -> Any:
    """Push, and return the planned execution."""
    connected = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connected, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    return execution


def receipt(state: str, cancel_requested_at: str | None = None) -> dict[str, Any]:
    """Return the answer to a report."""
    return {"state": state, "cancel_requested_at": cancel_requested_at}


def report(execution: Any, state: str, sequence: int, **more: Any) -> dict[str, Any]:
    """Return the body of a report."""
    return {"id": execution["id"], "state": state, "at": AT, "sequence": sequence, **more}


def test_a_runner_reports_to_the_url_in_its_request(service: Service, project: Project) -> None:
    """Without a token, in any order and repeatedly; the answer has the state that counts."""
    execution = execution_of(service, project)
    url = execution["message"]["status_url"]
    assert (execution["state"], execution["run"]) == ("pending", None)

    def reported(*states: tuple[str, int], **more: Any) -> list[tuple[int, Any]]:
        return [post(url, json.dumps(report(execution, *state, **more)).encode()) for state in states]

    assert reported(("running", 2), ("accepted", 1), ("running", 2)) == [(200, receipt("running"))] * 3
    shown = service.api.get(f"/executions/{execution['id']}")
    assert (shown["state"], shown["reason"], shown["run"]["started_at"]) == ("running", None, AT)
    end = {"summary": "accuracy 0.93", "url": "https://ml.example/7", "metrics": {"accuracy": 0.93}}
    assert reported(("succeeded", 3), **end) == [(200, receipt("succeeded"))]
    assert reported(("succeeded", 3), ("failed", 4), ("running", 2)) == [(200, receipt("succeeded"))] * 3
    shown = service.api.get(f"/executions/{execution['id']}")
    assert shown["state"] == "succeeded"
    assert {name: shown["run"][name] for name in end} == end
    assert (shown["run"]["ended_at"], shown["run"]["accepted_at"]) == (AT, None)


def test_the_answer_to_a_report_names_a_cancellation(service: Service, project: Project) -> None:
    """A runner that only reports learns of it; the state is what it has reported."""
    execution = execution_of(service, project)
    url, path = execution["message"]["status_url"], f"/executions/{execution['id']}"
    assert post(url, json.dumps(report(execution, "running", 1)).encode()) == (200, receipt("running"))
    cancelled = service.api.send("POST", f"{path}/cancel", {})
    assert (cancelled["state"], cancelled["reason"]) == ("running", None)
    moment = cancelled["cancel_requested_at"]
    assert service.api.send("POST", f"{path}/cancel", {}) == cancelled
    for state, sequence in (("running", 2), ("cancelled", 3)):
        answer = post(url, json.dumps(report(execution, state, sequence)).encode())
        assert answer == (200, receipt(state, moment))
    assert service.api.send("POST", f"{path}/cancel", {})["state"] == "cancelled"
    again = service.api.send("POST", f"{path}/rerun?key=1", {})
    assert (again["rerun_of"], again["message"]["rerun_of"]) == (execution["id"], execution["id"])
    assert service.api.send("POST", f"{path}/rerun?key=1", {})["id"] == again["id"]
    assert service.api.get(path)["rerun_by"] == [again["id"]]


def test_a_report_comes_with_the_token_or_as_a_cloud_event_too(service: Service, project: Project) -> None:
    """In structured mode, as SDKs of CloudEvents send it."""
    execution = execution_of(service, project)
    path = f"/executions/{execution['id']}/status"
    assert service.api.send("POST", path, report(execution, "accepted", 1)) == receipt("accepted")
    event = {
        "specversion": "1.0",
        "id": "e1",
        "source": "/runners/7",
        "type": STATUS_TYPE,
        "data": report(execution, "rejected", 2),
    }
    url, kind = execution["message"]["status_url"], "application/cloudevents+json; charset=utf-8"
    assert post(url, json.dumps(event).encode(), **{"content-type": kind}) == (200, receipt("rejected"))


def test_a_cdevent_at_the_url_of_a_request_is_a_report(service: Service, project: Project) -> None:
    """In binary mode, whatever the other system calls the run."""
    execution = execution_of(service, project)
    path = Path(__file__).parents[1] / "messages" / "cdevents" / "taskrun_finished-0.5.1.json"
    event, url = json.loads(path.read_text(encoding="utf-8")), execution["message"]["status_url"]
    headers = {"ce-type": event["context"]["type"], "content-type": "application/json"}
    assert post(url, json.dumps(event).encode(), **headers) == (200, receipt("failed"))
    other = json.dumps({**event, "customData": {"pushgate": {"execution": "other"}}}).encode()
    assert post(url, other, **headers)[0] == 422


def test_only_a_valid_signature_or_the_token_may_report(service: Service, project: Project) -> None:
    """A URL is about one execution; the token of another URL is of no use."""
    execution = execution_of(service, project)
    url, body = execution["message"]["status_url"], json.dumps(report(execution, "running", 1)).encode()
    bare = url.partition("?")[0]
    assert post(bare, body)[0] == 401
    assert post(bare, body, authorization="Bearer wrong")[0] == 401
    for wrong in (
        url.replace("signature=", "signature=0"),
        url.replace("expires=", "expires=1"),
        url.replace(execution["id"], "5c0ffee0-1a2b-5c3d-8e4f-0123456789ab"),
    ):
        status, answer = post(wrong, body)
        assert (status, answer["error"]) == (403, "not allowed")
        assert answer["detail"] == "the signature of this URL is invalid or has expired"
    assert service.api.get(f"/executions/{execution['id']}")["state"] == "pending"


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, "Invalid JSON"),
        (b"[]", 422, "Input should be an object"),
        (b'{"state": "running"}', 422, "id: Field required"),
        (b'{"id": "another", "state": "running", "at": "%s", "sequence": 1}' % AT.encode(), 422, "id: it is"),
        (b'{"id": "x", "state": "lost", "at": "%s", "sequence": 1}' % AT.encode(), 422, "state: "),
        (b" " * (MAX_REPORT_BYTES + 1), 413, "larger than 131072 bytes"),
    ],
)
def test_what_is_no_report_is_refused_with_a_sentence(
    service: Service, body: bytes, status: int, detail: str
) -> None:
    """It names the field and never its value."""
    token = {"authorization": f"Bearer {service.admin_token}"}
    found, answer = post(f"{service.url}/api/v1/executions/one/status", body, **token)
    assert found == status
    assert detail in answer["detail"]


def events(service: Service, *, last: str | None = None) -> Generator[tuple[str, str, Any]]:
    """Follow the stream; yield the name, the id and the data of each event."""
    headers = {"authorization": f"Bearer {service.admin_token}"}
    if last is not None:
        headers["last-event-id"] = last
    request = urllib.request.Request(f"{service.url}/api/v1/executions/stream", headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own gateway
        event: dict[str, str] = {}
        for line in answer:
            if line.startswith(b":"):
                continue
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                event[name] = value
                continue
            yield event.get("event", ""), event.get("id", ""), json.loads(event.get("data", "null"))
            event = {}


def test_a_follower_sees_reports_and_misses_none_while_it_is_away(service: Service, project: Project) -> None:
    """The id of an event names the positions of new requests and of reports."""
    execution = execution_of(service, project)
    path = f"/executions/{execution['id']}/status"
    followed = events(service)
    _, start, _ = next(followed)
    service.api.send("POST", path, report(execution, "accepted", 1))
    name, position, shown = next(followed)
    assert (name, shown["id"], shown["state"]) == ("state", execution["id"], "accepted")
    assert "message" not in shown
    followed.close()
    service.api.send("POST", path, report(execution, "running", 2))
    service.api.send("POST", path, report(execution, "failed", 3, summary="out of memory"))
    _, (name, _, shown) = islice(events(service, last=position), 2)
    assert (name, shown["state"], shown["run"]["summary"]) == ("state", "failed", "out of memory")
    assert state_line(shown).endswith(f"train  {execution['id']}  [red]failed[/red]: out of memory")
    # As a client of an earlier version continues: behind a request, from the present reports on.
    again = events(service, last="0")
    assert next(again)[1] == "0-3"
    name, position, shown = next(again)
    assert (name, position, shown["state"]) == ("execution", "1-3", "failed")
    assert start == "1-0"
    with pytest.raises(urllib.error.HTTPError):
        next(events(service, last="1-x"))


def test_requests_are_listed_by_what_was_reported(service: Service, project: Project) -> None:
    """In the API, by command, in an explanation and in the dashboard."""
    execution = execution_of(service, project)
    path = f"/executions/{execution['id']}/status"
    page = "https://ml.example/7"
    service.api.send("POST", path, report(execution, "running", 1, runner="r 7", url=page))
    end = report(execution, "failed", 2, summary="[b]out[/b] of memory\nat line 3", metrics={"loss": 0.25})
    service.api.send("POST", path, end)
    assert [one["id"] for one in service.api.get("/executions", state="failed")["items"]] == [execution["id"]]
    assert service.api.get("/executions", state="pending")["items"] == []
    listed = run_pushgate("executions", "--state", "failed", service=service)
    assert f"[b]out[/b] of memory, {page}" in listed.stdout
    why = run_pushgate("explain", execution["id"], service=service)
    assert f"running, started {AT} by r 7" in why.stdout
    assert f"failed {AT}: [b]out[/b] of memory, {page}" in why.stdout
    cookie = signed_in(service)
    pages = (
        "/executions?state=failed",
        f"/deliveries/{execution['delivery']}",
        f"/executions/{execution['id']}",
    )
    for path in pages:
        _, shown, _ = got(service.url + path, cookie)
        assert f'<a href="{page}" rel="noreferrer">the run</a>'.lower() in shown.lower()
    assert "<div>loss: 0.25</div>" in shown
    assert "[b]out[/b] of memory\nat line 3" in shown


def test_an_unknown_execution_is_answered_and_explained(service: Service) -> None:
    """Whoever searches for the id finds that a runner has reported it."""
    name = "5c0ffee0-1a2b-5c3d-8e4f-0123456789ab"
    with pytest.raises(ApiError, match=f"no execution has the id {name}"):
        service.api.send(
            "POST", f"/executions/{name}/status", report({"id": name}, "running", 1, runner="r 7")
        )
    with pytest.raises(ApiError, match="The runner r 7 reported it as running, last at 20"):
        service.api.get("/explain", what=name)


def recorded(database: Database, names: Sequence[str]) -> tuple[list[str | None], int]:
    """Report these executions at once; return the states and how often others were notified."""
    notified: list[None] = []
    writer = ReportWriter(database, notify=lambda: notified.append(None))

    async def all_at_once() -> list[str | None]:
        reports = [ExecutionStatus(id=name, state="running", at=NOW, sequence=1) for name in names]
        outcomes = await asyncio.gather(*map(writer.record, reports))
        return [outcome.state for outcome in outcomes]

    return asyncio.run(all_at_once()), len(notified)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a store with one request, `r1`."""
    database = Database(f"sqlite:///{tmp_path / 'reports.db'}")
    database.migrate()
    connection(database)
    plan(database, push(database, "d1", "a" * 40, "b" * 40), LATEST)
    return database


def test_reports_that_arrive_together_are_written_together(database: Database) -> None:
    """Each gets its own outcome; followers are notified once, and not of repetitions."""
    with closing(database):
        with database.reading() as conn:
            [stored], _ = executions.page(
                conn, connection=None, delivery=None, state=None, before=None, limit=1
            )
        states, notified = recorded(database, [stored.id, "x", stored.id])
        assert (states, notified) == (["running", None, "running"], 1)
        assert recorded(database, [stored.id]) == (["running"], 0)


def test_an_outage_of_the_store_is_answered_to_each(tmp_path: Path) -> None:
    """Nothing is acknowledged that is not durable; the runner repeats its report."""
    database = Database(f"sqlite:///{tmp_path / 'no such folder' / 'x.db'}")
    with closing(database), pytest.raises(StoreUnavailable):
        recorded(database, ["r1", "r2"])
