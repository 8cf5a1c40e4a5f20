"""Several processes behind one port, `pushgate serve --workers N`, also when one dies."""

import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli.api_client import ApiError
from gateway.server.supervisor import Pulse
from testing.git_host import GitHost
from testing.postgres import Postgres
from testing.service import Command, Project, Service, run_interpreter, wait_for

WORKERS = 3


@pytest.fixture
def shared(postgres: Postgres) -> dict[str, str]:
    """Return the settings of a gateway on PostgreSQL with several processes."""
    return {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32, "WORKERS": str(WORKERS)}


@pytest.fixture
def gateway(tmp_path: Path, shared: dict[str, str]) -> Iterator[Service]:
    """Start that gateway, with all its processes listening."""
    with Command(tmp_path / "data", **shared) as service:
        wait_for(lambda: len(processes(service)) == WORKERS, "all processes listen")
        yield service


def processes(service: Service) -> dict[int, int]:
    """Return the latest listening process of each number: process ids by number."""
    return {line["process"]: line["pid"] for line in service.log() if line["event"] == "listening"}


def _all_listening(service: Service, count: int) -> dict[int, int] | None:
    found = processes(service)
    return found if len(found) == count else None


def answered(service: Service, project: Project, connection: Any, numbers: range) -> list[str]:
    """Push so many branches at once, by several senders; return the deliveries that were acknowledged."""
    done: list[str] = []

    def send(number: int) -> None:
        body = project.payload(None, project.first, f"refs/heads/branch-{number}")
        try:
            status, answer = service.deliver(connection, body)
        except ApiError:
            return  # its process was killed during the request: the provider would show a failed delivery
        if status == 202:
            done.append(answer["delivery"])

    threads = [threading.Thread(target=send, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_that_is_killed_is_started_again_and_nothing_acknowledged_is_lost(
    gateway: Service, project: Project
) -> None:
    """Under load; the other processes go on, and the new one serves like the old one."""
    connection = gateway.connect(project.url, "train@*")
    before = processes(gateway)
    done = answered(gateway, project, connection, range(20))
    killing = threading.Timer(0.05, os.kill, (before[1], signal.SIGKILL))
    killing.start()
    done += answered(gateway, project, connection, range(20, 80))
    killing.join()
    wait_for(lambda: processes(gateway)[1] != before[1], "another process is in the place of the killed one")
    assert {0: before[0], 2: before[2]} == {n: pid for n, pid in processes(gateway).items() if n != 1}
    assert [line["reason"] for line in gateway.log() if line["event"] == "process died"] == ["SIGKILL"]
    done += answered(gateway, project, connection, range(80, 100))
    assert len(done) >= 40
    for delivery in done:
        assert [update["state"] for update in gateway.settled(delivery)["updates"]] == ["planned"]


def test_all_end_in_order_and_none_is_left(gateway: Service) -> None:
    """The exit status is 0; each process logs its end."""
    pids = processes(gateway)
    assert gateway.stop() == 0
    assert [pid for pid in pids.values() if is_alive(pid)] == []
    assert sorted(line["process"] for line in gateway.log() if line["event"] == "ended") == sorted(pids)


def test_none_is_left_when_the_supervisor_is_killed(gateway: Service) -> None:
    """They notice it, and end cleanly."""
    pids = processes(gateway)
    gateway.kill()
    wait_for(lambda: not any(map(is_alive, pids.values())), "all have ended")
    assert sorted(line["process"] for line in gateway.log() if line["event"] == "ended") == sorted(pids)


def test_what_is_counted_is_counted_by_all(gateway: Service, project: Project) -> None:
    """Whichever process serves the metrics; the counts of a dead process are included."""
    connection = gateway.connect(project.url, "train@*")
    for delivery in answered(gateway, project, connection, range(30)):
        gateway.settled(delivery)
    killed = processes(gateway)[1]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: processes(gateway)[1] != killed, "another process is in its place")
    for _ in range(10):
        with urllib.request.urlopen(f"{gateway.url}/metrics") as answer:  # noqa: S310 - our own gateway
            text = answer.read().decode()
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["pushgate_deliveries_total", "accepted", "github"] == 30
        assert found["pushgate_ref_updates_settled_total", "planned"] == 30
        assert found["pushgate_processes_died_total", "died"] == 1
        assert (
            found["pushgate_processes",]
            == found["pushgate_worker_processes_alive",]
            == len(processes(gateway))
        )
        for name in (*map(str, processes(gateway)), "supervisor"):
            assert found["process_resident_memory_bytes", name] > 0
        assert found["pushgate_pending_ref_updates",] == 0
        assert found["pushgate_pending_requests",] == 30


def test_one_that_dies_again_and_again_is_left_alone_for_longer(gateway: Service) -> None:
    """So its successors do not keep the machine busy."""
    for _ in range(3):
        pid = processes(gateway)[2]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: processes(gateway)[2] != pid, "another process is in its place")  # type: ignore[misc]
    waited = [line["starts_again_in_s"] for line in gateway.log() if line["event"] == "process died"]
    assert waited == sorted(set(waited))
    assert len(waited) == 3


