"""What is read of a commit: who signed it, and what a new branch has changed."""

import subprocess
from pathlib import Path

from demo.githost import WorkTree
from gateway.fetch.commit import CommitReader
from gateway.fetch.credentials import Remote
from tests.fetch.conftest import Fetching
from tests.service import Project, Service

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


def test_signatures_are_valid_unknown_or_none(
    fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """Valid is what one of the operator's allowed signers has made; whoever else did is unknown."""
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
        read = by.read(path, object_id=commit, before=None, default_branch=None, yaml_path="valohai.yaml")
        return fetching.run(read).signature

    assert [signature(one, reader) for one in (plain, valid, unknown)] == ["none", "valid", "unknown"]
    assert signature(valid, fetching.reader) == "unknown"


def test_the_default_branch_is_the_remotes(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """For those who are not told it by the provider."""
    tree.commit("First", {"a": "b"})
    tree.push("HEAD:refs/heads/trunk", "HEAD:refs/heads/main")
    assert fetching.run(fetching.mirrors.default_branch(Remote(url=url))) == "main"


def test_a_new_branch_has_changed_what_differs_from_where_it_left(service: Service, project: Project) -> None:
    """Also where the payload names no default branch: then the remote is asked."""
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
