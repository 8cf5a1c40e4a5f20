"""The image, the laptop's compose file and the chart agree; scanners find nothing in them."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import read_settings
from testing.service import ADMIN_TOKEN, PUSHGATE, Service
from tests.helm.chart import (
    CHART,
    NAMES,
    NAMESPACE,
    ROOT,
    containers,
    manifests,
    of_kind,
    pods,
    render,
    value_sets,
)

DOCKERFILE = (ROOT / "Dockerfile").read_text()
BAKE = (ROOT / "docker-bake.hcl").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
BIN = Path(sys.executable).parent


def _instructions(name: str) -> list[str]:
    """Return the arguments of each such instruction, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    """In the Dockerfile, except for the exceptions that it justifies."""
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# The cluster decides which registries are trusted: those in the value sets are examples.
OF_THE_CLUSTER = {"KSV-0125"}


def test_trivy_finds_nothing_above_low(tmp_path: Path) -> None:
    """In the Dockerfile, and in every value set as rendered."""
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    for name in NAMES:
        texts = [text for path, text in render(value_sets()[name]).items() if not path.endswith("NOTES.txt")]
        text = "\n---\n".join(texts).replace("\nmetadata:\n", f"\nmetadata:\n  namespace: {NAMESPACE}\n")
        (tmp_path / f"{name}.yaml").write_text(text)
    offline = ["--skip-check-update", "--skip-version-check", f"--cache-dir={tmp_path / '.cache'}"]
    done = subprocess.run(
        [BIN / "trivy", "config", "--quiet", "--format", "json", *offline, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRIVY_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["Results"]
    assert {"Dockerfile", *(f"{name}.yaml" for name in NAMES)} <= {one["Target"] for one in results}
    found = {
        (one["Target"], wrong["ID"], wrong["Severity"], wrong["Message"])
        for one in results
        for wrong in one.get("Misconfigurations", [])
        if wrong["Severity"] not in {"LOW", "UNKNOWN"} and wrong["ID"] not in OF_THE_CLUSTER
    }
    assert found == set()


def test_the_bases_are_pinned_by_their_digests() -> None:
    """The oldest Python that the project supports, built on the Debian that it is copied to."""
    python, debian = _instructions("FROM")
    digest = "@sha256:[0-9a-f]{64}"
    registry = r"\$\{REGISTRY\}/"
    assert re.fullmatch(rf"{registry}python:3\.11\.\d+-slim-trixie{digest} AS build", python)
    assert re.fullmatch(rf"{registry}debian:trixie-\d{{8}}-slim{digest}", debian)
    (name,) = re.findall(r'image\.base\.name="docker\.io/library/([^"]*)"', DOCKERFILE)
    (label,) = re.findall(r'image\.base\.digest="([^"]*)"', DOCKERFILE)
    assert debian == f"${{REGISTRY}}/{name}@{label}"


def test_the_image_is_made_of_what_is_there() -> None:
    """The copied files exist, and .dockerignore admits them and little else."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = [
        source
        for arguments in _instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    copied += sorted(set(re.findall(r"--mount=type=bind,source=([^,]+)", DOCKERFILE)))
    assert sorted(copied) == sorted(allowed)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch(source, line) for line in lines[1:] if not line.startswith("!")), source


def test_the_released_image_takes_what_the_dockerfile_takes() -> None:
    """Each argument and secret; no credential is an argument, which `docker history` shows."""
    taken = {name.partition("=")[0] for arguments in _instructions("ARG") for name in arguments.split()}
    args = BAKE[BAKE.index("args = {") :].partition("}")[0]
    assert taken == set(re.findall(r"^ +(\w+) += \1$", args, re.MULTILINE))
    secrets = set(re.findall(r"--mount=type=secret,id=([^, ]+)", DOCKERFILE))
    assert secrets == set(re.findall(r"id=([^,]+),src", BAKE))
    assert not any(re.search("AUTH|PASS|TOKEN|SECRET", name) for name in taken)


def test_versions_agree() -> None:
    """The image and the released image have the project's version, and the chart installs it."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    label = re.search(r"^ARG VERSION=(\S+)", DOCKERFILE, re.MULTILINE)
    baked = re.search(r'"VERSION" \{ default = "([^"]*)" \}', BAKE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert version is not None
    assert label is not None
    assert baked is not None
    assert [version[1]] * 3 == [label[1], baked[1], chart["appVersion"]]


def test_image_and_chart_agree() -> None:
    """On the user, a number other than root's, the port, and the data folder."""
    (user,) = _instructions("USER")
    (port,) = _instructions("EXPOSE")
    (volume,) = _instructions("VOLUME")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user)
    for _, pod in pods([one for name in NAMES for one in manifests(name)]):
        named = pod["spec"]["securityContext"].get("runAsUser")
        for container in containers(pod):
            context = container["securityContext"]
            if named is not None:  # the platform chooses if it is None
                assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    for _, pod in pods(of_kind("production", "Deployment", "StatefulSet")):
        container = pod["spec"]["containers"][0]
        assert [int(port)] == [one["containerPort"] for one in container["ports"]]
        assert volume in [one["mountPath"] for one in container["volumeMounts"]]


# ${NAME:-default}, or ${NAME:?message if it is not set}.
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*)|:\?(?P<message>[^}]*))?\}")


