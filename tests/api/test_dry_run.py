"""`pushgate plan --dry-run`: stored deliveries planned by other rules."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from testing.git_host import GitHost
from testing.postgres import Postgres
from testing.service import VALOHAI_YAML, Project, Service, run_pushgate, wait_for

KEY = "k" * 32
DEEP = VALOHAI_YAML.replace("python:3.12", "python:3.13")
TRAIN = "{name: train, branches: [main], run: {step: train}}"


def file_of(url: str, *triggers: str, **more: str) -> str:
    """Return a connections file with one connection."""
    lines = [f"    {name}: {value}" for name, value in more.items()]
    return "\n".join(
        [
            "connections:",
            "  - name: digits",
            "    provider: github",
            f"    url: {url}",
            *([] if "project" in more else ["    project: digits"]),
            *lines,
            f"    triggers: [{', '.join(triggers)}]",
        ]
    )


def run_plan(service: Service, folder: Path, text: str, *options: str) -> Any:
    """Run a dry run of a file, and return the command's output."""
    file = folder / "connections.yaml"
    file.write_text(text)
    return run_pushgate("plan", "--dry-run", "-f", file, *options, service=service)


def played(service: Service, folder: Path, text: str, *options: str) -> Any:
    """Run a dry run of a file with one connection; return its result as JSON."""
    done = run_plan(service, folder, text, "--json", *options)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)["connections"]
    return result


