"""Private repositories over real transports: which access works, which not, and that secrets stay secret."""

import socket
import ssl
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from gateway.errors import RemoteUnavailable
from gateway.fetch.addresses import is_forbidden
from gateway.fetch.credentials import Bearer, Credentials, Login, Remote, SshKey, make_deploy_key
from gateway.fetch.git import Git
from gateway.fetch.mirror import Wanted
from testing.certificate import make_certificate
from testing.fetching import Fetching, make_fetching
from testing.git_host import GitHost, WorkTree
from testing.service import wait_for
from testing.ssh import SshHost

OURS = make_deploy_key("github", comment="ours")
RSA = make_deploy_key("azure-devops", comment="rsa")
MAIN = "refs/heads/main"
PASSWORD = "correct-horse-battery-staple"


@pytest.fixture
def pushed(tree: WorkTree) -> str:
    """Return a commit that is on the remote."""
    commit = tree.commit("First", {"valohai.yaml": "- step:\n", "a": "b"})
    tree.push()
    return commit


@pytest.fixture
def ssh(githost: GitHost) -> Iterator[SshHost]:
    """Start an SSH server for the same repositories."""
    with SshHost(githost.folder, [OURS.public, RSA.public]) as host:
        yield host


def fetch(fetching: Fetching, url: str, commit: str, **remote: object) -> bool:
    """Fetch a commit; return whether it is there."""
    asked = [Wanted(ref=MAIN, id=commit)]
    where = Remote(url=url, **remote)  # type: ignore[arg-type]
    fetching.run(fetching.mirrors.update(connection="c1", remote=where, wanted=asked))
    return fetching.has(commit)


def nothing_is_left(folder: Path) -> bool:
    """Return whether no file of a fetch is left."""
    return [path for path in (folder / "home").glob("access-*/*") if path.is_dir()] == []


@pytest.mark.parametrize("key", [OURS, RSA], ids=["Ed25519", "RSA"])
def test_a_deploy_key_opens_a_repository(
    fetching: Fetching, ssh: SshHost, pushed: str, tmp_path: Path, key: SshKey
) -> None:
    """Over ssh, from a real server; the key is gone afterwards."""
    assert fetch(fetching, ssh.url("acme/digits.git"), pushed, credentials=key)
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("key", [make_deploy_key("github", comment="other"), None], ids=["another", "none"])
def test_another_key_is_refused(fetching: Fetching, ssh: SshHost, pushed: str, key: SshKey | None) -> None:
    """The reason is that access was denied; no key of this machine's user is tried."""
    with pytest.raises(RemoteUnavailable, match="access was denied"):
        fetch(fetching, ssh.url("acme/digits.git"), pushed, credentials=key)


def test_a_host_key_is_pinned_on_first_use(
    fetching: Fetching, ssh: SshHost, tree: WorkTree, pushed: str
) -> None:
    """Another key at the same address is refused, with what to do."""
    url = ssh.url("acme/digits.git")
    assert fetch(fetching, url, pushed, credentials=OURS)
    ssh.change_host_key()
    second = tree.commit("Second", {"a": "c"})
    tree.push()
    with pytest.raises(RemoteUnavailable, match="its host key does not match the known one"):
        fetch(fetching, url, second, credentials=OURS)


def test_given_host_keys_are_the_only_ones(fetching: Fetching, ssh: SshHost, pushed: str) -> None:
    """Only the given keys are trusted, and none on first use."""
    url = ssh.url("acme/digits.git")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    with pytest.raises(RemoteUnavailable, match="host key"):
        fetch(fetching, url, pushed, credentials=OURS, host_keys=f"[127.0.0.1]:{ssh.port} {other}")
    assert fetch(fetching, url, pushed, credentials=OURS, host_keys=ssh.known_hosts)


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GitHost, Fetching]]:
    """Start a git server with TLS and a password, and return mirrors that trust its certificate."""
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    with GitHost(tmp_path / "git", credentials=f"ada:{PASSWORD}", tls=context) as host:
        yield host, make_fetching(tmp_path / "tls")


def _push_locally(host: GitHost, folder: Path) -> str:
    host.create("acme/private.git")
    tree = WorkTree(folder / "local", str(host.folder / "acme/private.git"))
    commit = tree.commit("First", {"a": "b"})
    tree.push()
    return commit


def test_a_password_opens_a_repository(https: tuple[GitHost, Fetching], tmp_path: Path) -> None:
    """Over https, with a certificate that only the operator trusts."""
    host, fetching = https
    commit = _push_locally(host, tmp_path)
    assert fetch(
        fetching, host.url("acme/private.git"), commit, credentials=Login(user="ada", password=PASSWORD)
    )
    assert nothing_is_left(tmp_path / "tls")


@pytest.mark.parametrize(
    "credentials", [Login(user="ada", password="wr0ng-password"), None], ids=["wrong", "none"]
)
def test_a_wrong_password_is_refused(
    https: tuple[GitHost, Fetching], tmp_path: Path, credentials: Credentials | None
) -> None:
    """Or a missing one: git does not wait at a prompt, and no error contains the password."""
    host, fetching = https
    commit = _push_locally(host, tmp_path)
    with pytest.raises(RemoteUnavailable, match="access was denied") as caught:
        fetch(fetching, host.url("acme/private.git"), commit, credentials=credentials)
    assert "wr0ng-password" not in str(caught.value)


