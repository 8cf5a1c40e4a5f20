"""Reading commits: their signers, and the changes of a new branch."""

import os
import subprocess
from pathlib import Path

import pytest

from gateway.fetch.commit import CommitReader, Paths
from gateway.fetch.credentials import Remote
from gateway.plan.triggers import MoveFacts, Run, Trigger, match
from testing.fetching import Fetching
from testing.git_host import ENVIRONMENT, WorkTree
from testing.packing import add_submodule
from testing.service import Project, Service, run_pushgate

MAIN = "refs/heads/main"


def _signer(folder: Path, name: str) -> Path:
    key = folder / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada@example.org", "-f", str(key)]
    subprocess.run(command, check=True)
    return key


def _signed(tree: WorkTree, key: Path, message: str) -> str:
    tree.git("config", "gpg.format", "ssh")
    tree.git("config", "user.signingkey", str(key))
    tree.git("commit", "--quiet", "--allow-empty", "--gpg-sign", "--message", message)
    return tree.head()


def written(tree: WorkTree, kind: str, content: bytes) -> str:
    """Write an object, valid or not, and return its id."""
    command = ["git", "hash-object", "-w", "--literally", "-t", kind, "--stdin"]
    done = subprocess.run(
        command, cwd=tree.folder, env=ENVIRONMENT, input=content, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def test_signatures_are_valid_unknown_or_none(
    fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """A signature is valid if made by one of the operator's allowed signers, else unknown."""
    ours, theirs = _signer(tmp_path, "ours"), _signer(tmp_path, "theirs")
    plain = tree.commit("Plain", {"a": "b"})
    valid, unknown = _signed(tree, ours, "Ours"), _signed(tree, theirs, "Theirs")
    tree.push()
    fetching.update(url, (MAIN, unknown))
    allowed = tmp_path / "allowed"
    allowed.write_text("ada@example.org " + ours.with_suffix(".pub").read_text())
    reader = CommitReader(fetching.git, manifest_limit=1000, signers=allowed)

    def signature(commit: str, by: CommitReader) -> str:
        path = fetching.mirrors.path("c1")
        read = by.read(path, object_id=commit, yaml_path="valohai.yaml", paths_since=None)
        return fetching.run(read).signature

    assert [signature(one, reader) for one in (plain, valid, unknown)] == ["none", "valid", "unknown"]
    assert signature(valid, fetching.reader) == "unknown"


def test_the_default_branch_is_the_remotes(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """For payloads that do not name it."""
    tree.commit("First", {"a": "b"})
    tree.push("HEAD:refs/heads/trunk", "HEAD:refs/heads/main")
    assert fetching.run(fetching.mirrors.default_branch(Remote(url=url))) == "main"


@pytest.mark.parametrize(
    ("encoding", "raw", "author"),
    [
        ("ISO-8859-1", "J\u00f6rg".encode("latin-1"), "J\u00f6rg"),
        ("windows-1252", "J\u00f6rg".encode("cp1252"), "J\u00f6rg"),
        ("Shift_JIS", "\u68ee".encode("shift_jis"), "\u68ee"),
        ("undefined", "J\u00f6rg".encode(), "J\u00f6rg"),
        ("utf-7", b"J+APY-rg", "J+APY-rg"),
        ("unicode_escape", rb"J\ud800rg", r"J\ud800rg"),
        ("no-such\x01thing", "J\u00f6rg".encode(), "J\u00f6rg"),
        ("utf-8", "J\u00f6rg".encode("latin-1"), "J\ufffdrg"),
        ("base64", b"Sg==", "Sg=="),
    ],
)
def test_a_commit_in_any_encoding_is_read(
    fetching: Fetching, tree: WorkTree, url: str, encoding: str, raw: bytes, author: str
) -> None:
    """One that is no text encoding is read as UTF-8."""
    tree_id = tree.git("rev-parse", tree.commit("First", {"a": "b"}) + "^{tree}")
    person = raw + b" <ada@example.org> 1700000000 +0000"
    head = b"tree %b\nauthor %b\ncommitter %b\nencoding %b\n" % (
        tree_id.encode(),
        person,
        person,
        encoding.encode(),
    )
    commit = written(tree, "commit", head + b"\n" + raw + b"\n")
    tree.push(f"{commit}:{MAIN}")
    fetching.update(url, (MAIN, commit))
    read = fetching.read(commit)
    assert (read.author, read.message) == (f"{author} <ada@example.org>", f"{author}\n")


@pytest.mark.parametrize("pattern", ["vendor/lib/", "vendor/lib/**", "vendor/lib", "vendor/*", "vendor/"])
def test_a_submodule_that_is_bumped_fits_patterns_for_its_folder(
    fetching: Fetching, tree: WorkTree, url: str, pattern: str
) -> None:
    """And patterns for its name; a file next to it does not."""
    add_submodule(tree, path="vendor/lib", url="../lib.git", commit="d" * 40)
    first = tree.commit("First", {"a": "b"})
    add_submodule(tree, path="vendor/lib", url="../lib.git", commit="e" * 40)
    second = tree.commit("Second", {"vendor.txt": "beside"})
    tree.push()
    fetching.update(url, (MAIN, second))
    paths = fetching.read(second, before=first).paths
    assert paths == Paths(("vendor.txt", "vendor/lib/"), complete=True)
    trigger = Trigger(name="t", paths=(pattern,), run=Run(step="train"))
    move = MoveFacts(kind="branch", name="main", action="update", paths=paths.names, paths_complete=True)
    verdict = match(trigger, move)
    assert (verdict.matched, "vendor/lib/" in verdict.reason) == (True, True)
    assert fetching.read(first).paths == Paths((".gitmodules", "a", "vendor/lib/"), complete=True)


def test_a_file_name_that_is_no_utf_8_costs_nobody_anything(service: Service, project: Project) -> None:
    """A matching trigger runs, and all lists show the name, escaped."""
    trigger = {"name": "t", "branches": ["*"], "paths": ["models/*"], "run": {"step": "train"}}
    connection = service.connect(project.url, triggers=[trigger])
    folder = project.tree.folder / "models"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.bin")).write_text("1", encoding="utf-8")
    pushed = project.push("A name in latin-1", {})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    [update] = service.settled(answer["delivery"])["updates"]
    assert update["state"] == "planned"
    assert r"the changed path models/caf\xe9.bin" in update["verdicts"][0]["reason"]
    [listed] = service.api.get("/deliveries")["items"]
    assert listed["updates"] == [update]
    assert run_pushgate("deliveries", answer["delivery"], service=service).returncode == 0


def test_a_new_branch_has_changed_what_differs_from_where_it_left(service: Service, project: Project) -> None:
    """Also if the payload names no default branch: then the remote's HEAD is read."""
    trigger = {"name": "t", "branches": ["*"], "paths": ["model/**"], "run": {"step": "train"}}
    connection = service.connect(project.url, provider="generic", triggers=[trigger])
    service.fetched(connection)
    project.push("Model", {"model/a": "1"})
    project.tree.git("checkout", "--quiet", "-b", "topic")
    commits = [project.tree.commit(f"Topic {number}", {"data/b": str(number)}) for number in range(2)]
    project.tree.push("topic")
    found = service.fetched(connection)
    assert {update["ref"]: update["after"] for update in found}["refs/heads/topic"] == commits[-1]
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["ref"]["name"] == "main"
