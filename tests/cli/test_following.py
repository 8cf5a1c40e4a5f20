"""The commands that follow a gateway, also while it is killed and started again: `logs` and `listen`."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.api_client import Unreachable
from gateway.cli.app import app
from gateway.cli.following import NewDeliveries
from testing.github import push_payload
from testing.service import ADMIN_TOKEN, WAIT_SECONDS, Project, Service, wait_for
from testing.service import run_pushgate as run

URL = "https://github.example/acme/digits.git"


def port_of(service: Service) -> int:
    """Return the port, so that a gateway starts again at the same URL."""
    return int(service.url.rpartition(":")[2])


def payload(number: int) -> bytes:
    """Return the payload of a push, with spaces that a parser would not keep."""
    body = push_payload(
        url=URL, full_name="acme/digits", ref=f"refs/heads/b{number}", before=None, after=f"{number:040x}"
    )
    return body + b" \n" * number


@contextmanager
def following(service: Service, *arguments: str, **variables: str) -> Iterator[Future[Any]]:
    """Run a command that goes on until its gateway is given up, in a thread of this process."""
    given = {"PUSHGATE_URL": service.url, "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN, **variables}
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(CliRunner().invoke, app, list(arguments), env=given)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the clock of the client, which a test sets forward so that it gives up."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("gateway.cli.api_client.time", clock)
    return clock


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the lines that `logs --json` prints in this process, as they come."""
    lines: list[Any] = []
    monkeypatch.setattr("gateway.cli.logs.print_json", lambda line, **_: lines.append(line))
    return lines


