"""Why a remote cannot be fetched: the failed step decides, not a word in a name."""

import pytest

from gateway.errors import FetchError, Gone, LocalFailure, ObjectUnusable, RemoteRefuses, RemoteUnavailable
from gateway.fetch.process import GitFailed, GitTimedOut, explain
from gateway.fetch.reasons import Access, cause_of, remote_failure, repair_of
from testing.documents import ROOT
from testing.fetching import Fetching
from testing.git_host import GitHost
from testing.http_remotes import answering

MAIN = "refs/heads/main"
NOT_THERE = "the repository does not exist"
REFUSED = "access was denied"
TLS = "its certificate is not trusted, or TLS failed"
ERROR = "its server returned an error"


SAID: dict[tuple[type[FetchError], str], list[str]] = {
    (RemoteRefuses, NOT_THERE): [
        "fatal: repository 'https://git.example/openssl.git/' not found",
        "ERROR: Repository not found.",
        "remote: ERROR: The project you were looking for could not be found or you don't have permission",
        "remote: TF401019: The Git repository with name or identifier ssl-certificate does not exist",
    ],
    (RemoteUnavailable, ERROR): [
        "fatal: unable to access 'https://git.example/tls/': The requested URL returned error: 500",
        "fatal: unable to access 'https://h/url-redirect/404/': The requested URL returned error: 503",
    ],
    (RemoteRefuses, REFUSED): [
        "error: RPC failed; HTTP 403 curl 22 The requested URL returned error: 403",
        "git@tls.example: Permission denied (publickey).",
        "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures",
    ],
    (RemoteUnavailable, "it received too many requests"): [
        "fatal: unable to access 'https://h/a/': The requested URL returned error: 429",
    ],
    (RemoteUnavailable, "its host name cannot be resolved"): [
        "fatal: unable to access 'https://ssl.example/a/': Could not resolve host: ssl.example",
    ],
    (RemoteUnavailable, "the host cannot be reached"): [
        "ssh: connect to host tls.example port 22: Connection refused",
    ],
    (RemoteUnavailable, TLS): [
        "fatal: unable to access 'https://h/a/': server certificate verification failed. CAfile: none",
        "fatal: unable to access 'https://h/a/': OpenSSL/3.0.2: error:0A00010B:SSL routines::wrong version",
        "fatal: unable to access 'https://h/a/': gnutls_handshake() failed: Handshake failed",
    ],
    (RemoteUnavailable, "has no algorithm in common"): [
        "Unable to negotiate with 192.0.2.1 port 22: no matching host key type found. Their offer: ssh-rsa",
    ],
    (RemoteUnavailable, "the connection was lost"): [
        "kex_exchange_identification: Connection closed by remote host | Connection closed by tls.example",
        "remote: fatal: write error: No space left on device | fatal: early EOF",
    ],
    (LocalFailure, "this machine cannot fetch"): [
        "fatal: write error: No space left on device | fatal: fetch-pack: invalid index-pack output",
        "fatal: unable to create temporary file '/x/tmp_pack_1': Read-only file system | fatal: early EOF",
        "error: cannot fork to run ssh: Resource temporarily unavailable",
    ],
    (RemoteUnavailable, "its repository is damaged"): [
        "fatal: git upload-pack: aborting due to possible repository corruption on the remote side.",
    ],
    (ObjectUnusable, "git rejects its objects as dangerous"): [
        "error: object d1: hasDotgit: contains '.git' | fatal: fsck error in packed object",
    ],
    (RemoteUnavailable, "cannot be fetched (git: fatal"): [
        "fatal: couldn't find remote ref refs/heads/ssl",
    ],
}


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [(kind, reason, said) for (kind, reason), lines in SAID.items() for said in lines],
)
def test_what_failed_decides(kind: type[FetchError], reason: str, said: str) -> None:
    """By phrases of git, curl and ssh; else by the remote's. The original message stays."""
    error = remote_failure(GitFailed(said))
    assert type(error) is kind
    assert reason in str(error)
    assert said in str(error)