def changes(result: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the change of each request, the newest first."""
    return [
        (one["change"], one["trigger"], one["fields"])
        for update in result["updates"]
        for one in update["requests"]
    ]


def connected(service: Service, project: Project, *triggers: dict[str, Any]) -> Any:
    """Connect the repository under the name in the files."""
    mine = triggers or ({"name": "train", "branches": ["main"], "run": {"step": "train"}},)
    return service.connect(project.url, name="digits", triggers=list(mine))


def pushed(service: Service, project: Project, connection: Any, *files: dict[str, str]) -> list[Any]:
    """Push these files, each as a commit, and return the deliveries."""
    answers, before = [], project.first
    for number, one in enumerate(files):
        after = project.push(f"Number {number}", one)
        answers.append(service.deliver(connection, project.payload(before, after))[1])
        before = after
    return [service.settled(answer["delivery"]) for answer in answers]


def everything(data: Path) -> str:
    """Return all rows of an embedded store."""
    with closing(sqlite3.connect(data / "pushgate.db")) as store:
        return "\n".join(store.iterdump())


def is_at_rest(data: Path) -> bool:
    """Return whether no worker has a lease: each is released only after all its ref updates have ended."""
    with closing(sqlite3.connect(data / "pushgate.db")) as store:
        return store.execute("SELECT 1 FROM leases WHERE owner IS NOT NULL").fetchone() is None


def test_the_rules_in_force_make_no_difference(service: Service, project: Project, tmp_path: Path) -> None:
    """Each request stays the same, also a superseded one."""
    latest = {"name": "train", "branches": ["main"], "policy": "latest", "run": {"step": "train"}}
    connection = connected(service, project, latest)
    pushed(service, project, connection, {"a": "1"}, {"a": "2"})
    states = [one["state"] for one in service.api.get("/executions")["items"]]
    assert states == ["pending", "superseded"]
    result = played(service, tmp_path, file_of(project.url, TRAIN.replace("run:", "policy: latest, run:")))
    assert changes(result) == [("same", "train", {})] * 2
    text = run_plan(service, tmp_path, file_of(project.url, TRAIN)).stdout
    assert text == "digits: 2 unchanged, of 2 ref updates\nNothing was changed: this was a dry run.\n"


def test_each_request_that_would_differ_is_shown(service: Service, project: Project, tmp_path: Path) -> None:
    """New ones, removed ones and changed ones, field by field, with the reason."""
    kept = {"name": "train", "branches": ["main"], "run": {"step": "train"}}
    old = {"name": "old", "branches": ["main"], "run": {"step": "train"}}
    connection = connected(service, project, kept, old)
    [delivery] = pushed(service, project, connection, {"train.py": "print(2)\n"})
    rules = (
        TRAIN.replace("run:", "parameters: {epochs: 9}, environment: gpu, lane: fast, run:"),
        "{name: paths, paths: ['*.py'], run: {step: train}}",
        "{name: author, authors: ['*bot*'], run: {step: train}}",
        "{name: none, branches: [main], run: {step: none}}",
    )
    text = file_of(project.url, *rules, project="numbers", package_format="tar.zst")
    result = played(service, tmp_path, text)
    [update] = result["updates"]
    assert (update["delivery"], update["name"], update["unplayed"]) == (delivery["id"], "main", None)
    verdicts = [(one["trigger"], one["matched"], one["failure"]) for one in update["verdicts"]]
    assert verdicts[:3] == [("train", True, None), ("paths", True, None), ("author", False, None)]
    assert verdicts[3][:2] == ("none", True)
    assert "has no step none" in verdicts[3][2]
    assert changes(result) == [
        (
            "changed",
            "train",
            {
                "project": {"from": "digits", "to": "numbers"},
                "execution.command.0": {
                    "from": "python train.py --epochs=3",
                    "to": "python train.py --epochs=9",
                },
                "execution.parameters.epochs": {"from": 3, "to": 9},
                "execution.environment": {"from": None, "to": "gpu"},
                "lane": {"from": None, "to": "fast"},
                "package.format": {"from": "tar.gz", "to": "tar.zst"},
            },
        ),
        ("new", "paths", {}),
        ("failed", "none", {}),
        ("gone", "old", {}),
    ]
    assert result["totals"] == {"new": 1, "gone": 1, "changed": 1, "failed": 1, "same": 0, "unplayed": 0}
    seen = run_plan(service, tmp_path, text).stdout
    for line in (
        f"branch main {project.first[:10]} → ",
        f"delivery {delivery['id']}",
        "  ~ train: train: branch main matches",
        "      execution.parameters.epochs: 3 → 9",
        "  + paths: train: branch main matches, and so does the changed path train.py",
        "  ! none: valohai.yaml has no step none; its steps: train",
        "  - old: train: no trigger has this name",
        "digits: 1 new, 1 gone, 1 changed, 1 failed, of 1 ref updates",
    ):
        assert line in seen


def test_what_is_played_is_what_the_worker_then_does(
    service: Service, project: Project, tmp_path: Path
) -> None:
    """A replay under the new rules makes the predicted request, with the same id."""
    connection = connected(service, project)
    [delivery] = pushed(service, project, connection, {"train.py": "print(2)\n"})
    more = "{name: more, branches: [main], run: {step: train}}"
    result = played(service, tmp_path, file_of(project.url, TRAIN, more))
    [same, new] = result["updates"][0]["requests"]
    assert (same["change"], new["change"]) == ("same", "new")
    assert run_pushgate("apply", "-f", tmp_path / "connections.yaml", service=service).returncode == 0
    service.api.send("POST", f"/deliveries/{delivery['id']}/replay")
    service.settled(delivery["id"])
    assert {one["id"] for one in service.api.get("/executions")["items"]} == {
        same["execution"],
        new["execution"],
    }
    result = played(service, tmp_path, file_of(project.url, TRAIN, more))
    assert changes(result) == [("same", "train", {}), ("same", "more", {})]


def test_nothing_is_written_fetched_or_published(
    service: Service, project: Project, githost: GitHost, tmp_path: Path
) -> None:
    """The store is the same, byte for byte of its rows, and the git host got no request."""
    connection = connected(service, project)
    pushed(service, project, connection, {"train.py": "print(2)\n"})
    wait_for(
        lambda: service.api.get(f"/connections/{connection['id']}")["reconciliation"]["reconciled_at"],
        "looked at",
    )
    wait_for(lambda: is_at_rest(service.data), "the worker has given the repository back")
    before, visits = everything(service.data), list(githost.visits)
    result = played(service, tmp_path, file_of(project.url, TRAIN.replace("main", "dev"), project="other"))
    assert changes(result) == [("gone", "train", {})]
    assert (everything(service.data), githost.visits) == (before, visits)


def test_no_mirror_is_needed(service: Service, project: Project, tmp_path: Path) -> None:
    """Plan inputs are stored with an update; only a different valohai.yaml is read from a mirror."""
    connection = connected(service, project)
    pushed(service, project, connection, {"deep/valohai.yaml": DEEP})
    elsewhere = file_of(project.url, TRAIN, yaml_path="deep/valohai.yaml")
    [(change, _, fields)] = changes(played(service, tmp_path, elsewhere))
    assert (change, fields["execution.image"]["to"]) == ("changed", "docker.io/library/python:3.13")
    shutil.rmtree(service.data / "mirrors" / f"{connection['id']}.git")
    result = played(service, tmp_path, elsewhere)
    assert (changes(result), result["totals"]["unplayed"]) == ([], 1)
    assert result["updates"][0]["unplayed"] == (
        "deep/valohai.yaml of its commit is not stored, only valohai.yaml is;"
        " and the process that answers has no mirror of the repository"
    )
    assert "1 could not be simulated: deep/valohai.yaml" in run_plan(service, tmp_path, elsewhere).stdout
    assert changes(played(service, tmp_path, file_of(project.url, TRAIN))) == [("same", "train", {})]


def test_a_first_trigger_with_paths_reads_them_from_the_mirror(
    service: Service, project: Project, tmp_path: Path
) -> None:
    """They are stored only if a trigger needed them; without a mirror the output says so."""
    connection = connected(service, project)
    pushed(service, project, connection, {"model/a.py": "1\n"}, {"data/b.csv": "2\n"})
    elsewhere = file_of(project.url, TRAIN.replace("run:", "paths: [model/**], run:"))
    assert sorted(changes(played(service, tmp_path, elsewhere))) == [
        ("gone", "train", {}),
        ("same", "train", {}),
    ]
    shutil.rmtree(service.data / "mirrors" / f"{connection['id']}.git")
    result = played(service, tmp_path, elsewhere)
    nowhere = (
        "its changed paths are not stored, because no trigger used them;"
        " and the process that answers has no mirror of the repository"
    )
    assert [one["unplayed"] for one in result["updates"]] == [nowhere, nowhere]


def test_what_cannot_be_played_says_why(service: Service, project: Project, tmp_path: Path) -> None:
    """A commit that was never fetched; deletions run nothing under any rules."""
    connection = connected(service, project)
    _, gone = service.deliver(connection, project.payload(project.first, "d" * 40))
    service.settled(gone["delivery"])
    _, deleted = service.deliver(connection, project.payload("d" * 40, None))
    service.settled(deleted["delivery"])
    result = played(service, tmp_path, file_of(project.url, TRAIN))
    assert [one["unplayed"] for one in result["updates"]] == [None, f"the remote no longer has {'d' * 40}"]
    assert changes(result) == []


def test_a_known_failure_is_no_difference(service: Service, project: Project, tmp_path: Path) -> None:
    """But a failure fixed by the new rules is one, or a new failure of another trigger."""
    connection = connected(service, project, {"name": "none", "branches": ["main"], "run": {"step": "none"}})
    pushed(service, project, connection, {"a": "1"}, {"valohai.yaml": "["})
    same = file_of(project.url, "{name: none, branches: [main], run: {step: none}}")
    assert changes(played(service, tmp_path, same)) == []
    mended = played(service, tmp_path, file_of(project.url, "{name: none, run: {step: train}}", TRAIN))
    assert changes(mended) == [("failed", "train", {}), ("new", "none", {}), ("new", "train", {})]


def test_how_many_are_played_can_be_said(service: Service, project: Project, tmp_path: Path) -> None:
    """By number or by age, over several pages."""
    connection = connected(service, project)
    deliveries = pushed(service, project, connection, *({"a": str(number)} for number in range(3)))
    text = file_of(project.url, TRAIN)

    def ids(*options: str) -> list[str]:
        return [one["delivery"] for one in played(service, tmp_path, text, *options)["updates"]]

    newest_first = [one["id"] for one in reversed(deliveries)]
    assert ids("--last", "2") == newest_first[:2]
    assert ids("--since", "1h") == newest_first
    assert ids("--since", deliveries[1]["received_at"]) == newest_first[:2]
    path = f"/connections/{connection['id']}/plan"
    first = service.api.send("POST", path, {}, limit=2)
    rest = service.api.send("POST", path, {}, limit=2, cursor=first["next"])
    assert [one["delivery"] for one in first["items"] + rest["items"]] == newest_first
    assert rest["next"] is None


def test_a_connection_that_is_new_has_nothing_to_play(service: Service, tmp_path: Path) -> None:
    """The output says so, without an error; its secret isn't needed either."""
    text = file_of("https://github.example/a/b.git", TRAIN, secret="{env: NOT_SET}")
    done = run_plan(service, tmp_path, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "digits: this connection does not exist yet, so it has no stored deliveries"
    )


def test_other_branches_to_follow_count(service: Service, project: Project, tmp_path: Path) -> None:
    """Before they are in force, and after."""
    connection = connected(service, project)
    pushed(service, project, connection, {"train.py": "print(2)\n"})
    narrower = file_of(project.url, TRAIN, follows="[release/*]")
    result = played(service, tmp_path, narrower)
    assert changes(result) == [("gone", "train", {})]
    reason = "the connection does not follow branch main, only release/*"
    assert result["updates"][0]["requests"][0]["reason"] == reason
    assert run_pushgate("apply", "-f", tmp_path / "connections.yaml", service=service).returncode == 0
    assert service.api.get(f"/connections/{connection['id']}")["follows"] == ["release/*"]
    after = project.push("Another", {"train.py": "print(3)\n"})
    before = project.tree.git("rev-parse", "HEAD~1")
    _, answer = service.deliver(connection, project.payload(before, after))
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["state"], update["reason"]) == ("planned", f"no trigger matched: train: {reason}")


