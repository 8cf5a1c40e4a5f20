"""The runner for the platform: what was pushed is started there, once, and its verdict comes back."""

import importlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import valohai_yaml
from starlette.responses import Response
from valohai_yaml.pipelines.conversion import PipelineConverter

from testing.broker import Broker
from testing.example import MANIFEST, messages
from testing.provider_apis.fake import serving
from testing.service import WAIT_SECONDS, Project, Service, wait_for
from testing.valohai import TOKEN, FakePlatform, throttled
from tests.system.recipes import EXAMPLES, command, environment, prepare

RUNNER = "runner_valohai"
STEP, PIPELINE, TASK = range(3)
# Takes a request and carries it until nothing is left to do, in a process that can be killed.
CARRY = f"""
import pathlib, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import runner_valohai as runner
runner.LOOK_EVERY_SECONDS = runner.SETTLE_SECONDS = 0
carrier = runner.Carrier(pathlib.Path("carrier.db"), runner.Platform(sys.argv[1], {TOKEN!r}))
carrier.take(sys.stdin.buffer.read(), None)
while carrier.carry(): pass
"""


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    """Serve the fake."""
    fake = FakePlatform()
    with serving(fake):
        yield fake
        fake.may_answer.set()


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.seconds = 1000.0

    def monotonic(self) -> float:
        """Return the time, as `time.monotonic` does."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the runner."""
    return Clock()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> ModuleType:
    """Return the runner's module, with that clock; a call without an answer has settled at once."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module(RUNNER)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0)
    return module


@pytest.fixture
def carrier(runner: ModuleType, platform: FakePlatform, tmp_path: Path) -> Any:
    """Return a carrier with an empty journal."""
    return runner.Carrier(tmp_path / "carrier.db", runner.Platform(platform.url, TOKEN))


def requested(platform: FakePlatform, number: int = STEP, **changes: Any) -> dict[str, Any]:
    """Return a request for the fake's project, whose commit has been pushed; nobody takes its reports."""
    request = messages()["execution-request"][number]
    platform.pushed.add(request["commit"]["id"])
    return {**request, "project": platform.project, "status_url": "http://127.0.0.1:9/status", **changes}


def take(carrier: Any, request: dict[str, Any], **headers: int) -> None:
    """Let the carrier take a request."""
    named = {f"ce-{name}": value for name, value in headers.items()}
    assert carrier.take(json.dumps(request).encode(), named)


def carry(carrier: Any, clock: Clock) -> None:
    """Carry until nothing is left to do; each round, everything is due."""
    for _ in range(50):
        if not carrier.carry():
            return
        clock.seconds += 1000
    raise AssertionError("it does not end")


def reports(carrier: Any) -> list[dict[str, Any]]:
    """Return the reports that are stored."""
    return [json.loads(body) for (body,) in carrier.database.execute("SELECT body FROM reports")]


def calls(platform: FakePlatform) -> list[str]:
    """Return the calls that the fake has answered, without what differs from run to run."""
    return [f"{one.method} {one.path.split('/')[3]} {one.status}" for one in platform.requests]


