"""The commands in the docs: each one runs, or a table here has the reason why it does not."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.documented import PAGES, ROOT, Documented, commands, mentioned
from tests.docs.world import World, command_tree, world
from tests.helm.chart import FILES, Values, objects, read_values, render, value_sets

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

FAILS = {
    "pushgate dead-letters --drop ID": "the execution is no dead letter",
    "pushgate dead-letters --put-back ID": "without a broker nothing is published",
    "pushgate identity delete gitlab-bot": "it is refused while a connection uses it",
    "pushgate notify test ml-team": "its receiver cannot be reached",
}
"""Commands that run, and exit with 1: with what these pages say of them."""

FINDS = frozenset(["status", "doctor"])
"""Commands that also exit with 1 if they find a problem, such as repositories that cannot be reached here."""

NOT_RUN = {
    "pushgate executions --follow --data .pushgate": "it runs until Ctrl-C; tests/cli/test_command_line.py",
    "pushgate executions --follow": "the same",
    "pushgate logs DELIVERY --follow": "it runs until the delivery has ended; tests/cli/test_following.py",
    "pushgate logs NAME --follow": "it runs until Ctrl-C; the same file",
    "pushgate logs acme/digits --follow": "the same",
    "pushgate listen": "it runs until Ctrl-C; the same file",
    "pushgate listen --context production --connection acme/digits --to http://127.0.0.1:8080/hooks/ID"
    " --secret-file FILE": "the same",
    "pushgate serve --data .pushgate": "it runs until it is stopped; tests/cli/test_serve.py",
    "pushgate republish ID": "it needs a broker; tests/system/test_republish.py",
    "pushgate republish EXECUTION": "the same",
}
"""Commands whose options alone are checked."""

OTHER_PROGRAMS = {
    "cloudflared": "it asks Cloudflare for a public URL",
    "gh": "GitHub's own program, which asks GitHub",
    "glab": "GitLab's own program, which asks GitLab",
    "openssl": "tests/publish/test_certificates.py runs these commands",
    "promtool": "tests/docs/test_configurations.py runs it where it is installed",
    "rabbitmqctl": "it needs the node's cookie; tests/publish/test_topology.py has the same queues",
    "rabbitmq-plugins": "testing/broker.py enables the plugin in a file",
    "ssh": "it needs a server with a public address",
    "pg_dump": "tests/docs/test_backups.py runs these commands",
    "pg_restore": "the same",
    "sqlite3": "the same",
}
"""Programs that are not run, with the reason."""

# Those that are used, by the verb; a real kubectl needs a cluster for most of them.
KUBECTL_OPTIONS = {
    "cp": {"--namespace"},
    "create": {"--namespace", "--from-literal"},
    "exec": {"--namespace"},
    "rollout": {"--namespace"},
    "scale": {"--namespace", "--replicas"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Start one gateway for all pages."""
    with world(tmp_path_factory.mktemp("docs")) as made:
        yield made


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_commands_run(page: Path, gateway: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, against one gateway."""
    monkeypatch.chdir(gateway.folder)
    monkeypatch.setenv("HOME", str(gateway.folder))
    for command in commands(page.read_text(encoding="utf-8")):
        match command.program:
            case "pushgate" if str(command) not in NOT_RUN:
                done = gateway.run(command)
                expected = {1} if str(command) in FAILS else {0, 1} if command.words[0] in FINDS else {0}
                assert done.status in expected, (str(command), done.output)
            case "curl":
                curl(command, gateway)
            case "git":
                gateway.project.tree.git(*command.words)
            case "python" if command.source:
                script(command, gateway.folder)
            case "pushgate" | "make" | "python" | "docker" | "helm" | "kubectl":
                CHECKS[command.program](command.words)
            case program:
                assert program in OTHER_PROGRAMS, str(command)
    gateway.tidy()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_commands_that_the_text_mentions_exist(page: Path) -> None:
    """With the options that it names."""
    for program, *words in mentioned(page.read_text(encoding="utf-8")):
        if program in {"pushgate", "make", "python"}:
            CHECKS[program](words)


def test_the_tables_name_documented_commands_only() -> None:
    """An entry that no page needs any more is removed."""
    found = [one for page in PAGES for one in commands(page.read_text(encoding="utf-8"))]
    assert {*FAILS, *NOT_RUN} - {str(one) for one in found} == set()
    assert {*OTHER_PROGRAMS} - {one.program for one in found} == set()


def script(command: Documented, folder: Path) -> None:
    """Run a script of the repository with a file as its input; a step needs `python` on PATH."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, ROOT / command.words[0]],
        cwd=folder,
        env={"PATH": path},
        input=(folder / (command.source or "")).read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def curl(command: Documented, gateway: World) -> None:
    """Run a request to the gateway; of one to a provider, read the JSON."""
    hosts = [word for word in command.words if re.match(r"https://(?!hooks\.example)", word)]
    if hosts:
        json.loads(command.words[command.words.index("-d") + 1])
        return
    if "field " in command.text:
        return  # a script, which tests/messages/test_guide.py runs
    execution = gateway.execution()
    report = {"id": execution, "state": "running", "at": "2026-05-04T13:04:12Z", "sequence": 1}
    (gateway.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    text = re.sub(r"\bID\b", gateway.connection["id"], command.text)
    text = text.replace("https://hooks.example.com", gateway.service.url)
    variables = {"PATH": "/usr/bin:/bin", **gateway.variables(execution)}
    done = subprocess.run(
        ["sh", "-c", text.replace("curl ", "curl --fail ", 1)],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )
    assert done.returncode == 0, (text, done.stderr)


def check_pushgate(words: Any) -> None:
    """Assert that a command and its options exist."""
    command = command_tree()
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] == "COMMAND" or rest[0] in command.commands, words
        command = command.commands.get(rest.pop(0), command)
    names = {name for one in command.params for name in [*one.opts, *one.secondary_opts]} | {"--help"}
    options = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[").startswith("-")}
    assert options <= names, words


def check_make(words: Any) -> None:
    """Assert that each target exists; variables, and the benchmarks after `bench`, are no targets."""
    [target, *more] = [word for word in words if re.fullmatch(r"[a-z_]+", word)]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), words
    assert not more or target == "bench", words
    assert all((ROOT / "bench" / f"{name}.py").exists() for name in more), words


def check_python(words: Any) -> None:
    """Assert that the module or the script exists."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
    else:
        assert (ROOT / words[0]).exists(), words


def check_docker(words: Any) -> None:
    """Assert that files and services exist: to build takes minutes, and a registry."""
    match words:
        case ["build", "--tag", _, "."]:
            assert (ROOT / "Dockerfile").exists()
        case ["push", _]:
            pass
        case ["compose", "up", *options]:
            assert {*options} <= {"--build", "--wait", "--detach"}, words
        case ["compose", "exec", service, "pushgate", *rest]:
            assert service in yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
            check_pushgate(rest)
        case _:
            raise AssertionError(words)


def check_helm(words: Any) -> None:
    """Render the chart with the values of the command, as Helm's own library does; there is no cluster."""
    verb, release, *rest = words
    values: Values = {}
    for option, value in pairwise(rest):
        match option, value:
            case "--values", "pushgate-values.yaml":
                values |= read_values(FILES["production"].read_text(encoding="utf-8"))
            case "--set", _:
                path, _, text = value.partition("=")
                section = values
                for name in path.split(".")[:-1]:
                    section = section.setdefault(name, {})
                section[path.split(".")[-1]] = text
    assert {word for word in rest if word.startswith("--")} <= {
        "--namespace",
        "--create-namespace",
        "--values",
        "--set",
    }
    rendered = objects(render(values or value_sets()["minimal"], release=release))
    if verb == "test":
        assert any("helm.sh/hook" in one["metadata"].get("annotations", {}) for one in rendered)
    else:
        assert (verb, rest[0]) in {("install", "helm"), ("upgrade", "helm")}, words


def check_kubectl(words: Any) -> None:
    """Assert that the objects exist in a rendered chart, and that the keys are those of its values."""
    verb = words[0]
    options = {
        word.partition("=")[0] for word in words[: [*words, "--"].index("--")] if word.startswith("--")
    }
    assert options <= KUBECTL_OPTIONS[verb], words
    rendered = [
        one
        for name in ("minimal", "production")
        for one in objects(render(value_sets()[name], release="pushgate"))
    ]
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in rendered}
    assert {word for word in words if re.match("(statefulset|deployment)/", word)} <= names, words
    pods = {f"{name.partition('/')[2]}-0" for name in names if name.startswith("statefulset/")}
    assert {found[1] for word in words if (found := re.match(r"pushgate/([^:]+):", word))} <= pods, words
    keys = {
        one["key"] for one in yaml.safe_load((ROOT / "helm" / "values.yaml").read_text())["secrets"].values()
    }
    literals = (re.match(r"--from-literal=([^=]+)=", word) for word in words)
    assert {found[1] for found in literals if found} <= keys, words
    if "--" in words and words[words.index("--") + 1] == "pushgate":
        check_pushgate(words[words.index("--") + 2 :])


CHECKS = {
    "docker": check_docker,
    "helm": check_helm,
    "kubectl": check_kubectl,
    "make": check_make,
    "pushgate": check_pushgate,
    "python": check_python,
}
