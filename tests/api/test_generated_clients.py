"""Clients that generators make from the OpenAPI document work with a running gateway.

openapi-typescript and openapi-fetch: https://openapi-ts.dev
openapi-python-client: https://github.com/openapi-generators/openapi-python-client
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from testing.npm import installed, stop
from testing.service import Project, Service

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
CLIENT = Path(__file__).with_name("client.ts")
PACKAGES = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")
GENERATOR = "openapi-python-client==0.29.1"
DOWNLOAD = """
import hashlib, json, sys
from client import AuthenticatedClient
from client.api.executions import list_executions
from client.api.packages import get_package
from client.models import Error, ExecutionState, NewConnection, NewTrigger, Provider, Run
from client.api.connections import create_connection

url, token, repository = sys.argv[1:]
api = AuthenticatedClient(base_url=url, token=token)
trigger = NewTrigger(name="train", run=Run(step="train"))
wanted = NewConnection(provider=Provider.GITHUB, url=repository, project="letters", triggers=[trigger])
made = create_connection.sync(client=api, body=wanted)
page = list_executions.sync(client=api, state=ExecutionState.PENDING)
package = page.items[0].message.package
whole = get_package.sync(package.id, client=api).payload.read()
part = get_package.sync_detailed(package.id, client=api, range_="bytes=0-9")
missing = get_package.sync("0" * 64, client=api)
assert isinstance(missing, Error)
print(json.dumps({
    "triggers": [trigger.name for trigger in made.triggers],
    "sha256": [package.sha256, hashlib.sha256(whole).hexdigest()],
    "part": [part.status_code, part.parsed.payload.read() == whole[:10]],
    "missing": missing.error,
}))
"""


def output(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command, and return its output; fail with all that it has written."""
    environment = {**os.environ, **variables}
    run = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def pushed(service: Service, project: Project) -> tuple[str, Any]:
    """Push once; return the delivery's id, and the execution."""
    connection = service.connect(project.url, "train@main")
    after = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, after))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    return answer["delivery"], execution


def test_a_typescript_client_compiles_and_runs(
    service: Service, project: Project, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With --strict: requests as a person writes them, answers narrowed by their kind, mistakes refused."""
    folder = tmp_path / "typescript"
    folder.mkdir()
    (folder / "node_modules").symlink_to(installed(request.config.cache, *PACKAGES))
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENT, folder)
    programs = folder / "node_modules" / ".bin"
    output(programs / "openapi-typescript", DOCUMENT, "--output", "openapi.d.ts", cwd=folder)
    options = ("--strict", "--module", "nodenext", "--target", "es2022", "--outDir", "built")
    output(programs / "tsc", *options, CLIENT.name, cwd=folder)
    delivery, execution = pushed(service, project)
    written = output("node", "built/client.js", service.url, service.admin_token, project.url, cwd=folder)
    step = execution["message"]["execution"]
    assert json.loads(written) == {
        "secret": 64,
        "triggers": ["train"],
        "deliveries": [delivery],
        "executions": [f"{step['name']} in {step['image']}"],
        "missing": "not found",
    }


@pytest.fixture(scope="module")
def generator(request: pytest.FixtureRequest) -> Path:
    """Return a folder with openapi-python-client and what it needs, installed once for each Python."""
    parent = request.config.cache.mkdir("pip")
    folder = parent / f"{GENERATOR}-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        part = Path(tempfile.mkdtemp(prefix="part-", dir=parent))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(part), GENERATOR]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if run.returncode != 0:
            shutil.rmtree(part)
            stop(f"pip could not install {GENERATOR}: {run.stderr.strip()[-300:]}")
        # Another process may have installed the same at the same time.
        with suppress(OSError):
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def test_a_python_client_downloads_a_package(
    service: Service, project: Project, generator: Path, tmp_path: Path
) -> None:
    """Generated without a warning, it connects a repository, and downloads a package and a part of it."""
    search = {"PYTHONPATH": os.pathsep.join(map(str, (generator, tmp_path)))}
    path = os.pathsep.join((str(generator / "bin"), os.environ["PATH"]))
    generate = ("generate", "--fail-on-warning", "--meta", "none", "--output-path", str(tmp_path / "client"))
    run = (sys.executable, "-m", "openapi_python_client", *generate, "--path", DOCUMENT)
    output(*run, cwd=tmp_path, PATH=path, **search)
    _, execution = pushed(service, project)
    script = (sys.executable, "-c", DOWNLOAD, service.url, service.admin_token, project.url)
    sha256 = execution["message"]["package"]["sha256"]
    assert json.loads(output(*script, cwd=tmp_path, **search)) == {
        "triggers": ["train"],
        "sha256": [sha256, sha256],
        "part": [206, True],
        "missing": "not found",
    }