def test_a_push_is_run_by_the_platform(
    platform: FakePlatform,
    project: Project,
    broker: Broker,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """It fetches the commit first, and its verdict comes back with metrics, outputs and a link."""
    queue = f"platform-{uuid.uuid4().hex}"
    prepare(RUNNER, tmp_path, pytestconfig.cache)
    settings = {"AMQP_URL": broker.url, "AMQP_EXCHANGE": queue, "AMQP_QUEUE": queue}
    with Service(tmp_path / "data", **settings) as service:
        connection = service.connect(project.url, "train@main", project="digits")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        service.deliver(connection, project.payload(project.first, pushed))
        wait_for(lambda: service.api.get("/executions", state="published")["items"], "it is published")
        platform.pushed.add(pushed)
        platform.statuses = ["queued", "started", "stopping", "complete"]
        done = subprocess.run(
            [*command(RUNNER, tmp_path), broker.url, "1"],
            cwd=tmp_path,
            env={
                **environment(queue, tmp_path),
                "VALOHAI_API_TOKEN": TOKEN,
                "VALOHAI_URL": platform.url,
                "VALOHAI_PROJECTS": json.dumps({"digits": platform.project}),
                "LOOK_EVERY_SECONDS": "0.05",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        [execution] = service.api.get("/executions")["items"]
        found = service.api.get(f"/executions/{execution['id']}")
    run = found["run"]
    assert (found["state"], run["summary"]) == ("succeeded", "#1 is complete after 777 s")
    assert run["url"] == "https://platform.example/p/acme/executions/1/"
    assert (run["metrics"], run["outputs"]) == (
        {"accuracy": 0.93},
        [{"name": "model.pkl", "url": "datum://0185d0"}],
    )
    assert run["accepted_at"] <= run["started_at"] <= run["ended_at"]
    [started] = platform.started["executions"]
    assert started["body"] == {
        "project": platform.project,
        "commit": pushed,
        "step": "train",
        "image": "docker.io/library/python:3.12",
        "parameters": {"epochs": 3},
        "inputs": {},
        "environment_variables": {},
        "title": f"train@main {pushed[:10]}",
        "tags": ["pushgate", f"pushgate-{execution['id']}"],
    }
    reads = ["GET executions 200"] * 4
    refused, fetched = "POST executions 400", "POST projects 201"
    assert calls(platform) == [refused, fetched, "POST executions 201", *reads]
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("status", "state", "said"),
    [
        ("complete", "succeeded", "#1 is complete after 777 s"),
        ("error", "failed", "#1 is error after 777 s\n\n    no memory"),
        ("crashed", "failed", "#1 is crashed after 777 s\n\n    no memory"),
        ("stopped", "cancelled", "#1 is stopped after 777 s"),
    ],
)
def test_each_end_is_reported(
    status: str, state: str, said: str, carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """With the end of the log, if it failed."""
    take(carrier, requested(platform))
    platform.statuses = ["started", status]
    carry(carrier, clock)
    found = [(report["state"], report.get("summary")) for report in reports(carrier)]
    assert found == [
        ("accepted", None),
        ("accepted", "#1 is created"),
        ("running", "#1 is started"),
        (state, said),
    ]


def test_an_execution_that_is_deleted_has_failed(carrier: Any, platform: FakePlatform, clock: Clock) -> None:
    """Nobody waits for it forever."""
    take(carrier, requested(platform))
    wait_rounds(carrier, clock, 2)
    platform.started["executions"].clear()
    carry(carrier, clock)
    assert (reports(carrier)[-1]["state"], "404" in reports(carrier)[-1]["summary"]) == ("failed", True)


def wait_rounds(carrier: Any, clock: Clock, rounds: int) -> None:
    """Carry so many times; each round, everything is due."""
    for _ in range(rounds):
        carrier.carry()
        clock.seconds += 1000


def test_what_the_platform_refuses_is_rejected_in_its_words(
    carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """A wrong environment at once; a commit that it cannot fetch after some attempts."""
    platform.environments.clear()
    platform.fetched.add(requested(platform)["commit"]["id"])
    take(carrier, requested(platform))
    carry(carrier, clock)
    assert calls(platform) == ["POST executions 400"]
    assert "Object with slug or primary key gpu-small does not exist" in reports(carrier)[-1]["summary"]

    take(carrier, requested(platform, id="other", commit={"id": "f" * 40}))
    platform.fetch_errors = ["Permission denied (publickey)"]
    wait_rounds(carrier, clock, 1)
    assert reports(carrier)[-1]["state"] == "accepted"
    assert reports(carrier)[-1]["summary"] == "the platform cannot fetch: Permission denied (publickey)"
    platform.fetch_errors.clear()
    carry(carrier, clock)
    last = reports(carrier)[-1]
    assert (last["id"], last["state"]) == ("other", "rejected")
    assert last["summary"].endswith("although it has fetched: does its project follow main?")
    assert platform.started["executions"] == []


def test_a_runner_that_is_killed_before_it_knows_the_answer_starts_nothing_twice(
    platform: FakePlatform, tmp_path: Path
) -> None:
    """Of the platform's newest executions, that with the request's tag is its own."""
    request = requested(platform)
    platform.fetched.add(request["commit"]["id"])
    platform.may_answer.clear()
    program = [sys.executable, "-c", CARRY, platform.url]
    with subprocess.Popen(program, cwd=tmp_path, stdin=subprocess.PIPE) as killed:
        assert killed.stdin is not None
        killed.stdin.write(json.dumps(request).encode())
        killed.stdin.close()
        wait_for(lambda: platform.started["executions"], "the platform has started it")
        killed.send_signal(signal.SIGKILL)
    platform.may_answer.set()
    # Another one of somebody else.
    platform.started["executions"].append({**platform.started["executions"][0], "id": "x", "tags": []})
    platform.started["executions"].reverse()
    platform.statuses = ["complete"]
    body = json.dumps(request).encode()
    subprocess.run(program, cwd=tmp_path, input=body, check=True, timeout=WAIT_SECONDS)
    assert len(platform.started["executions"]) == 2
    assert [call for call in calls(platform) if "POST" in call] == ["POST executions 201"]


@pytest.mark.parametrize("lists_tags", [True, False])
def test_a_start_without_an_answer_is_looked_for(
    lists_tags: bool,
    carrier: Any,
    platform: FakePlatform,
    clock: Clock,
) -> None:
    """Whether the platform has started it or not, it runs once."""
    platform.lists_tags = lists_tags
    request = requested(platform)
    platform.fetched.add(request["commit"]["id"])
    platform.fails_after_starting = 1
    take(carrier, request)
    platform.instead.append(Response("Bad Gateway", 502))
    wait_rounds(carrier, clock, 3)
    platform.statuses = ["complete"]
    carry(carrier, clock)
    assert len(platform.started["executions"]) == 1
    assert reports(carrier)[-1]["state"] == "succeeded"


def test_a_request_at_which_the_platform_always_fails_is_given_up(
    carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """Others are carried meanwhile."""
    failing = requested(platform)
    platform.failing.add(failing["commit"]["id"])
    take(carrier, failing)
    platform.fetched.add("f" * 40)
    take(carrier, requested(platform, id="other", commit={"id": "f" * 40}))
    platform.statuses = ["complete"]
    carry(carrier, clock)
    ended = [(report["id"], report["state"]) for report in reports(carrier)[-2:]]
    assert ended == [("other", "succeeded"), (failing["id"], "failed")]
    assert reports(carrier)[-1]["summary"] == "the platform failed 5 times to start it"


def test_the_platform_is_left_alone_for_as_long_as_it_says(
    carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """By all requests, because it limits the token."""
    request = requested(platform)
    platform.fetched.add(request["commit"]["id"])
    take(carrier, request)
    take(carrier, requested(platform, id="other"))
    platform.instead.append(throttled(90))
    carrier.carry()
    clock.seconds += 89
    carrier.carry()
    assert calls(platform) == ["POST executions 429"]
    clock.seconds += 1
    carrier.carry()
    assert calls(platform) == ["POST executions 429", *["POST executions 201"] * 2]


def test_a_wrong_token_is_no_fault_of_a_request(
    runner: ModuleType, platform: FakePlatform, clock: Clock, tmp_path: Path
) -> None:
    """It waits until the token is right."""
    wrong = runner.Carrier(tmp_path / "carrier.db", runner.Platform(platform.url, "wrong"))
    take(wrong, requested(platform))
    wait_rounds(wrong, clock, 9)
    right = runner.Carrier(tmp_path / "carrier.db", runner.Platform(platform.url, TOKEN))
    platform.statuses = ["complete"]
    carry(right, clock)
    assert reports(right)[-1]["state"] == "succeeded"


def test_an_order_to_start_again_starts_another_unless_the_first_still_runs(
    carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """An operator who has lost sight of a run gets it back."""
    request = requested(platform)
    platform.fetched.add(request["commit"]["id"])
    take(carrier, request)
    wait_rounds(carrier, clock, 1)
    take(carrier, request, redrive=1)
    platform.statuses = ["started", "complete"]
    carry(carrier, clock)
    assert len(platform.started["executions"]) == 1
    take(carrier, request, redrive=2)
    platform.statuses = ["complete"]
    wait_rounds(carrier, clock, 1)
    assert [one["tags"][1] for one in platform.started["executions"]] == [
        f"pushgate-{request['id']}",
        f"pushgate-{request['id']}-2",
    ]


@pytest.mark.parametrize(
    ("number", "changes", "reason"),
    [
        (STEP, {"project": "churn"}, "VALOHAI_PROJECTS has no project of the platform for churn"),
        (PIPELINE, {}, "node release is a deployment, and this runner does not deploy"),
        (STEP, {"execution": {"kind": "notebook"}}, "this runner starts steps, tasks and pipelines"),
        (STEP, {"execution": {"kind": "step"}}, "this is not an execution request"),
    ],
)
def test_what_cannot_be_started_becomes_a_dead_letter(
    number: int, changes: dict[str, Any], reason: str, carrier: Any, platform: FakePlatform
) -> None:
    """And is reported as rejected."""
    assert not carrier.take(json.dumps({**requested(platform, number), **changes}).encode(), None)
    [report] = reports(carrier)
    assert report["state"] == "rejected"
    assert report["summary"].startswith(reason)


@pytest.mark.parametrize("number", [PIPELINE, TASK])
def test_pipelines_are_those_of_the_platforms_own_converter(
    number: int, carrier: Any, platform: FakePlatform, clock: Clock
) -> None:
    """With the request's values; a task is a pipeline with one node."""
    request = requested(platform, number)
    commit = request["commit"]["id"]
    config = valohai_yaml.parse(MANIFEST)
    values: Any = {"share": 0.75}
    converter = PipelineConverter(config=config, commit_identifier=commit, parameter_arguments=values)
    expected = converter.convert_pipeline(config.pipelines["churn"])
    nodes = {node["name"]: node for node in expected["nodes"]}
    if number == PIPELINE:
        for part, name in (("nodes", "name"), ("edges", "target_node")):
            found = request["execution"][part]
            request["execution"][part] = [one for one in found if one[name] != "release"]
    take(carrier, request)
    platform.statuses = ["started", "complete"]
    carry(carrier, clock)
    assert reports(carrier)[-1]["state"] == "succeeded"
    [started] = platform.started["pipelines"]
    made = {node["name"]: node for node in started["body"]["nodes"]}
    if number == TASK:
        assert (made["sweep"].pop("name"), nodes["search"].pop("on-error")) == ("sweep", "stop-next")
        nodes = {"sweep": {name: value for name, value in nodes["search"].items() if name != "name"}}
    else:
        assert started["body"]["edges"] == expected["edges"][:-1]
        assert started["body"]["parameters"] == expected["parameters"]
        del nodes["release"]
        # What the pipeline's parameters set, which the platform would do by itself.
        nodes["prepare"]["template"]["parameters"]["share"] = 0.75
        for name in ("search", "refine"):
            nodes[name]["template"]["parameters"]["seed"] = 7
    for node in nodes.values():
        node["template"].pop("outputs", None)
        variables = node["template"].get("environment-variables", {})
        variables.pop("TRACKING_TOKEN", None)
    assert made == nodes