def test_a_reason_has_a_cause_for_metrics() -> None:
    """In one word, which the reference lists; only what git alone explains is `other`."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    for (_, reason), lines in SAID.items():
        for said in lines:
            cause = cause_of(remote_failure(GitFailed(said)))
            assert f"`{cause}`" in page
            assert (cause == "other") is ("(git:" in reason), said
    assert cause_of(remote_failure(GitTimedOut("git took longer than 600 seconds"))) == "timeout"
    assert cause_of(Gone("the remote no longer has it")) == "gone"


@pytest.mark.parametrize(
    ("said", "access", "expected"),
    [
        ("git@h: Permission denied (publickey).", "ssh key", "add the connection's deploy key"),
        ("fatal: Authentication failed for 'https://h/a/'", "login", "set credentials that may read"),
        ("ERROR: Repository not found.", "none", "if the repository is private, set the connection's"),
        ("fatal: Could not resolve host: h", "none", "correct the host in the connection's URL"),
        ("ssh: connect to host h port 22: Connection refused", "ssh key", "correct the host and port"),
        ("ssh: connect to host h port 22: Connection timed out", "ssh key", "check that the host is up"),
        ("Host key verification failed.", "ssh key", "compare the host's key"),
        ("fatal: The requested URL returned error: 301", "login", "set the connection's url"),
        ("fatal: server certificate verification failed", "none", "set SSL_CERT_FILE for the worker"),
    ],
)
def test_a_reason_has_a_remedy(said: str, access: Access, expected: str) -> None:
    """A denied access means another remedy for each kind of credentials."""
    assert expected in str(repair_of(str(remote_failure(GitFailed(said))), access))


def test_an_error_of_the_server_has_no_remedy() -> None:
    """Only waiting helps; a host that does not answer in time has one."""
    slow = remote_failure(GitTimedOut("git took longer than 600 seconds"))
    assert "check that the host is up" in str(repair_of(str(slow), "none"))
    assert repair_of(str(remote_failure(GitFailed("The requested URL returned error: 500"))), "none") is None


def test_noise_is_dropped_and_the_rest_is_kept() -> None:
    """The message of ssh takes precedence over git's advice, which is the same for all errors."""
    said = (
        b"Warning: Permanently added '[git.example]:22' (ED25519) to the list of known hosts.\r\n"
        b"Unable to negotiate with 192.0.2.1 port 22: no matching cipher found. Their offer: 3des-cbc\r\n"
        b"fatal: Could not read from remote repository.\n\n"
        b"Please make sure you have the correct access rights\nand the repository exists.\n"
    )
    reason = "Unable to negotiate with 192.0.2.1 port 22: no matching cipher found. Their offer: 3des-cbc"
    assert explain(said, 128, ()) == reason
    assert explain(b"fatal: Could not read from remote repository.\n", 128, ()) != ""
    assert explain(b"", 128, ()) == "git ended with status 128"


def test_a_long_line_is_shortened_in_its_middle() -> None:
    """The reason comes after the URL, however long that is."""
    said = f"fatal: unable to access 'https://h/{'a' * 2000}/': The requested URL returned error: 404\n"
    reason = explain(said.encode(), 128, ())
    assert len(reason) < 320
    assert isinstance(remote_failure(GitFailed(reason)), RemoteRefuses)


def test_a_host_key_that_has_changed_is_reported_in_two_lines() -> None:
    """Without ssh's picture around it, and without the paths of our files."""
    said = (
        b"@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n"
        b"@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
        b"@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n"
        b"IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\n"
        b"Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r\n"
        b"It is also possible that a host key has just been changed.\r\n"
        b"The fingerprint for the ED25519 key sent by the remote host is\nSHA256:abc.\r\n"
        b"Please contact your system administrator.\r\n"
        b"Add correct host key in /data/git-home/known_hosts to get rid of this message.\r\n"
        b"Offending ED25519 key in /data/git-home/known_hosts:1\r\n"
        b"Host key for [127.0.0.1]:22 has changed and you have requested strict checking.\r\n"
        b"Host key verification failed.\r\nfatal: Could not read from remote repository.\n"
    )
    reason = "Host key for [127.0.0.1]:22 has changed and you have requested strict checking."
    assert explain(said, 128, ()) == f"{reason} | Host key verification failed."


def test_what_a_remote_says_cannot_end_the_line_or_draw_on_a_terminal() -> None:
    """The command line prints it, and logs contain it."""
    said = b"remote: \x1b[2Jgone | fatal: No space left on device\nfatal: protocol error\n"
    reason = explain(said, 128, ())
    assert reason == r"remote: \x1b[2Jgone fatal: No space left on device | fatal: protocol error"


def test_a_missing_repository_of_any_name_is_reported(fetching: Fetching, githost: GitHost) -> None:
    """By a real server: a repository named `openssl` is no TLS error."""
    for name in ("openssl.git", "certificate-redirect", "403/timed-out.git"):
        with pytest.raises(RemoteRefuses, match=NOT_THERE):
            fetching.update(githost.url(name), (MAIN, "d" * 40))


def test_an_error_of_the_server_is_tried_again(fetching: Fetching) -> None:
    """Whatever the name of its repository."""
    answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
    with answering(answer) as (port, _), pytest.raises(RemoteUnavailable, match=ERROR) as caught:
        fetching.update(f"http://127.0.0.1:{port}/url-redirect.git", (MAIN, "d" * 40))
    assert not isinstance(caught.value, RemoteRefuses)
