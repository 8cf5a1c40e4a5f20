"""No secret is left or leaked: after a kill, by a redirect, or in a remote's messages."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from gateway.errors import RemoteUnavailable
from gateway.fetch.credentials import Bearer, Credentials, Login, Remote, make_deploy_key
from gateway.fetch.git import Git
from gateway.fetch.mirror import Wanted
from testing.fetching import Fetching, make_fetching
from testing.git_host import GitHost, WorkTree
from testing.http_remotes import answering
from testing.service import wait_for
from testing.ssh import SshHost

MAIN = "refs/heads/main"
KEY = make_deploy_key("github", comment="ours")
LOGIN = Login(user="ada", password="correct horse/battery")
BEARER = Bearer(token="correct-horse-battery")


def fetch(fetching: Fetching, remote: Remote, commit: str = "d" * 40, connection: str = "c1") -> None:
    """Fetch a commit."""
    asked = [Wanted(ref=MAIN, id=commit)]
    fetching.run(fetching.mirrors.update(connection=connection, remote=remote, wanted=asked))


def _secrets(folder: Path) -> list[Path]:
    return [path for name in ("key", "password") for path in folder.glob(f"home/access-*/*/{name}")]


def test_keys_of_a_process_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    """Whatever its process id and host name; those of a living process stay."""
    with GitHost(tmp_path / "git", credentials="a:b") as host:
        url = host.create("acme/closed.git")
        host.answers.clear()
        remote = Remote(url=url, credentials=LOGIN)
        processes = [
            multiprocessing.get_context("forkserver").Process(
                target=_fetch_in, args=(tmp_path, remote, which)
            )
            for which in ("c1", "c2")
        ]
        try:
            for process in processes:
                process.start()
            # Not before git runs: until the exec the child also holds its parent's lock.
            wait_for(lambda: len(host.visits) == 2, "both fetch")
            assert processes[0].pid is not None
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].join()
            assert len(_secrets(tmp_path)) == 2
            make_fetching(tmp_path)
            assert len(_secrets(tmp_path)) == 1
        finally:
            host.answers.set()
            for process in processes:
                process.join()
    assert _secrets(tmp_path) == []


def _fetch_in(folder: Path, remote: Remote, connection: str) -> None:
    """Fetch in another process, which gets no answer from the remote."""
    with pytest.raises(RemoteUnavailable):
        fetch(make_fetching(folder), remote, connection=connection)


@pytest.mark.parametrize("credentials", [LOGIN, BEARER], ids=["password", "bearer token"])
def test_a_password_does_not_follow_a_redirect(
    tmp_path: Path, githost: GitHost, credentials: Credentials | Bearer
) -> None:
    """The other host gets no request."""
    target = githost.create("acme/digits.git").removesuffix(".git")
    githost.visits.clear()
    answer = f"HTTP/1.1 302 Found\r\nLocation: {target}/info/refs\r\nContent-Length: 0\r\n\r\n"
    with answering(answer.encode()) as (port, _):
        remote = Remote(url=f"http://127.0.0.1:{port}/a/b.git", credentials=credentials)
        with pytest.raises(RemoteUnavailable, match="another URL"):
            fetch(make_fetching(tmp_path), remote)
    assert githost.visits == []


@pytest.mark.parametrize(
    ("credentials", "answer", "said", "sent"),
    [
        (
            LOGIN,
            '401 No\r\nWWW-Authenticate: Basic realm="git"',
            "wrong: correct horse/battery, correct%20horse%2Fbattery, YWRhOmNvcnJlY3QgaG9yc2UvYmF0dGVyeQ==",
            "Authorization: Basic YWRhOmNvcnJlY3QgaG9yc2UvYmF0dGVyeQ==\r\n",
        ),
        (
            BEARER,
            "403 No",
            "wrong: correct-horse-battery, Bearer correct-horse-battery, correct-horse-battery",
            "Authorization: Bearer correct-horse-battery\r\n",
        ),
    ],
    ids=["password", "bearer token"],
)
def test_a_remote_that_repeats_what_it_was_sent_is_not_quoted(
    tmp_path: Path, credentials: Credentials | Bearer, answer: str, said: str, sent: str
) -> None:
    """Git shows a server's messages to its user; a reason is stored, logged and shown to many users."""
    head = f"Content-Type: text/plain\r\nContent-Length: {len(said)}\r\n\r\n{said}"
    ask = f"HTTP/1.1 {answer}\r\n{head}"
    with answering(ask.encode()) as (port, received):
        remote = Remote(url=f"http://127.0.0.1:{port}/a/b.git", credentials=credentials)
        with pytest.raises(RemoteUnavailable) as caught:
            fetch(make_fetching(tmp_path), remote)
    assert sent.encode() in b"".join(received)
    assert "wrong: ***, " in str(caught.value)
    assert "correct" not in str(caught.value)


def test_hosts_are_checked_at_each_fetch(tmp_path: Path, githost: GitHost) -> None:
    """The setting may be stricter since the connection was made."""
    git = Git(home=tmp_path / "home", allow_http=True, timeout=30, hosts=("git.example",))
    with pytest.raises(RemoteUnavailable, match="PUSHGATE_FETCH_HOSTS"):
        Fetching.run(git.run("ls-remote", remote=Remote(url=githost.url("acme/digits.git"))))
    assert githost.visits == []


def test_a_data_folder_may_have_any_name(tree: WorkTree, githost: GitHost, tmp_path: Path) -> None:
    """Git passes ssh's options through a shell, and ssh parses them as configuration lines."""
    commit = tree.commit("First", {"a": "b"})
    tree.push()
    folder = tmp_path / 'it\'s 100% "quoted" $(id) %h'
    with SshHost(githost.folder, [KEY.public]) as ssh:
        fetching = make_fetching(folder)
        fetch(fetching, Remote(url=ssh.url("acme/digits.git"), credentials=KEY), commit)
        assert fetching.has(commit)
        assert (folder / "home" / "known_hosts").read_text() == f"{ssh.known_hosts}\n"
