"""Take, record, acknowledge, run, report: the example runners neither lose a request nor run it twice."""

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import aio_pika
import pytest
from aio_pika import connect

from gateway.publish.topology import Topology
from testing.broker import Broker
from testing.service import WAIT_SECONDS, wait_for
from tests.publish.runner import Runner, remove
from tests.system.recipes import EXAMPLES, NODE, RECIPES, command, environment, indented, prepare

REFERENCE = "runner_aio_pika"
ORDERED = "runner_ordered"
CONSUMER_TIMEOUT_MS = 500
_PATCHED = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import inbox, runner_aio_pika
%s
asyncio.run(runner_aio_pika.main(sys.argv[1], 1))
"""
_DIE = """
def take(*arguments):
    stored(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

stored, inbox.Inbox.take = inbox.Inbox.take, take"""
# Ends itself after the request is recorded and before it is acknowledged.
DYING: list[str | Path] = [sys.executable, "-c", _PATCHED % _DIE]
IMPATIENT: list[str | Path] = [sys.executable, "-c", _PATCHED % "inbox.REPORT_EVERY_SECONDS = 0.1"]


class Gateway(ThreadingHTTPServer):
    """What a runner needs of the gateway: serves an empty package, and receives reports."""

    def __init__(self) -> None:
        """Listen, and serve until `shutdown`."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reports: list[dict[str, Any]] = []
        self.answers: list[int] = []
        # Reports, as in `states`, whose answers say that the request was cancelled.
        self.cancelled: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        package = io.BytesIO()
        tarfile.open(fileobj=package, mode="w:gz").close()
        self.package = package.getvalue()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def request(self, name: str, script: str) -> bytes:
        """Return a request whose step runs a shell script."""
        step = {"kind": "step", "name": "train", "command": [script], "parameters": {}, "inputs": {}}
        package = {
            "url": f"{self.url}/package",
            "sha256": hashlib.sha256(self.package).hexdigest(),
            "size": len(self.package),
            "format": "tar.gz",
        }
        request = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
            "status_url": f"{self.url}/{name}",
            "package": package,
            "execution": {**step, "environment_variables": {}, "definition": {}},
        }
        return json.dumps(request).encode()

    def states(self) -> list[str]:
        """Return the states that were reported, each after the name of its request."""
        return [f"{report['name']} {report['state']}" for report in self.reports]


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self._answer(200, self.server.package)

    def do_POST(self) -> None:
        report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any] = {}
        if f"{self.path[1:]} {report['state']}" in self.server.cancelled:
            answer["cancel_requested_at"] = report["at"]
            self.server.answers = [HTTPStatus.OK]
        status = self.server.answers.pop(0) if self.server.answers else 204
        if status < 300:
            named = {"name": self.path[1:], **report}
            # A runner that was killed before it noted the answer sends a report again.
            if named not in self.server.reports:
                self.server.reports.append(named)
        self._answer(status, json.dumps(answer).encode() if status == HTTPStatus.OK else b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Serve a package, and receive reports."""
    with Gateway() as server:
        yield server
        server.shutdown()


@pytest.fixture
def topology(broker: Broker) -> Iterator[Topology]:
    """Declare queues with unique names: for requests, and two partitions; they are removed at the end."""
    name = f"protocol-{uuid.uuid4().hex}"
    topology = Topology(exchange=name, queue=name)
    ordered = Topology(exchange=name, queue=f"{name}.o", ordered=1)

    async def declare() -> None:
        async with await connect(broker.url) as connection:
            await topology.establish(connection)
            await ordered.establish(connection)

    asyncio.run(declare())
    yield topology
    for one in (topology, ordered):
        asyncio.run(remove(broker, one))


def on_channel(broker: Broker, work: Callable[[Runner], Awaitable[Any]]) -> Any:
    """Return the result of work with a channel of its own."""

    async def scenario() -> Any:
        async with Runner(broker.url) as runner:
            return await work(runner)

    return asyncio.run(scenario())


def publish(broker: Broker, queue: str, *bodies: bytes) -> None:
    """Put messages into a queue."""

    async def work(runner: Runner) -> None:
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await runner.channel.default_exchange.publish(message, queue)

    on_channel(broker, work)


def ready(broker: Broker, queue: str) -> int:
    """Return how many messages a queue holds that no consumer has."""
    return int(on_channel(broker, lambda runner: runner.count(queue)))


class Started:
    """A runner in a process group of its own, with its output in files."""

    def __init__(self, program: list[str | Path], folder: Path, queue: str) -> None:
        """Start it."""
        self.out, self.errors = (folder / name for name in ("out", "errors"))
        with self.out.open("ab") as out, self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                program,
                cwd=folder,
                env=environment(queue, folder),
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it with the step that it runs."""
        self.kill()

    def kill(self) -> None:
        """End it at once, with the step that it runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(WAIT_SECONDS)

    def ended(self) -> int:
        """Return its exit status, once it has ended."""
        return self._process.wait(WAIT_SECONDS)


class Steps:
    """Scripts of steps that note that they have begun; some wait until the test lets them end."""

    def __init__(self, folder: Path) -> None:
        """Use files in this folder."""
        self._begun, self._go = folder / "begun", folder / "go"

    def script(self, name: str, *, waits: bool = False) -> str:
        """Return the script of a step, which also prints a metric."""
        until = f"until [ -e {self._go} ]; do sleep 0.05; done; " if waits else ""
        return f"""echo {name} >>{self._begun}; {until}echo '{{"accuracy": 0.93}}'"""

    def begun(self) -> list[str]:
        """Return the names of the steps that have begun, in their order."""
        return self._begun.read_text().split() if self._begun.exists() else []

    def release(self) -> None:
        """Let the steps end that wait."""
        self._go.touch()


@pytest.mark.parametrize("recipe", [*RECIPES, ORDERED])
def test_a_runner_that_dies_while_it_executes_executes_again(
    recipe: str,
    broker: Broker,
    gateway: Gateway,
    topology: Topology,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """The request was acknowledged before; the next one is left to others meanwhile."""
    queue = f"{topology.queue}.o.ordered.1" if recipe == ORDERED else topology.queue
    prepare(recipe, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    first = gateway.request("first", steps.script("first", waits=True))
    publish(broker, queue, first, gateway.request("second", steps.script("second")))
    program = [*command(recipe, tmp_path), broker.url, "1"]
    with Started(program, tmp_path, queue) as runner:
        wait_for(steps.begun, "the first has begun")
        assert ready(broker, queue) == 1
        runner.kill()
    assert ready(broker, queue) == 1, "the first was not acknowledged"
    steps.release()
    with Started(program, tmp_path, queue) as runner:
        assert runner.ended() == 0, runner.errors.read_text()
    assert steps.begun() == ["first", "first", "second"]
    assert ready(broker, queue) == 0
    again = ["first running", "first succeeded"]
    assert gateway.states() == [
        *("first accepted", "first running", *again),
        *("second accepted", "second running", "second succeeded"),
    ]
    sequences = [report["sequence"] for report in gateway.reports]
    assert sequences == sorted(set(sequences))


def test_a_runner_that_dies_before_it_acknowledges_executes_once(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The broker delivers the message again, and its inbox has the request already."""
    prepare(REFERENCE, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    publish(broker, topology.queue, gateway.request("only", steps.script("only")))
    with Started([*DYING, broker.url], tmp_path, topology.queue) as runner:
        assert runner.ended() == -signal.SIGKILL, runner.errors.read_text()
    assert steps.begun() == []
    # An outage of the gateway delays the reports, and loses none.
    gateway.answers = [503]
    program = [*command(REFERENCE, tmp_path), broker.url]
    with Started([*program, "1"], tmp_path, topology.queue) as runner:
        assert runner.ended() == 0, runner.errors.read_text()
    assert steps.begun() == ["only"]
    assert ready(broker, topology.queue) == 0
    assert gateway.states() == []
    with Started([*program, "0"], tmp_path, topology.queue) as runner:
        assert runner.ended() == 0, runner.errors.read_text()
    assert gateway.states() == ["only accepted", "only running", "only succeeded"]
    assert gateway.reports[-1]["metrics"] == {"accuracy": 0.93}
    assert gateway.reports[-1]["summary"].splitlines() == [
        "ended with status 0",
        "",
        *indented([f"+ {steps.script('only')}", '{"accuracy": 0.93}']),
    ]


@pytest.mark.parametrize("recipe", [REFERENCE, NODE])
def test_what_an_answer_cancels_is_not_started_or_is_stopped(
    recipe: str,
    broker: Broker,
    gateway: Gateway,
    topology: Topology,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """And reported as cancelled; the next one runs."""
    prepare(recipe, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    gateway.cancelled = {"early accepted", "late running"}
    names = {"early": True, "late": True, "next": False}
    requests = (gateway.request(name, steps.script(name, waits=waits)) for name, waits in names.items())
    publish(broker, topology.queue, *requests)
    with Started([*command(recipe, tmp_path), broker.url, "3"], tmp_path, topology.queue) as runner:
        assert runner.ended() == 0, runner.errors.read_text()
    assert [name for name in steps.begun() if name != "late"] == ["next"]
    assert gateway.states() == [
        *("early accepted", "early cancelled"),
        *("late accepted", "late running", "late cancelled"),
        *("next accepted", "next running", "next succeeded"),
    ]


def test_a_message_stops_what_is_running(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """At once, with all processes of the step; not by a message about an earlier order."""
    prepare(REFERENCE, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    body = gateway.request("only", steps.script("only", waits=True))
    publish(broker, topology.queue, body)
    name = json.loads(body)["id"]

    async def cancel(runner: Runner) -> None:
        exchange = await runner.channel.get_exchange(topology.exchange)
        for execution, redrive in (("another", 0), (name, -1), (name, 0)):
            stop = json.dumps({"execution": execution, "redrive": redrive}).encode()
            await exchange.publish(aio_pika.Message(stop), "execution.cancelled.digits")

    program = [*command(REFERENCE, tmp_path), broker.url, "1"]
    with Started(program, tmp_path, topology.queue) as runner:
        wait_for(steps.begun, "it has begun")
        on_channel(broker, cancel)
        assert runner.ended() == 0, runner.errors.read_text()
    assert gateway.states() == ["only accepted", "only running", "only cancelled"]


def test_a_request_that_kills_its_runner_is_given_up(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """After three attempts, it is reported as failed, and the runner goes on."""
    prepare(REFERENCE, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    script = f"{steps.script('deadly')}; kill -9 $PPID"
    publish(broker, topology.queue, gateway.request("deadly", script))
    publish(broker, topology.queue, gateway.request("next", steps.script("next")))
    program = [*command(REFERENCE, tmp_path), broker.url, "1"]
    for status in [-signal.SIGKILL] * 3 + [0]:
        with Started(program, tmp_path, topology.queue) as runner:
            assert runner.ended() == status, runner.errors.read_text()
    assert steps.begun() == ["deadly"] * 3 + ["next"]
    assert gateway.states()[-4:] == ["deadly failed", "next accepted", "next running", "next succeeded"]


def test_a_request_that_a_runner_cannot_execute_is_reported_as_rejected(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """With the reason; its message becomes a dead letter."""
    prepare(REFERENCE, tmp_path, pytestconfig.cache)
    body = gateway.request("odd", "true").replace(b'"kind": "step"', b'"kind": "notebook"')
    publish(broker, topology.queue, body)
    program = [*command(REFERENCE, tmp_path), broker.url, "1"]
    with Started(program, tmp_path, topology.queue) as runner:
        assert runner.ended() == 0, runner.errors.read_text()
    [report] = gateway.reports
    assert (report["state"], report["summary"]) == (
        "rejected",
        "this runner executes steps, tasks and pipelines, and no kind notebook",
    )
    assert len(on_channel(broker, lambda runner: runner.take(topology.dead_queue, 1))) == 1


def test_a_failure_is_reported_with_the_end_of_its_output(gateway: Gateway, tmp_path: Path) -> None:
    """Of both streams, as a block that no line of them can end; and with the numbers and the outputs."""
    script = """\
seq 30; echo '```'; echo '{"loss": 0.5, "note": "x", "exact": true, "endless": 1e999}'
touch "$VH_OUTPUTS_DIR/model.pkl"; echo 'Traceback: no memory' >&2; exit 3"""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "inbox.py"],
        cwd=tmp_path,
        input=gateway.request("failing", script),
        capture_output=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert "ended with status 3" in done.stderr.decode()
    *before, report = gateway.reports
    assert [one["state"] for one in before] == ["accepted", "running"]
    assert (report["state"], report["metrics"]) == ("failed", {"loss": 0.5})
    assert report["outputs"] == [{"name": "model.pkl"}]
    first, blank, *log = report["summary"].splitlines()
    assert (first, blank, len(log)) == ("ended with status 3", "", 20)
    assert {"    ```", "    30", "    Traceback: no memory"} < set(log)


def test_a_run_of_three_consumer_timeouts_is_executed_once(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The runner holds no message, so the broker has nothing to take away from it."""
    prepare(REFERENCE, tmp_path, pytestconfig.cache)
    steps = Steps(tmp_path)
    with broker.consumer_timeout(CONSUMER_TIMEOUT_MS):
        publish(broker, topology.queue, gateway.request("only", steps.script("only", waits=True)))
        with Started([*IMPATIENT, broker.url], tmp_path, topology.queue) as runner:
            wait_for(steps.begun, "the step has begun")
            for _ in range(3):
                hold_until_taken_away(broker, topology.dead_queue)
            wait_for(lambda: len(gateway.reports) > 3, "it reports again and again that it runs")
            steps.release()
            assert runner.ended() == 0, runner.errors.read_text()
    assert steps.begun() == ["only"]
    assert [ready(broker, queue) for queue in (topology.queue, topology.dead_queue)] == [0, 0]
    accepted, *running, succeeded = gateway.states()
    assert (accepted, set(running), succeeded) == ("only accepted", {"only running"}, "only succeeded")


def hold_until_taken_away(broker: Broker, queue: str) -> None:
    """Hold a message until the broker closes the channel, which it does after the consumer time-out."""

    async def work(runner: Runner) -> None:
        await runner.channel.default_exchange.publish(aio_pika.Message(b"held"), queue)
        message = await (await runner.channel.get_queue(queue)).get(timeout=WAIT_SECONDS)
        assert message is not None
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.wait([asyncio.ensure_future(runner.channel.closed())])

    on_channel(broker, work)
    on_channel(broker, lambda runner: runner.take(queue, 1))


def test_a_runner_that_stands_by_keeps_the_order(
    broker: Broker, gateway: Gateway, topology: Topology, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """It receives the next request meanwhile; it begins with the one that the other has not finished."""
    prepare(ORDERED, tmp_path, pytestconfig.cache)
    steps, queue = Steps(tmp_path), f"{topology.queue}.o.ordered.1"
    program = [*command(ORDERED, tmp_path), broker.url, "1"]
    with Started(program, tmp_path, queue) as active:
        wait_for(lambda: broker.consumers(queue) == 1, "it consumes")
        with Started(program, tmp_path, queue) as standby:
            wait_for(lambda: broker.consumers(queue) == 2, "both consume")
            publish(broker, queue, gateway.request("first", steps.script("first", waits=True)))
            wait_for(steps.begun, "the first has begun")
            publish(broker, queue, gateway.request("second", steps.script("second")))
            wait_for(lambda: broker.consumers(queue) == 0, "the second is taken")
            assert steps.begun() == ["first"]
            active.kill()
            wait_for(lambda: steps.begun() == ["first"] * 2, "the first begins again")
            steps.release()
            assert standby.ended() == 0, standby.errors.read_text()
    assert steps.begun() == ["first", "first", "second"]
