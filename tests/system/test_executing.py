"""examples/execution.py executes what the planner makes, from the message and the package alone."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from valohai_yaml.objs import Parameter

from testing.example import messages
from testing.service import Project, Service, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFEST = Path(__file__).with_name("pipeline.yaml").read_text(encoding="utf-8")
# Prints its arguments and its inputs.
SHOW = """\
import os, pathlib, sys
folder = pathlib.Path(os.environ["VH_INPUTS_DIR"])
files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
print("ran", sys.argv[1:], {str(path.relative_to(folder)): path.read_text().strip() for path in files})
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """Serve a file over HTTP, as the address of an input; return the server's URL."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "rows-2027.csv").write_text("a,b\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def requested(service: Service, project: Project, files: str, *runs: dict[str, Any]) -> list[bytes]:
    """Push the manifest, and return the message of each of these runs."""
    triggers = [
        {"name": str(number), "branches": ["main"], "run": run.pop("run"), **run}
        for number, run in enumerate(runs)
    ]
    connection = service.connect(project.url, triggers=triggers)
    manifest = MANIFEST.replace("http://files.example", files)
    pushed = project.push("Second", {"valohai.yaml": manifest, "show.py": SHOW})
    service.deliver(connection, project.payload(project.first, pushed))
    wait_for(lambda: len(service.api.get("/executions")["items"]) == len(runs), "all are planned")
    found = [service.api.get(f"/executions/{item['id']}") for item in service.api.get("/executions")["items"]]
    by_trigger = {item["message"]["trigger"]: json.dumps(item["message"]).encode() for item in found}
    return [by_trigger[str(number)] for number in range(len(runs))]


def execute(message: bytes, folder: Path) -> tuple[int, list[str], str]:
    """Execute a message in an empty folder; return the status, what the steps printed, and the log."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    for name in ("execution.py", "step.py"):
        shutil.copy(EXAMPLES / name, folder)
    done = subprocess.run(
        # Without the packages of this environment: the library alone has to be enough.
        [sys.executable, "-S", "execution.py"],
        input=message,
        cwd=folder,
        env={**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    lines = done.stdout.decode().splitlines()
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "bin",
        "execution.py",
        "step.py",
    ]
    return done.returncode, [line for line in lines if line.startswith("ran ")], done.stderr.decode()


def test_a_pipeline_runs_to_its_end(service: Service, project: Project, files: str, tmp_path: Path) -> None:
    """With edges of outputs, metadata and parameters, overrides, a task, lists and flags."""
    run = {"run": {"pipeline": "whole"}, "parameters": {"share": 0.75}}
    [message] = requested(service, project, files, run)
    status, ran, log = execute(message, tmp_path / "runner")
    assert status == 0, log
    rows = "{'rows/train.csv': 'train'}"
    assert ran == [
        "ran ['--columns=age,plan', '--share=0.75', '--keep-order', 'overridden'] {'raw/rows.csv': 'a,b'}",
        *[
            f"ran ['--rate', '{rate}', '--depth={depth}', '--layer=64', '--layer=32', '--seed=7'] {rows}"
            for rate in ("0.05", "0.1")
            for depth in (2, 4)
        ],
        (
            "ran ['--rate', '0.1', '--depth=4', '--layer=128'] "
            "{'rows/extra.csv': 'extra', 'rows/rows-2027.csv': 'a,b', 'rows/train.csv': 'train'}"
        ),
        (
            "ran ['--note=it\\'s $(touch ../pwned); {parameter:depth} \"x\"', '--depth=4', '4', '7'] "
            "{'model/model-2.txt': 'model 4', 'model/model-3.txt': 'model 2', 'model/model-4.txt': 'model 4',"
            " 'model/model.txt': 'model 2'}"
        ),
    ]


def test_nodes_fail_and_stop_as_the_pipeline_says(
    service: Service, project: Project, files: str, tmp_path: Path
) -> None:
    """By `on-error`, by an action, and where a node lacks what an edge should pass on."""
    names = ("on-errors", "stopped", "lacking")
    made = requested(service, project, files, *({"run": {"pipeline": name}} for name in names))
    on_errors, stopped, lacking = (execute(message, tmp_path / "runner") for message in made)
    argument = "ran ['--rate', '0.3', '--depth=3', '--layer=64', '--layer=32'] {}"
    assert on_errors[:2] == (4, [argument])
    assert "node third is skipped" in on_errors[2]
    assert stopped[:2] == (0, [])
    assert lacking[:2] == (1, [argument])
    assert "node second: node first has no metadata words" in lacking[2]


def test_tasks_run_each_set_of_parameters(
    service: Service, project: Project, files: str, tmp_path: Path
) -> None:
    """Of a manual search and of scales, with the trigger's values; a random search is refused."""
    made = requested(
        service,
        project,
        files,
        {"run": {"task": "chosen"}, "parameters": {"layers": [8]}},
        {"run": {"task": "logarithmic"}, "parameters": {"layers": [8]}},
        {"run": {"task": "random"}},
    )
    chosen, logarithmic, random = (execute(message, tmp_path / "runner") for message in made)
    assert chosen[:2] == (
        0,
        [
            "ran ['--rate', '0.5', '--depth=3', '--layer=8', '--seed=1'] {}",
            "ran ['--rate', '0.6', '--depth=3', '--layer=8', '--quiet'] {}",
        ],
    )
    assert logarithmic[:2] == (
        0,
        [f"ran ['--rate', '{rate}', '--depth=9', '--layer=8'] {{}}" for rate in ("0.01", "0.1", "1.0")],
    )
    assert random[:2] == (1, [])
    assert (
        "this request cannot be executed: this runner executes grid and manual searches, not a random_search"
        in random[2]
    )


def test_a_step_is_refused_for_its_inputs(
    service: Service, project: Project, files: str, tmp_path: Path
) -> None:
    """If a file would leave its folder, or cannot be downloaded; nothing runs."""
    steps = ("escaping", "elsewhere", "missing")
    made = requested(service, project, files, *({"run": {"step": step}} for step in steps))
    assert [execute(message, tmp_path / "runner") for message in made] == [
        (1, [], f"this request cannot be executed: {reason}\n")
        for reason in (
            "this is no path in a folder: ../../../escaped.csv",
            "this URL is not http or https: s3://bucket/rows.csv",
            f"{files}/missing.csv cannot be downloaded: HTTP Error 404: File not found",
        )
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 100_000, "RecursionError"),
        (b"[]", "TypeError"),
        (b'{"id": 1, "execution": {"kind": "step"}, "package": {}}', "id is not a text"),
        (b'{"id": "1", "execution": {"kind": "step"}, "package": null}', "only requests with a package"),
        (b'{"id": "1", "execution": {"kind": "other"}, "package": {}}', "no kind other"),
        (json.dumps(messages()["execution-request"][1]).encode(), "node release is a deployment"),
    ],
)
def test_other_messages_are_refused(body: bytes, reason: str, tmp_path: Path) -> None:
    """With the reason, so that a runner can reject them."""
    status, _, log = execute(body, tmp_path / "runner")
    assert status == 1
    assert log.startswith("this request cannot be executed: ")
    assert reason in log


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ({"name": "a", "type": "flag"}, True),
        ({"name": "a", "type": "flag"}, False),
        ({"name": "a", "type": "flag", "pass-as": "-a {v}"}, True),
        ({"name": "a", "type": "flag", "pass-false-as": "--no-{name}"}, False),
        ({"name": "a", "type": "flag", "pass-false-as": "--no-{name}"}, True),
        ({"name": "a", "type": "flag", "pass-as": "-a", "pass-true-as": "-b {v}"}, True),
        ({"name": "a", "type": "float", "pass-as": "-a {value} {v} {name}"}, 0.5),
        ({"name": "a"}, "two words {v} {name}"),
        ({"name": "a", "type": "integer", "multiple": "repeat"}, [1, 2]),
        ({"name": "a", "type": "integer", "multiple": "repeat", "pass-as": "-a {v}"}, []),
        ({"name": "a", "type": "integer", "multiple": "separate"}, [1, 2]),
        ({"name": "a", "type": "integer", "multiple": "separate"}, []),
        ({"name": "a", "multiple": "separate", "multiple-separator": ";"}, ["b c", "d"]),
        ({"name": "a", "multiple": "repeat"}, "b"),
    ],
)
def test_a_supplied_value_is_passed_as_the_platform_passes_it(parameter: dict[str, Any], value: Any) -> None:
    """For each kind of parameter: the library's arguments are those of the platform's own parser."""
    parsed = Parameter.parse(parameter)
    program = "import json, sys, step; print(json.dumps(step.arguments(*json.loads(sys.argv[1]))))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", program, json.dumps([parsed.serialize(), value])],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=True,
    )
    assert json.loads(found.stdout) == (parsed.format_cli(value) or [])