def test_a_file_that_could_not_be_applied_is_not_played(
    service: Service, project: Project, tmp_path: Path
) -> None:
    """Both commands refuse it with one sentence."""
    connected(service, project)
    text = file_of(project.url, TRAIN).replace("provider: github", "provider: gitlab")
    played = run_plan(service, tmp_path, text)
    applied = run_pushgate("apply", "--dry-run", "-f", tmp_path / "connections.yaml", service=service)
    assert (played.returncode, played.stderr) == (1, applied.stderr)
    assert "digits: provider cannot be changed" in played.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--since", "yesterday"), "--since yesterday: give a date"),
        ((), "plan only simulates and requires --dry-run"),
    ],
)
def test_wrong_options_are_one_sentence(
    service: Service, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    """With exit status 1, like all errors."""
    file = tmp_path / "connections.yaml"
    file.write_text("connections: []\n")
    dry = ("--dry-run",) if options else ()
    done = run_pushgate("plan", "-f", file, *dry, *options, service=service)
    assert (done.returncode, expected in done.stderr) == (1, True)


@pytest.fixture
def apart(tmp_path: Path, postgres: Postgres) -> Iterator[Service]:
    """Start a web process and a worker that share only the database."""
    settings = {"DATABASE_URL": postgres.database(), "SECRET_KEY": KEY}
    with (
        Service(tmp_path / "web", ROLE="web", **settings) as web,
        Service(tmp_path / "worker", ROLE="worker", **settings),
    ):
        yield web


def test_a_web_process_without_mirrors_replays_what_workers_planned(
    apart: Service, project: Project, tmp_path: Path
) -> None:
    """As on Kubernetes, where the API's pods have no mirrors."""
    connection = connected(apart, project)
    pushed(apart, project, connection, {"train.py": "print(2)\n"})
    rules = TRAIN.replace("run:", "parameters: {epochs: 5}, run:")
    [(change, _, fields)] = changes(played(apart, tmp_path, file_of(project.url, rules)))
    assert (change, fields["execution.parameters.epochs"]) == ("changed", {"from": 3, "to": 5})
