"""Push to a repository; a moment later a runner executes exactly that commit, and the push has its verdict.

Only GitHub is simulated. The rest is real: a git server on loopback, a push, the gateway with its embedded
store, a runner, and the commands that a user would type.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape

from gateway.cli.api_client import Client
from gateway.cli.options import derived_token
from gateway.messages.execution_states import FINAL
from testing.git_host import GitHost, WorkTree
from testing.github import push_payload

FULL_NAME = "acme/digits"
FILES = {
    "valohai.yaml": """\
- step:
    name: train
    image: docker.io/library/python:3.12
    command: python train.py {parameters}
    parameters:
      - name: epochs
        type: integer
        default: 3
""",
    "train.py": "print('training on the digits')\n",
}
# Prints a line of metrics after each epoch.
TRAIN_FOR_LONGER = """\
import json, sys, time

for epoch in range(int(sys.argv[1].removeprefix("--epochs="))):
    time.sleep(0.3)
    print(json.dumps({"epoch": epoch + 1, "accuracy": round(1 - 0.25 / (epoch + 1), 3)}), flush=True)
"""
WAIT_SECONDS = 15.0

out = Console(highlight=False)


def main() -> int:
    """Run the demo; return the exit status."""
    began = time.monotonic()
    out.print("[bold]Pushgate: from a git push to the verdict on it[/bold]\n")
    with tempfile.TemporaryDirectory(prefix="pushgate-demo-") as folder:
        place = Path(folder)
        with GitHost(place / "git") as host:
            step(1, "A small ML repository, on a git server on this machine")
            tree = WorkTree(place / "digits", host.create(f"{FULL_NAME}.git"))
            first = tree.commit("Train on the digits", FILES)
            tree.push()
            url = host.url(f"{FULL_NAME}.git")
            show(f"{url} has {first[:10]} on main, with the step train in its valohai.yaml")
            with gateway(place / "data") as service:
                request = demonstrate_push(service, place, tree, url, first)
                demonstrate_run(service, place, request)
                demonstrate_verdict(service, request)
    out.print(f"\nDone in {time.monotonic() - began:.1f} s. Nothing is left running.")
    out.print(
        "Next: [bold]make run[/bold] starts the gateway and leaves it running; see README.md to connect."
    )
    return 0


def demonstrate_push(service: "Gateway", place: Path, tree: WorkTree, url: str, first: str) -> Any:
    """Connect the repository, push, deliver, and show the execution request; return it."""
    step(3, "Connect the repository: a push to main runs the step train")
    connected = service.pushgate(
        "connect", url, "--provider", "github", "--project", "digits", "--trigger", "train@main"
    )
    show(f"webhook URL  {connected['hook_url']}")
    show("secret       " + "•" * 16 + "  (shown only once)")

    step(4, "Somebody changes the code and pushes")
    pushed = tree.commit("Train for longer", {"train.py": TRAIN_FOR_LONGER})
    tree.push()
    show(f"git push     {first[:10]} → {pushed[:10]} on main")

    step(5, "GitHub sends a signed webhook")
    payload = place / "payload.json"
    payload.write_bytes(
        push_payload(
            url=url,
            full_name=FULL_NAME,
            ref="refs/heads/main",
            before=first,
            after=pushed,
            message="Train for longer",
        )
    )
    options = (str(payload), "--provider", "github", "--delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
    answer = service.pushgate("send", connected["hook_url"], *options, secret=connected["secret"])
    show(f"HTTP {answer['status']} {answer['verdict']}: answered only after the delivery is on disk")

    step(6, "Pushgate fetches that commit, reads its valohai.yaml, and requests the execution")
    request = service.first_execution()
    received = service.client.get(f"/deliveries/{answer['delivery']}")["received_at"]
    took = datetime.fromisoformat(request["planned_at"]) - datetime.fromisoformat(received)
    show(f"the execution request was ready {took.total_seconds() * 1000:.0f} ms after the delivery\n")
    message = request["message"]
    out.print_json(data=_brief(message), indent=2)
    if message["commit"]["id"] != pushed:
        raise SystemExit("The request names a different commit from the one that was pushed.")

    step(7, "The same delivery again, as after a click on Redeliver")
    again = service.pushgate("send", connected["hook_url"], *options, secret=connected["secret"])
    show(f"HTTP {again['status']} {again['verdict']}: {again['reason']}")
    return request


def demonstrate_run(service: "Gateway", place: Path, request: Any) -> None:
    """Let an example runner execute the request and report, and show each new state."""
    step(8, "A runner executes the request, and reports each state to its status_url")
    package = request["message"]["package"]
    show(
        f"package      {package['id'][:16]}…  {package['size']} bytes, {package['format']}, with its SHA-256"
    )
    seen = service.state(request)
    show(f"{_stamp()}  {seen}: waiting for a runner")
    show("$ python3 examples/inbox.py < request.json")
    (place / "request.json").write_text(json.dumps(request["message"]))
    with (
        (place / "request.json").open() as message,
        subprocess.Popen(
            [sys.executable, Path(__file__).parent.parent / "examples" / "inbox.py"],
            cwd=place,
            stdin=message,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            # The step runs `python`, which its container has and a fresh Debian does not.
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"},
        ) as runner,
    ):
        printing = threading.Thread(target=_show_output, args=(runner.stdout,))
        printing.start()
        while seen not in FINAL and runner.poll() is None:
            if (state := service.state(request)) != seen:
                show(f"{_stamp()}  {state}")
            seen = state
            time.sleep(0.05)
        printing.join()
    if runner.returncode != 0:
        raise SystemExit("The runner failed.")


def demonstrate_verdict(service: "Gateway", request: Any) -> None:
    """Show what everybody sees who looks at the commit in Pushgate."""
    step(9, "The verdict, for everybody who looks at the push")
    explained = service.pushgate("explain", request["message"]["delivery"], json_output=False)
    out.print(f"\n{escape(explained.rstrip())}\n", soft_wrap=True)
    execution = service.client.get(f"/executions/{request['id']}")
    run = execution["run"]
    show(f"metrics  {json.dumps(run['metrics'])}")
    show("summary  " + run["summary"].replace("\n", "\n             "))
    if execution["state"] != "succeeded":
        raise SystemExit("The execution did not succeed.")
    out.print(
        f"\n    [bold green]✓ {escape(request['message']['trigger'])}: {execution['state']}[/bold green]"
    )


class Gateway:
    """A running gateway, and the command line as its client."""

    def __init__(self, url: str, data: Path) -> None:
        """Use the gateway at `url`, whose data folder is `data`."""
        self.client = Client(url, derived_token(data))
        self._data = data
        self._environment = {**_environment(), "PUSHGATE_URL": url}

    def state(self, request: Any) -> str:
        """Return the state of a request now."""
        state: str = self.client.get(f"/executions/{request['id']}")["state"]
        return state

    def pushgate(self, *arguments: str, secret: str | None = None, json_output: bool = True) -> Any:
        """Run a command as a user would, show it, and return its output: JSON, or the text for people."""
        out.print(f"    [dim]$ pushgate {escape(shlex.join(_shown(arguments)))}[/dim]", soft_wrap=True)
        options = [*(["--json"] * json_output), *(["--data", str(self._data)] * (arguments[0] != "send"))]
        done = subprocess.run(
            [*_pushgate(), *arguments, *options],
            env={**self._environment, **({"WEBHOOK_SECRET": secret} if secret else {})},
            check=True,
            stdout=subprocess.PIPE,
        )
        return json.loads(done.stdout) if json_output else done.stdout.decode()

    def first_execution(self) -> Any:
        """Wait for the first execution request, and return it."""
        deadline = time.monotonic() + WAIT_SECONDS
        out.print("    [dim]$ pushgate executions[/dim]")
        while time.monotonic() < deadline:
            done = subprocess.run(
                [*_pushgate(), "executions", "--json", "--data", str(self._data)],
                env=self._environment,
                check=True,
                stdout=subprocess.PIPE,
            )
            if items := json.loads(done.stdout)["items"]:
                return items[0]
        raise SystemExit("No execution request was created. `pushgate deliveries` shows why.")


@contextmanager
def gateway(data: Path) -> Iterator[Gateway]:
    """Run the gateway with its embedded store, on a free port, while the block lasts."""
    step(2, "Start the gateway with only Python and git: no database server, no broker")
    out.print("    [dim]$ pushgate serve[/dim]")
    process = subprocess.Popen(
        [*_pushgate(), "serve", "--port", "0", "--data", str(data)],
        env={**_environment(), "PUSHGATE_FETCH_ALLOW_HTTP": "true", "PUSHGATE_LOG_FORMAT": "json"},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert process.stderr is not None  # noqa: S101 - it is a pipe, as requested above
        address = _address(process.stderr)
        show(f"listening on {address}")
        yield Gateway(f"http://{address}", data)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)


def step(number: int, title: str) -> None:
    """Print the title of a step."""
    out.print(f"\n[bold cyan]{number}[/bold cyan]  [bold]{title}[/bold]")


def show(text: str) -> None:
    """Print what happened."""
    out.print(f"    {escape(text)}", soft_wrap=True)


def _show_output(output: IO[str]) -> None:
    for line in output:
        out.print(f"      [bold]{escape(line.rstrip())}[/bold]", soft_wrap=True)


def _stamp() -> str:
    return f"{datetime.now(UTC).astimezone():%H:%M:%S}"


def _address(stderr: IO[str]) -> str:
    lines = []
    for line in stderr:
        lines.append(line)
        if line.startswith("{") and (event := json.loads(line))["event"] == "listening":
            address: str = event["address"]
            return address
    raise SystemExit("The gateway did not start:\n" + "".join(lines))


def _brief(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with only the essential parts of its execution."""
    execution = {key: message["execution"][key] for key in ("kind", "name", "image", "command", "parameters")}
    return {**message, "execution": execution}


def _shown(arguments: tuple[str, ...]) -> list[str]:
    return [Path(argument).name if argument.endswith(".json") else argument for argument in arguments]


def _pushgate() -> list[str]:
    return [str(Path(sys.executable).with_name("pushgate"))]


def _environment() -> dict[str, str]:
    """Return this environment without settings of Pushgate: the demo shows the defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PUSHGATE_")}


if __name__ == "__main__":
    sys.exit(main())