def test_what_cannot_start_is_not_tried_forever(tmp_path: Path, shared: dict[str, str]) -> None:
    """A fault of one is a fault of all: they end, with a sentence."""
    authority = tmp_path / "authority.pem"
    authority.write_text("no certificate", encoding="utf-8")
    wrong = {"AMQP_URL": "amqps://broker.example/", "AMQP_CA_FILE": str(authority)}
    variables = {f"PUSHGATE_{name}": value for name, value in {**shared, **wrong}.items()}
    done = run_interpreter("serve", "--port", "0", "--data", tmp_path / "data", variables=variables)
    assert done.returncode == 1
    assert "the broker's TLS files cannot be used" in done.stderr


def test_a_port_that_is_taken_is_reported(tmp_path: Path, shared: dict[str, str], gateway: Service) -> None:
    """Before any process is started."""
    variables = {f"PUSHGATE_{name}": value for name, value in shared.items()}
    port = gateway.url.rpartition(":")[2]
    done = run_interpreter("serve", "--port", port, "--data", tmp_path / "other", variables=variables)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "2"], "several processes on one SQLite database are no faster than one"),
        (["--workers", "0"], "the setting workers (PUSHGATE_WORKERS) is wrong"),
    ],
)
def test_more_processes_need_postgresql(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """SQLite allows one; one sentence says so before anything starts."""
    done = run_interpreter("serve", "--data", tmp_path / "data", *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (tmp_path / "data").exists()


def test_workers_share_a_data_folder_and_replace_one_that_dies_or_hangs(
    tmp_path: Path, shared: dict[str, str], githost: GitHost
) -> None:
    """Each takes a part of the work; what the one was working on goes on when its successor has started."""
    role = {"ROLE": "worker", "WORKERS": "2", "CONCURRENCY": "1", "HANG_TIMEOUT": "3"}
    with (
        Service(tmp_path / "web", **{**shared, "WORKERS": "1", "ROLE": "web"}) as web,
        Command(tmp_path / "workers", **{**shared, **role}) as workers,
    ):
        before = wait_for(lambda: _all_listening(workers, 2), "both listen")
        projects = [Project(githost, tmp_path, f"acme/digits-{number}") for number in range(4)]
        connected = [web.connect(project.url, "train@*") for project in projects]

        def deliver(ref: str) -> list[str]:
            pushes = [project.payload(None, project.first, ref) for project in projects]
            sent = [web.deliver(one, push) for one, push in zip(connected, pushes, strict=True)]
            return [answer["delivery"] for _, answer in sent]

        def all_planned(deliveries: list[str]) -> bool:
            settled = [web.settled(delivery)["updates"] for delivery in deliveries]
            return all(update["state"] == "planned" for updates in settled for update in updates)

        githost.answers.clear()
        deliveries = deliver("refs/heads/main")
        wait_for(lambda: len(githost.visits) >= 2, "both processes fetch")
        os.kill(before[1], signal.SIGKILL)
        githost.answers.set()
        wait_for(
            lambda: processes(workers)[1] != before[1], "another process is in the place of the killed one"
        )
        assert all_planned(deliveries)
        assert {line["process"] for line in workers.log() if line["event"] == "push settled"} == {0, 1}

        os.kill(before[0], signal.SIGSTOP)
        deliveries = deliver("refs/heads/other")
        wait_for(
            lambda: processes(workers)[0] != before[0], "another process is in the place of the stopped one"
        )
        assert all_planned(deliveries)
        [hung] = [line for line in workers.log() if line["event"].startswith("process hangs")]
        assert (hung["process"], hung["pid"]) == (0, before[0])
        assert workers.stop() == 0


def test_a_machine_that_was_suspended_has_no_hanging_processes() -> None:
    """Time counts that the supervisor itself has run, and only after the first beat of a process."""
    pulse = Pulse()
    assert [pulse.silent(1), pulse.silent(50)] == [0, 0]
    pulse.beat()
    assert [pulse.silent(1), pulse.silent(1), pulse.silent(3600), pulse.silent(1)] == [0, 1, 3, 4]
    pulse.beat()
    assert pulse.silent(3600) == 0
    pulse.reset()
    assert [pulse.silent(1), pulse.silent(1)] == [0, 0]