def test_a_certificate_that_nobody_trusts_is_refused(
    https: tuple[GitHost, Fetching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No password is sent there."""
    host, _ = https
    monkeypatch.delenv("SSL_CERT_FILE")
    commit = _push_locally(host, tmp_path)
    with pytest.raises(RemoteUnavailable, match="certificate is not trusted"):
        fetch(make_fetching(tmp_path / "plain"), host.url("acme/private.git"), commit)


@pytest.mark.parametrize(
    ("required", "credentials"),
    [
        (f"ada:{PASSWORD}", Login(user="ada", password=PASSWORD)),
        (f"Bearer {PASSWORD}", Bearer(token=PASSWORD)),
    ],
    ids=["password", "bearer token"],
)
def test_no_process_shows_a_secret(
    https: tuple[GitHost, Fetching], tmp_path: Path, required: str, credentials: Credentials | Bearer
) -> None:
    """Neither in its arguments nor in its environment, during a fetch; nor is it left in a file."""
    host, fetching = https
    host.credentials = required
    commit = _push_locally(host, tmp_path)
    host.answers.clear()
    url = host.url("acme/private.git")
    options = {"credentials": credentials}
    running = threading.Thread(target=fetch, args=(fetching, url, commit), kwargs=options)
    running.start()
    try:
        seen = wait_for(lambda: _processes("acme/private.git"), "git is at it")
    finally:
        host.answers.set()
        running.join()
    assert fetching.has(commit)
    assert seen
    assert PASSWORD.encode() not in seen
    assert nothing_is_left(tmp_path / "tls")


def _processes(what: str) -> bytes | None:
    """Return the arguments and environments of all processes, once one of them fetches a repository."""
    found = b"".join(_process(path) for path in Path("/proc").glob("[0-9]*"))
    return found if what.encode() in found and b"remote-http" in found else None


def _process(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("169.254.169.254", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("0.0.0.1", True),
        ("64:ff9b:1::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True),
        ("::169.254.169.254", True),
        ("fd00:ec2::254", True),
        ("fe80::1", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("0.0.0.0", True),  # noqa: S104 - refused, not bound to
        ("224.0.0.1", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("140.82.121.4", False),
        ("2606:50c0:8000::154", False),
    ],
)
def test_which_addresses_are_never_fetched_from(address: str, *, forbidden: bool) -> None:
    """Clouds serve machine metadata there; private networks are allowed, since git servers are in them."""
    assert is_forbidden(ip_address(address), allow_loopback=False) == forbidden


@pytest.mark.parametrize("url", ["http://169.254.169.254/a/b.git", "ssh://git@[fe80::1]/a/b.git"])
def test_a_forbidden_address_is_a_reason(fetching: Fetching, url: str) -> None:
    """Nothing is sent there."""
    with pytest.raises(RemoteUnavailable, match="never connects to"):
        fetch(fetching, url, "d" * 40)


def _resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Resolve `only-here.invalid` to these addresses, in this process only."""
    others = socket.getaddrinfo

    def resolve(host: str | None, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host != "only-here.invalid":
            return others(host, port, *arguments, **options)
        return [(None, None, None, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_the_address_that_was_checked_is_the_one_that_is_used(
    fetching: Fetching, tree: WorkTree, githost: GitHost, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch from a name that only we can resolve works: git does not resolve it again."""
    _resolve(monkeypatch, "127.0.0.1")
    assert fetch(fetching, f"http://only-here.invalid:{githost.port}/acme/digits.git", pushed)
    assert tree.head() == pushed


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("https://[::1]:9/a/b.git", {"NO_PROXY": "::1"}),
        ("https://127.0.0.1:9/a/b.git", {"no_proxy": "127.0.0.0/8"}),
        ("https://localhost:9/a/b.git", {"no_proxy": "*"}),
        ("https://localhost:9/a/b.git", {"no_proxy": "a.example LocalHost"}),
    ],
)
def test_what_goes_past_a_proxy_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str]
) -> None:
    """The proxy guards only its own traffic; curl reads the exceptions in several forms."""
    for name in ("HTTPS_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    git = Git(home=tmp_path / "home", allow_http=False, timeout=30)
    with pytest.raises(RemoteUnavailable, match="never connects to"):
        Fetching.run(git.run("ls-remote", remote=Remote(url=url)))


def test_ssh_tries_all_addresses_of_a_host(
    githost: GitHost, fetching: Fetching, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing listens at the first one; all of them were checked before."""
    _resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
    with SshHost(githost.folder, [OURS.public]) as host:
        url = host.url("acme/digits.git").replace("127.0.0.1", "only-here.invalid")
        assert fetch(fetching, url, pushed, credentials=OURS)
        host.authorized.clear()
        with pytest.raises(RemoteUnavailable, match="access was denied"):
            fetch(fetching, url, "d" * 40, credentials=OURS)
    with pytest.raises(RemoteUnavailable, match="the host cannot be reached"):
        fetch(fetching, url, "d" * 40, credentials=OURS)


def test_what_ssh_says_is_not_lost(githost: GitHost, fetching: Fetching, pushed: str) -> None:
    """The reason names a server whose algorithms are all obsolete as such."""
    with SshHost(githost.folder, [OURS.public], mac_algs=["hmac-md5"], encryption_algs=["3des-cbc"]) as host:
        with pytest.raises(RemoteUnavailable, match="no algorithm in common") as caught:
            fetch(fetching, host.url("acme/digits.git"), pushed, credentials=OURS)
        assert "no matching cipher found. Their offer: 3des-cbc" in str(caught.value)


def test_an_address_may_stand_in_a_url(githost: GitHost, fetching: Fetching, pushed: str) -> None:
    """Then nothing is resolved; and a name may be in upper case."""
    assert fetch(fetching, f"http://LocalHost:{githost.port}/acme/digits.git", pushed)
    with pytest.raises(RemoteUnavailable, match="the host cannot be reached"):
        fetch(fetching, "http://[::1]:9/acme/digits.git", "d" * 40)
