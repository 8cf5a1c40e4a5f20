"""Remotes that disconnect, send false data, or are large."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from structlog.testing import capture_logs

from gateway.errors import RemoteUnavailable
from gateway.fetch.credentials import Remote
from gateway.worker.reconciler import differences
from testing.fetching import Fetching
from testing.git_host import ENVIRONMENT, GitHost, WorkTree
from testing.http_remotes import answering, serving

MAIN = "refs/heads/main"


@contextmanager
def cut_after(port: int, count: int) -> Iterator[int]:
    """Forward connections to a port, and cut each after so many bytes of the answer."""

    def forward(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            asking = threading.Thread(target=_pass, args=(client, server, None))
            asking.start()
            _pass(server, client, count)
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            asking.join()

    with serving(forward) as own:
        yield own


def _pass(source: socket.socket, target: socket.socket, count: int | None) -> None:
    with suppress(OSError):
        while (count is None or count > 0) and (data := source.recv(min(65536, count or 65536))):
            target.sendall(data)
            count = None if count is None else count - len(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("count", [100, 2_000, 100_000])
def test_a_remote_that_breaks_off_is_reported_and_fetched_later(
    fetching: Fetching, tree: WorkTree, githost: GitHost, url: str, count: int
) -> None:
    """In the head, in the list of refs, within the pack: nothing incomplete is kept."""
    first = tree.commit("First", {f"{number}": "x" * number for number in range(2_000)})
    tree.git("config", "pack.compression", "0")
    tree.push()
    with cut_after(githost.port, count) as port:
        broken = url.replace(f":{githost.port}/", f":{port}/")
        with pytest.raises(RemoteUnavailable, match="cannot be fetched"):
            fetching.update(broken, (MAIN, first))
    assert fetching.mirrors.connections() == []
    fetching.update(url, (MAIN, first))
    assert fetching.has(first)


def test_a_remote_that_promises_what_it_does_not_have_is_reported(
    fetching: Fetching, tree: WorkTree, githost: GitHost, url: str
) -> None:
    """Its refs name a commit whose tree is gone."""
    tree.commit("First", {"a": "b"})
    tree.push()
    bare = githost.folder / "acme/digits.git"
    commit = tree.head()
    for pack in (bare / "objects").rglob("*"):
        if pack.is_file() and pack.parent.name + pack.name == tree.git("rev-parse", "HEAD^{tree}"):
            pack.unlink()
    with pytest.raises(RemoteUnavailable, match="cannot be fetched"):
        fetching.update(url, (MAIN, commit))


def test_names_that_git_would_not_take_are_passed_over(fetching: Fetching) -> None:
    """A remote can advertise anything: no name becomes an option or a path."""
    good, names = "a" * 40, ["refs/heads/../../evil", "refs/heads/--upload-pack=x", "refs/heads/a b", "HEAD"]
    lines = [f"{good} refs/heads/main\0side-band-64k\n", *(f"{good} {name}\n" for name in names)]
    advertised = "".join(f"{len(line) + 4:04x}{line}" for line in ["# service=git-upload-pack\n"]) + "0000"
    advertised += "".join(f"{len(line) + 4:04x}{line}" for line in lines) + "0000"
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"
        f"Content-Length: {len(advertised)}\r\n\r\n"
    )
    with answering((head + advertised).encode()) as (port, _):
        refs = fetching.run(fetching.mirrors.remote_refs(Remote(url=f"http://127.0.0.1:{port}/a.git")))
    assert "refs/heads/../../evil" in refs
    assert [move.ref for move in differences({}, refs)] == [
        "refs/heads/--upload-pack=x",
        "refs/heads/a",
        "refs/heads/main",
    ]


def test_names_of_refs_are_bytes(fetching: Fetching, tree: WorkTree, githost: GitHost, url: str) -> None:
    """A name that is not UTF-8 is skipped; a Unicode line separator is part of the name."""
    first = tree.commit("First", {"a": "b"})
    tree.push()
    names = ["refs/heads/gr\u00f6\u00dfe", "refs/heads/a\u2028b", "refs/heads/c\u0085d"]
    odd = b"refs/heads/gr\xf6\xdfe"
    lines = [f"{first} ".encode() + name for name in sorted([odd, *(name.encode() for name in names)])]
    packed = b"# pack-refs with: peeled fully-peeled sorted \n" + b"\n".join(lines) + b"\n"
    (githost.folder / "acme/digits.git/packed-refs").write_bytes(packed)
    with capture_logs() as logs:
        refs = fetching.run(fetching.mirrors.remote_refs(Remote(url=url)))
    assert refs == dict.fromkeys([MAIN, *names], first)
    assert [move.ref for move in differences({}, refs)] == sorted(refs)
    [warning] = [line for line in logs if line["log_level"] == "warning"]
    assert (warning["refs"], warning["count"]) == (["refs/heads/gr\\xf6\\xdfe"], 1)
    # Nor does it prevent the first clone.
    fetching.update(url, ("refs/heads/a\u2028b", first))
    assert fetching.has(first)


def test_a_default_branch_may_have_any_name(fetching: Fetching, tree: WorkTree, githost: GitHost) -> None:
    """A Unicode line separator is part of the name; a name that is not UTF-8 counts as none."""
    tree.commit("First", {"a": "b"})
    tree.push("HEAD:refs/heads/a\u2028b")
    bare, url = githost.folder / "acme/digits.git", githost.url("acme/digits.git")
    for name, expected in (("a\u2028b".encode(), "a\u2028b"), (b"gr\xf6\xdfe", None)):
        (bare / "refs/heads" / os.fsdecode(name)).write_text(tree.head() + "\n")
        (bare / "HEAD").write_bytes(b"ref: refs/heads/" + name + b"\n")
        assert fetching.run(fetching.mirrors.default_branch(Remote(url=url))) == expected


def test_a_repository_of_a_hundred_thousand_objects(fetching: Fetching, githost: GitHost) -> None:
    """The first fetch brings all, the next one what is new."""
    url = githost.create("large.git")
    parts = [
        f"commit {MAIN}\ncommitter A <a@b> {1_700_000_000 + number} +0000\ndata 1\nx\n"
        f"M 100644 inline {number % 100}\ndata <<E\n{number}\nE\n"
        for number in range(33_400)
    ]
    bare = githost.folder / "large.git"
    command = ["git", "fast-import", "--quiet"]
    subprocess.run(command, cwd=bare, env=ENVIRONMENT, input="".join(parts), text=True, check=True)
    head = (bare / MAIN).read_text().strip()
    fetching.update(url, (MAIN, head))
    counted = fetching.run(fetching.git.run("count-objects", "-v", mirror=fetching.mirrors.path("c1")))
    packed = dict(line.split(": ") for line in counted.decode().splitlines())["in-pack"]
    assert int(packed) >= 100_000
    assert fetching.read(head).parents != ()