def test_no_secret_of_the_laptop_is_committed() -> None:
    """Compose requires each as a variable; the command at the file's head makes them; git ignores them."""
    head = (ROOT / "compose.yaml").read_text().partition("\nname:")[0]
    names = set()
    for service in COMPOSE["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASS|SECRET|TOKEN|(DATABASE|AMQP)_URL", variable):
                login = re.search("//pushgate:(.*)@", value)
                found = VARIABLE.fullmatch(login[1] if login else value)
                assert found is not None, variable
                assert found["default"] is None, variable
                names.add(found["name"])
    assert names == set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", head))
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def _image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(_instructions("ENV"))))


def test_the_gateway_takes_what_image_and_compose_file_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the laptop it has PostgreSQL and RabbitMQ, and listens at the address in the compose file."""
    settings = {**_image_environment(), **COMPOSE["services"]["gateway"]["environment"]}
    for name, value in settings.items():
        if name.startswith("PUSHGATE_"):
            monkeypatch.setenv(name, VARIABLE.sub(lambda found: found["default"] or "x" * 48, value))
    read = read_settings(given={})
    assert read.amqp_url is not None
    assert (
        read.host,
        read.port,
        str(read.data_dir),
        read.base_url,
    ) == (
        "0.0.0.0",  # noqa: S104 - inside a container
        8080,
        "/var/lib/pushgate",
        "http://127.0.0.1:8080",
    )
    assert read.database.startswith("postgresql+psycopg://")


def test_the_laptop_is_open_to_itself_only() -> None:
    """Ports are published on loopback, images have versions, and awaited services have a health check."""
    services = COMPOSE["services"]
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name, one in services.items():
        assert "build" in one or re.search(r":\d", one["image"]), name
    assert all("healthcheck" in services[name] for name in services["gateway"]["depends_on"])
    volumes = {volume.split(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert volumes == set(COMPOSE["volumes"])


def _run(command: list[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, check=False, env=environment
    )


def test_the_health_check_shows_whether_the_gateway_lives(service: Service) -> None:
    """It succeeds if the gateway runs, and fails if it is gone."""
    (check,) = _instructions("HEALTHCHECK")
    command: list[str | Path] = json.loads(check[check.index("[") :])
    assert command[0] == "python"
    port = service.url.rsplit(":", 1)[1]
    assert _run(command, PUSHGATE_PORT=port).returncode == 0
    service.stop()
    assert _run(command, PUSHGATE_PORT=port).returncode == 1


def test_helms_own_test_passes_at_a_gateway_that_works(service: Service) -> None:
    """The pod of `helm test`, with the gateway's address in place of the Service's, and a proxy for git."""
    (pod,) = of_kind("minimal", "Pod")
    command = [*pod["spec"]["containers"][0]["command"][:-1], service.url]
    done = _run(command, http_proxy="http://127.0.0.1:9", no_proxy="")
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, ["/livez 200", "/readyz 200"]), done.stderr
    service.stop()
    assert _run(command).returncode == 1


def test_the_job_for_connections_makes_them(service: Service, tmp_path: Path) -> None:
    """The arguments of the Job, with its file and its variables, make the connections at a real gateway."""
    (job,) = of_kind("embedded", "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    file = next(one for one in of_kind("embedded", "ConfigMap") if "connections.yaml" in one["data"])
    (tmp_path / "digits").write_text("the webhook's secret")
    text = file["data"]["connections.yaml"].replace("/run/secrets/connections", str(tmp_path))
    (tmp_path / "connections.yaml").write_text(text)
    arguments = [one.replace("/etc/pushgate/connections", str(tmp_path)) for one in container["args"]]
    done = _run(["python", PUSHGATE, *arguments], PUSHGATE_URL=service.url, PUSHGATE_ADMIN_TOKEN=ADMIN_TOKEN)
    assert done.returncode == 0, done.stderr
    assert "the webhook's secret" not in done.stdout
    assert [one["name"] for one in service.api.get("/connections")["items"]] == ["digits"]
    assert [one["name"] for one in service.api.get("/sources")["items"]] == ["acme"]
