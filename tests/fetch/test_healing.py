"""Failures of this machine: named as such, never blamed on the remote, and over once the cause is gone."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import LocalFailure
from gateway.fetch.commit import Paths
from gateway.fetch.credentials import make_deploy_key
from gateway.fetch.housekeeping import disk_trouble
from testing.fetching import Fetching, make_fetching
from testing.git_host import ENVIRONMENT, GitHost, WorkTree
from testing.service import Project, Service, wait_for
from testing.ssh import SshHost
from tests.api.test_health import probe
from tests.fetch.test_access import fetch

MAIN = "refs/heads/main"
KEY = make_deploy_key("github", comment="test")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Return a folder on its own disk; without the right to mount one, skip the test."""
    folder.mkdir(parents=True, exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode != 0:
        pytest.skip("to mount a small disk takes the rights of root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_folders_that_are_removed_while_it_runs_are_made_again(service: Service, project: Project) -> None:
    """Mirrors, git's home and half-made packages are caches, and need no restart."""
    connection = service.connect(project.url, "train@main")
    before = project.first
    for number in range(2):
        pushed = project.push(f"Push {number}", {"train.py": f"print({number})\n"})
        _, answer = service.deliver(connection, project.payload(before, pushed))
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned", update
        for name in ("mirrors", "git-home", "packing"):
            shutil.rmtree(service.data / name)
        before = pushed
    assert len(service.api.get("/executions")["items"]) == 2


def test_credentials_are_written_again_where_they_were_removed(
    fetching: Fetching, githost: GitHost, tree: WorkTree, tmp_path: Path
) -> None:
    """Also the folder of a process, its lock and the published host keys."""
    first = tree.commit("First", {"a": "b"})
    tree.push()
    with SshHost(githost.folder, [KEY.public]) as host:
        url = host.url("acme/digits.git")
        assert fetch(fetching, url, first, credentials=KEY)
        shutil.rmtree(tmp_path / "home")
        second = tree.commit("Second", {"a": "c"})
        tree.push()
        assert fetch(fetching, url, second, credentials=KEY)
    assert (tmp_path / "home" / "known_hosts.published").exists()


def test_a_full_disk_is_reported_as_that_and_heals(tree: WorkTree, url: str, tmp_path: Path) -> None:
    """The half-fetched data is removed, and the next fetch succeeds once there is room."""
    first = tree.commit("First", {"a": "b"})
    tree.push()
    with small_disk(tmp_path / "small", "3m") as disk:
        fetching = make_fetching(disk)
        fetching.update(url, (MAIN, first))
        (tree.folder / "large").write_bytes(os.urandom(1024 * 1024))
        second = tree.commit("Second", {})
        tree.push()
        filler = disk / "filler"
        filler.write_bytes(bytes(2 * 1024 * 1024))
        with pytest.raises(LocalFailure, match="No space left on device"):
            fetching.update(url, (MAIN, second))
        assert list(fetching.mirrors.path("c1").glob("objects/**/tmp_*")) == []
        assert fetching.has(first)
        filler.unlink()
        fetching.update(url, (MAIN, second))
        assert fetching.has(second)


@pytest.mark.parametrize("role", ["all", "worker"])
def test_a_full_disk_makes_a_worker_unready_but_not_the_webhook_endpoint(tmp_path: Path, role: str) -> None:
    """A process still stores deliveries; each shows which folder cannot be written to."""
    database = f"sqlite:///{tmp_path / 'store.db'}"
    with (
        small_disk(tmp_path / "data" / "mirrors", "20m") as disk,
        Service(tmp_path / "data", DATABASE_URL=database, ROLE=role) as service,
    ):
        assert probe(service, "/readyz") == (200, '{"status":"ok"}')
        (disk / "filler").write_bytes(bytes(10 * 1024 * 1024))
        status, answer = probe(service, "/readyz")
        assert status == (200 if role == "all" else 503)
        assert "nothing can be fetched: No space left on device" in answer
        assert "pushgate_fetch_disk_writable 0.0" in probe(service, "/metrics")[1]
        (disk / "filler").unlink()
        assert probe(service, "/readyz") == (200, '{"status":"ok"}')


def test_a_disk_with_room_is_no_trouble(tmp_path: Path) -> None:
    """Also for a folder that does not exist yet; the check leaves nothing."""
    assert disk_trouble(tmp_path / "new" / "mirrors") is None
    assert list((tmp_path / "new" / "mirrors").iterdir()) == []
    (tmp_path / "file").touch()
    assert "nothing can be fetched" in str(disk_trouble(tmp_path / "file"))


def test_a_file_in_the_way_is_a_reason_on_the_push(service: Service, project: Project) -> None:
    """It names this machine and the path, and the push continues once the path is free."""
    connection = service.connect(project.url, "train@main")
    mirrors = service.data / "mirrors"
    shutil.rmtree(mirrors, ignore_errors=True)
    mirrors.write_text("in the way")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    reason = wait_for(
        lambda: service.api.get(f"/deliveries/{answer['delivery']}")["updates"][0]["reason"], "it is shown"
    )
    assert reason.startswith("this machine cannot fetch from any remote: File exists")
    mirrors.unlink()
    [update] = service.settled(answer["delivery"])["updates"]
    assert update["state"] == "planned"


def test_a_shallow_remote_is_fetched_once(
    fetching: Fetching, githost: GitHost, tree: WorkTree, tmp_path: Path
) -> None:
    """Its history ends somewhere: what changed there is unknown, and later commits are read as usual."""
    tree.commit("First", {"a": "1"})
    second = tree.commit("Second", {"a": "2"})
    tree.push()
    bare = githost.folder / "shallow.git"
    full = f"file://{githost.folder}/acme/digits.git"
    clone = ["git", "clone", "--quiet", "--bare", "--depth=1", full, str(bare)]
    subprocess.run(clone, env=ENVIRONMENT, check=True, cwd=tmp_path)
    url = githost.url("shallow.git")
    fetching.update(url, (MAIN, second))
    read = fetching.read(second)
    assert read.paths == Paths((), complete=False)
    visits = len(githost.visits)
    fetching.update(url, (MAIN, second))
    assert len(githost.visits) == visits
    tree.git("push", "--quiet", str(bare), "HEAD:refs/heads/main")
    third = tree.commit("Third", {"b": "3"})
    tree.git("push", "--quiet", str(bare), "HEAD:refs/heads/main")
    fetching.update(url, (MAIN, third))
    assert fetching.read(third, before=second).paths == Paths(("b",), complete=True)
