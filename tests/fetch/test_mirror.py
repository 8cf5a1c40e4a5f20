"""Mirrors: exactly what was pushed, with as few fetches as possible, from good and bad remotes."""

import asyncio
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import Gone, ObjectUnusable, RemoteUnavailable
from gateway.fetch.commit import Paths
from gateway.fetch.credentials import Remote
from gateway.fetch.mirror import Wanted
from testing.fetching import Fetching, make_fetching, mktree
from testing.git_host import GitHost, WorkTree, git
from testing.http_remotes import answering, gits_about, hanging, serving
from testing.service import wait_for

MAIN = "refs/heads/main"
YAML = {"valohai.yaml": "- step: {}\n"}


def test_a_push_is_fetched_and_can_be_read(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """The commit's facts are git's own."""
    first = tree.commit("First\n\nwith a body", YAML)
    tree.push()
    second = tree.commit("Second", {"dir/ü mlaut.py": "x\n", "train.py": "y\n"})
    tree.push()
    fetching.update(url, (MAIN, second))
    commit = fetching.read(second, before=first)
    assert (commit.id, commit.parents) == (second, (first,))
    assert commit.author == "Ada Byron <ada@example.org>"
    assert commit.message == "Second\n"
    assert commit.paths == Paths(("dir/ü mlaut.py", "train.py"), complete=True)
    assert commit.manifest == b"- step: {}\n"
    assert fetching.read(first).message == "First\n\nwith a body\n"


def test_what_is_there_is_not_fetched_again(fetching: Fetching, tree: WorkTree, githost: GitHost) -> None:
    """With nothing missing, the remote gets no request."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(githost.url("acme/digits.git"), (MAIN, first))
    fetching.update("http://127.0.0.1:9/nobody/there.git", (MAIN, first))


def test_many_pushes_are_served_by_one_call(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Also if the branch was force-pushed between them."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    lost = tree.commit("Lost", {"a": "1"})
    tree.push()
    tree.git("reset", "--quiet", "--hard", first)
    kept = tree.commit("Kept", {"a": "2"})
    tree.push()
    fetching.update(url, (MAIN, lost), (MAIN, kept))
    assert fetching.has(lost)
    assert fetching.has(kept)


def test_one_missing_commit_does_not_hold_up_the_others(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """The commit that the remote never had is missing afterwards; the rest is there."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    second = tree.commit("Second", {"a": "1"})
    tree.push()
    fetching.update(url, ("refs/heads/x", "d" * 40), (MAIN, second))
    assert fetching.has(second)
    with pytest.raises(Gone, match=f"no longer has {'d' * 40}"):
        fetching.read("d" * 40)


def test_a_branch_may_take_the_place_of_a_folder_of_branches(
    fetching: Fetching, tree: WorkTree, url: str
) -> None:
    """`a` is deleted and `a/b` is pushed: refs that cannot coexist."""
    first = tree.commit("First", YAML)
    tree.push("HEAD:refs/heads/a")
    fetching.update(url, ("refs/heads/a", first))
    second = tree.commit("Second", {"a": "1"})
    tree.push(":refs/heads/a")
    tree.push("HEAD:refs/heads/a/b")
    fetching.update(url, ("refs/heads/a/b", second))
    assert fetching.has(second)


def test_an_annotated_tag_leads_to_its_commit(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """And a tag on a file leads nowhere, with a reason."""
    first = tree.commit("First", YAML)
    tree.git("tag", "--annotate", "--message=x", "v1")
    tree.git("tag", "--annotate", "--message=x", "file", f"{first}:valohai.yaml")
    tree.push("HEAD", "v1", "file")
    tag, file = tree.git("rev-parse", "v1"), tree.git("rev-parse", "file")
    fetching.update(url, ("refs/tags/v1", tag), ("refs/tags/file", file))
    assert fetching.read(tag).id == first
    with pytest.raises(ObjectUnusable, match="does not lead to a commit"):
        fetching.read(file)


def test_a_new_branch_is_compared_with_the_default_branch(
    fetching: Fetching, tree: WorkTree, url: str
) -> None:
    """All of its commits count, not only the last."""
    tree.commit("First", YAML)
    tree.push()
    tree.commit("One", {"one": "1"})
    last = tree.commit("Two", {"two": "2"})
    tree.push("HEAD:refs/heads/feature")
    fetching.update(url, ("refs/heads/feature", last))
    assert fetching.read(last, default="main").paths == Paths(("one", "two"), complete=True)
    assert fetching.read(last, default="no-such-branch").paths == Paths(("two",), complete=True)


def test_repositories_with_sha256_ids_work(fetching: Fetching, githost: GitHost, tmp_path: Path) -> None:
    """With 64 digits throughout."""
    url = githost.create("sha256.git", object_format="sha256")
    tree = WorkTree(tmp_path / "sha256", url, object_format="sha256")
    first = tree.commit("First", YAML)
    tree.push()
    assert len(first) == 64
    fetching.update(url, (MAIN, first))
    assert fetching.read(first).id == first


def test_a_manifest_is_a_regular_file_of_bounded_size(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """A link or folder does not count, a large file has only a size, and an option-like path is a name."""
    (tree.folder / "link.yaml").symlink_to("/etc/passwd")
    files = {**YAML, "large.yaml": "x" * 1001, "dir/valohai.yaml": "in a folder", "--help": "a file"}
    first = tree.commit("First", files)
    tree.push()
    fetching.update(url, (MAIN, first))

    def manifest(path: str) -> tuple[bytes | None, int | None]:
        commit = fetching.read(first, path=path)
        return commit.manifest, commit.manifest_size

    assert manifest("link.yaml") == (None, None)
    assert manifest("dir") == (None, None)
    assert manifest("missing.yaml") == (None, None)
    assert manifest("large.yaml") == (None, 1001)
    assert manifest("dir/valohai.yaml") == (b"in a folder", 11)
    assert manifest("--help") == (b"a file", 6)
    assert manifest("*.yaml") == (None, None)


def test_a_broken_mirror_is_made_again(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """A mirror is a cache: the next fetch repairs any damage to its files."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    mirror = fetching.mirrors.path("c1")
    second = tree.commit("Second", {"a": "1"})
    tree.push()
    (mirror / "HEAD").write_text("nonsense")
    fetching.update(url, (MAIN, second))
    assert fetching.has(first)
    shutil.rmtree(mirror / "objects")
    fetching.update(url, (MAIN, second))
    assert fetching.read(second).id == second


def test_two_processes_share_a_mirror(tmp_path: Path, tree: WorkTree, url: str) -> None:
    """One waits for the other; both find what they want."""
    first = tree.commit("First", YAML)
    tree.push()
    one, two = make_fetching(tmp_path), make_fetching(tmp_path)

    async def both() -> None:
        wanted = [Wanted(ref=MAIN, id=first)]
        await asyncio.gather(
            *(x.mirrors.update(connection="c1", remote=Remote(url=url), wanted=wanted) for x in (one, two))
        )

    asyncio.run(both())
    assert one.has(first)


def test_a_missing_repository_is_reported(fetching: Fetching, githost: GitHost) -> None:
    """The reason says what to check."""
    with pytest.raises(
        RemoteUnavailable, match="the repository does not exist, or the credentials give no access to it"
    ):
        fetching.update(githost.url("none.git"), (MAIN, "d" * 40))


def test_a_remote_that_asks_for_a_password_is_reported(fetching: Fetching, tmp_path: Path) -> None:
    """No user can enter one, so git must not prompt."""
    with (
        GitHost(tmp_path / "private", credentials="ada:secret") as host,
        pytest.raises(RemoteUnavailable, match="access was denied"),
    ):
        fetching.update(host.create("private.git"), (MAIN, "d" * 40))


def test_a_remote_that_is_not_there_is_reported(fetching: Fetching) -> None:
    """Nothing listens, or the name does not exist."""
    with pytest.raises(RemoteUnavailable, match="the host cannot be reached"):
        fetching.update("http://127.0.0.1:9/a/b.git", (MAIN, "d" * 40))
    with pytest.raises(RemoteUnavailable, match="host name cannot be resolved"):
        fetching.update("http://no-such-host.invalid/a/b.git", (MAIN, "d" * 40))


@pytest.mark.parametrize("protocol", ["file", "ext"])
def test_other_protocols_are_never_used(
    fetching: Fetching, tree: WorkTree, tmp_path: Path, protocol: str
) -> None:
    """Also if a URL did not come through the API."""
    first = tree.commit("First", YAML)
    proof = tmp_path / "proof"
    url = {"file": f"file://{tree.folder}", "ext": f"ext::sh -c touch% {proof}"}[protocol]
    with pytest.raises(RemoteUnavailable):
        fetching.update(url, (MAIN, first))
    assert not proof.exists()


def test_a_remote_that_points_elsewhere_is_not_followed(fetching: Fetching, githost: GitHost) -> None:
    """Only the connection's URL is used."""
    target = githost.url("acme/digits.git")
    answer = f"HTTP/1.1 302 Found\r\nLocation: {target}/info/refs\r\nContent-Length: 0\r\n\r\n"
    with answering(answer.encode()) as (port, _), pytest.raises(RemoteUnavailable, match="another URL"):
        fetching.update(f"http://127.0.0.1:{port}/a/b.git", (MAIN, "d" * 40))


@contextmanager
def redirecting(githost: GitHost, location: str) -> Iterator[int]:
    """Yield the port of a server with repositories only under names that end in .git, as at GitLab.

    It redirects other names to `location`, in which `{}` stands for the path.
    """

    def handle(connection: socket.socket) -> None:
        asked = connection.recv(65536)
        path = asked.split(b" ")[1].decode()
        if ".git/" not in path:
            head = f"HTTP/1.1 301 Moved\r\nLocation: {location.format(path)}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())
            return
        with socket.create_connection(("127.0.0.1", githost.port)) as server:
            server.sendall(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            while data := server.recv(65536):
                connection.sendall(data)

    with serving(handle) as port:
        yield port


def test_a_url_without_git_at_its_end_is_tried_with_it(
    fetching: Fetching, githost: GitHost, tree: WorkTree
) -> None:
    """GitLab redirects there; the redirect is not followed, but this one URL on the same host is tried."""
    first = tree.commit("First", YAML)
    tree.push()
    with redirecting(githost, "http://127.0.0.1:9/evil{}") as port:
        url = f"http://127.0.0.1:{port}/acme/digits"
        fetching.update(url, (MAIN, first))
        assert fetching.has(first)
        assert fetching.run(fetching.mirrors.remote_refs(Remote(url=url + "/"))) == {MAIN: first}
        asked = len(githost.visits)
        assert fetching.run(fetching.mirrors.default_branch(Remote(url=url))) == "main"
        assert len(githost.visits) == asked + 1
        with pytest.raises(RemoteUnavailable, match="it redirects to another URL"):
            fetching.run(fetching.mirrors.remote_refs(Remote(url=f"http://127.0.0.1:{port}/acme/renamed")))


def test_a_remote_that_talks_nonsense_is_reported(fetching: Fetching) -> None:
    """The reason says that it is not a git server."""
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnonsense") as (port, _),
        pytest.raises(RemoteUnavailable, match="cannot be fetched"),
    ):
        fetching.update(f"http://127.0.0.1:{port}/a/b.git", (MAIN, "d" * 40))


def test_a_remote_that_hangs_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    """After the time-out git, its helper and the half-made mirror are gone."""
    fetching = make_fetching(tmp_path, timeout=1)
    with hanging() as port, pytest.raises(RemoteUnavailable, match="took longer than 1 seconds"):
        fetching.update(f"http://127.0.0.1:{port}/hanging.git", (MAIN, "d" * 40))
    assert gits_about(port) == []
    assert [path.name for path in (tmp_path / "mirrors").iterdir()] == ["c1.lock"]


def test_a_cancelled_fetch_leaves_nothing(tmp_path: Path) -> None:
    """As at SIGTERM: no wait for a slow remote."""
    fetching = make_fetching(tmp_path)

    async def cancelled(port: int) -> None:
        url = f"http://127.0.0.1:{port}/cancelled.git"
        wanted = [Wanted(ref=MAIN, id="d" * 40)]
        fetch = asyncio.create_task(
            fetching.mirrors.update(connection="c1", remote=Remote(url=url), wanted=wanted)
        )
        await asyncio.to_thread(wait_for, lambda: gits_about(port), "git has begun")
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch

    with hanging() as port:
        asyncio.run(cancelled(port))
        assert gits_about(port) == []


def _with_linked_gitmodules(tree: WorkTree, parent: str) -> str:
    """Return a commit that no git would check out: https://nvd.nist.gov/vuln/detail/CVE-2018-11235."""
    blob = tree.git("rev-parse", f"{parent}:valohai.yaml")
    root = mktree(tree, f"120000 blob {blob}\t.gitmodules")
    return tree.git("commit-tree", "-p", parent, "-m", "Evil", root)


def test_a_repository_that_git_fsck_refuses_is_a_reason(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Such as one with a .gitmodules that is a link."""
    first = tree.commit("First", YAML)
    evil = _with_linked_gitmodules(tree, first)
    tree.push(f"{evil}:{MAIN}")
    with pytest.raises(ObjectUnusable, match=r"git rejects its objects as dangerous .*gitmodulesSymlink"):
        fetching.update(url, (MAIN, evil))


def test_a_bad_branch_stops_no_other(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Not a new connection's first fetch, not pushes that came with it, and not those after it."""
    first = tree.commit("First", YAML)
    evil = _with_linked_gitmodules(tree, first)
    tree.push(f"{evil}:refs/heads/evil")
    tree.push("HEAD:refs/heads/good")
    second = tree.commit("Second", {"a": "1"})
    tree.push()
    remote, mirror = Remote(url=url), fetching.mirrors.path("c1")

    def failed(*asked: tuple[str, str]) -> list[str]:
        wanted = [Wanted(ref=ref, id=one) for ref, one in asked]
        return list(fetching.run(fetching.mirrors.update(connection="c1", remote=remote, wanted=wanted)))

    assert failed(("refs/heads/good", first)) == []
    assert git("rev-parse", MAIN, folder=mirror) == second
    third = tree.commit("Third", {"a": "2"})
    tree.push()
    assert failed(("refs/heads/evil", evil), (MAIN, third), ("refs/heads/good", first)) == [evil]
    assert git("rev-parse", MAIN, folder=mirror) == third
    # With a missing commit, everything is fetched, as at first.
    fourth = tree.commit("Fourth", {"a": "3"})
    tree.push()
    assert failed(("refs/heads/gone", "d" * 40), (MAIN, fourth)) == []
    assert fetching.has(fourth)


def test_a_branch_name_that_no_file_can_have_stops_no_other(
    fetching: Fetching, tree: WorkTree, githost: GitHost, url: str
) -> None:
    """A remote may not store its refs in files; the commit is fetched nevertheless."""
    first = tree.commit("First", YAML)
    tree.push()
    name = f"refs/heads/{'n' * 260}"
    packed = githost.folder / "acme/digits.git" / "packed-refs"
    long = tree.commit("Long", {"a": "1"})
    tree.push("HEAD:refs/heads/short")
    packed.write_text(f"# pack-refs with: peeled fully-peeled sorted \n{long} {name}\n")
    git("update-ref", "-d", "refs/heads/short", folder=packed.parent)
    fetching.update(url, (MAIN, first), (name, long))
    assert fetching.has(long)
    second = tree.commit("Second", {"b": "1"})
    tree.push()
    fetching.update(url, (MAIN, second))
    assert fetching.has(second)


def test_a_lock_that_a_killed_git_left_is_no_obstacle(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """The mirror is cloned again."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    second = tree.commit("Second", {"a": "1"})
    tree.push()
    (fetching.mirrors.path("c1") / "refs" / "heads" / "main.lock").touch()
    fetching.update(url, (MAIN, second))
    assert git("rev-parse", MAIN, folder=fetching.mirrors.path("c1")) == second


def test_nothing_of_this_machine_or_the_mirror_is_executed(
    fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No config of the user or the system, no hook left in the mirror."""
    proof = tmp_path / "proof"
    config = tmp_path / "gitconfig"
    config.write_text(f'[core]\n\tfsmonitor = "touch {proof}"\n\tsshCommand = touch {proof}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {proof}")
    monkeypatch.setenv("GIT_EXEC_PATH", str(tmp_path))
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    hook = fetching.mirrors.path("c1") / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {proof}\n")
    hook.chmod(0o755)
    second = tree.commit("Second", {"a": "1"})
    tree.push()
    fetching.update(url, (MAIN, second))
    assert fetching.has(second)
    assert not proof.exists()


def test_credentials_are_taken_out_of_what_git_says(fetching: Fetching) -> None:
    """Wherever they may have come from."""
    with pytest.raises(RemoteUnavailable) as caught:
        fetching.update("http://ada:s3cret@127.0.0.1:9/a.git", (MAIN, "d" * 40))
    assert "s3cret" not in str(caught.value)


def test_the_mirror_is_a_plain_bare_clone(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """It has the remote's own ref names."""
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(url, (MAIN, first))
    assert git("rev-parse", MAIN, folder=fetching.mirrors.path("c1")) == first