def test_listen_forwards_each_delivery_once(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, with the secret of the other gateway's connection; whichever gateway is away a while."""
    reports: list[str] = []
    monkeypatch.setattr("gateway.cli.listen.report", reports.append)
    with Service(tmp_path / "public", ROLE="web") as public, Service(tmp_path / "own", ROLE="web") as own:
        far, near = public.connect(URL, name="acme/digits"), own.connect(URL)
        sent: dict[str, bytes] = {}

        def deliver(number: int) -> None:
            sent[f"id-{number}"] = payload(number)
            public.deliver(far, payload(number), x_github_delivery=f"id-{number}")

        def arrived() -> dict[str, str]:
            found = own.api.items("/deliveries")
            return {one["provider_delivery_id"]: one["id"] for one in found}

        deliver(0)
        to = f"--to={own.url}{near['path']}"
        options = ("--connection=acme/digits", to, "--json")
        with following(public, "listen", *options, WEBHOOK_SECRET=near["secret"]) as command:
            numbers = iter(range(1, 100))
            # It listens from its own start, which is not signalled.
            while not arrived():
                deliver(next(numbers))
                time.sleep(0.2)
            first = int(min(arrived(), key=lambda id_: int(id_[3:]))[3:])
            port = port_of(public)
            public.kill()
            public.start(port)
            deliver(101)
            port = port_of(own)
            own.kill()
            deliver(102)
            deliver(103)
            wait_for(lambda: reports, "it has noticed that the other gateway is away")
            own.start(port)
            wait_for(lambda: "id-103" in arrived(), "the last one is forwarded")
            assert reports[-1] == f"{own.url}{near['path']} answers again."
            public.kill()
            clock.monotonic = lambda: time.monotonic() + 1000
            result = command.result(WAIT_SECONDS)
        assert isinstance(result.exception, Unreachable)
        assert f"cannot reach the gateway at {public.url} (from PUSHGATE_URL)" in str(result.exception)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        forwarded = [line["delivery"]["provider_delivery_id"] for line in lines]
        expected = [id_ for id_ in sent if int(id_[3:]) >= first]
        assert forwarded == expected
        assert [line["forwarded"]["verdict"] for line in lines] == ["accepted"] * len(lines)
        copies = arrived()
        assert set(copies) == set(expected)
        for provider_id, stored in copies.items():
            assert own.api.raw(f"/deliveries/{stored}/body") == sent[provider_id]


def test_new_deliveries_are_found_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also more than one page of them."""
    monkeypatch.setattr("gateway.cli.following._PAGE", 3)
    with Service(tmp_path / "data", ROLE="web") as web:
        connection, other = web.connect(URL), web.connect(URL, name="other")
        arriving = NewDeliveries(web.api, None)
        of_one = NewDeliveries(web.api, connection["id"])
        assert arriving.look() == []
        for number in range(8):
            web.deliver(connection if number else other, payload(number), x_github_delivery=f"id-{number}")
        found = [one["provider_delivery_id"] for one in arriving.look()]
        assert found == [f"id-{number}" for number in range(8)]
        assert arriving.look() == []
        assert len(of_one.look()) == 7
        assert NewDeliveries(web.api, None).look() == []


def test_logs_follow_a_delivery_to_its_end(service: Service, project: Project, printed: list[Any]) -> None:
    """Through a restart of the gateway, without a repeated line; the exit status says how it has ended."""
    connection = service.connect(project.url, "train@main", "other@dev", name="acme/digits")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, sent = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(sent["delivery"])
    [execution] = service.api.get("/executions")["items"]

    def report(state: str, sequence: int) -> None:
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        body = {
            "id": execution["id"],
            "state": state,
            "at": at,
            "sequence": sequence,
            "summary": "accuracy 1",
        }
        service.api.send("POST", f"/executions/{execution['id']}/status", body)

    with following(service, "logs", sent["delivery"], "--follow", "--json") as command:
        report("running", 1)
        wait_for(lambda: "running" in [line["state"] for line in printed], "the command follows")
        port = port_of(service)
        service.kill()
        service.start(port)
        report("succeeded", 2)
        result = command.result(WAIT_SECONDS)
    assert result.exit_code == 0, result.output
    lines = printed
    states = [line["state"] for line in lines if line["state"] != "waiting"]
    for state in ("received", "accepted", "fetched", "planned", "matched", "unmatched", "requested"):
        assert states.count(state) == 1
    assert states[-1] == "succeeded"
    assert lines[-1]["text"] == f"train {execution['id']}: accuracy 1"
    plain = run("logs", "acme/digits", service=service).stdout
    assert "acme/digits  unmatched  trigger other@dev: branch main does not match dev" in plain
    assert run("logs", service=service).stdout == plain

    # A duplicate has ended when it is received: nothing of it waits.
    _, repeated = service.deliver(connection, project.payload(project.first, pushed))
    ended = run("logs", repeated["delivery"], "--json", service=service).stdout
    lines = [json.loads(line) for line in ended.splitlines()]
    assert [line["state"] for line in lines] == ["received", "duplicate", "duplicate"]
    assert len({line["at"] for line in lines}) == 1

    broken = project.push("Broken", {"valohai.yaml": "- step: [\n"})
    _, sent = service.deliver(connection, project.payload(pushed, broken))
    failed = run("logs", sent["delivery"], "-f", service=service)
    assert failed.returncode == 1
    assert "  failed     main " in failed.stdout


def test_logs_follow_a_connection_from_its_first_delivery(
    tmp_path: Path, clock: SimpleNamespace, printed: list[Any]
) -> None:
    """It has none yet; a gateway that stays away is an error."""
    with Service(tmp_path / "data", ROLE="web") as web:
        connection = web.connect(URL, name="acme/digits")
        assert "no deliveries" in run("logs", "acme/digits", service=web).stderr
        with following(web, "logs", "acme/digits", "--follow", "--json") as command:
            for number in (1, 2, 3):
                web.deliver(connection, payload(number))
            wait_for(lambda: len(printed) == 6, "all lines are printed")
            web.kill()
            clock.monotonic = lambda: time.monotonic() + 1000
            result = command.result(WAIT_SECONDS)
    assert isinstance(result.exception, Unreachable)
    assert [line["state"] for line in printed] == ["received", "accepted"] * 3
