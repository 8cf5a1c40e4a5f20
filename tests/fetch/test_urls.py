"""Which URLs are fetched from: all that providers print, and none with another meaning."""

import pytest

from gateway.errors import Invalid
from gateway.fetch.urls import check_url, is_ssh, known_as, target


@pytest.mark.parametrize(
    ("url", "where", "known"),
    [
        ("https://github.com/a/b.git", ("https", "github.com", 443), None),
        ("https://GIT.example:8443/a/b", ("https", "git.example", 8443), None),
        ("https://xn--bcher-kva.example/a/b", ("https", "xn--bcher-kva.example", 443), None),
        ("https://git_1.example./a/b", ("https", "git_1.example.", 443), None),
        ("https://[2001:db8::1]/a/b", ("https", "2001:db8::1", 443), None),
        ("git@GitHub.com:a/b.git", ("ssh", "github.com", 22), "github.com"),
        ("ssh://git@git.example/a/b", ("ssh", "git.example", 22), "git.example"),
        ("ssh://git@ssh.github.com:443/a/b", ("ssh", "ssh.github.com", 443), "[ssh.github.com]:443"),
        ("ssh://git@[::1]:2222/a/b", ("ssh", "::1", 2222), "[::1]:2222"),
        ("git@host.example:/srv/git/x.git", ("ssh", "host.example", 22), "host.example"),
        ("git@ssh.dev.azure.com:v3/o/p/r", ("ssh", "ssh.dev.azure.com", 22), "ssh.dev.azure.com"),
    ],
)
def test_where_a_url_leads(url: str, where: tuple[str, str, int], known: str | None) -> None:
    """Scheme, host and port, and for ssh the name in known_hosts."""
    check_url(url, allow_http=False, hosts=())
    assert target(url) == where
    assert is_ssh(url) == (known is not None)
    if known is not None:
        assert known_as(url) == known


@pytest.mark.parametrize(
    "url",
    [
        "ssh://git@a';id;'/x.git",
        "ssh://git@$(id)/x.git",
        "ssh://git@`id`/x.git",
        "https://host;x/a.git",
        "https://host,other/a.git",
        "https://gith%75b.com/a.git",
        "https://bücher.example/a.git",
        "https://host\\other/a.git",
        "-Fx@host:a/b",
        "git@host:/",
        "git@host://absolute",
        "git@host:ssh://other/a.git",
        "Ssh://git@host/a/b",
        "HTTPS://host/a/b",
        " https://host/a/b",
        "git@host:a/b://c",
        "git@[::1]:a/b",
        "host:a/b",
    ],
)
def test_a_host_is_read_alike_by_everybody(url: str) -> None:
    """By the shell between git and ssh, the resolver, and curl, which gets the address."""
    with pytest.raises(Invalid, match=r"^url: "):
        check_url(url, allow_http=False, hosts=())


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:s3c/ret@host.example/a/b",
        "https://ada:s3c\u2100ret@host.example/a",
        "https://a:s3cret@h/a",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    """Python's error may contain a part of a password."""
    with pytest.raises(Invalid) as caught:
        check_url(url, allow_http=False, hosts=())
    assert "s3c" not in str(caught.value)


def test_only_listed_hosts_are_allowed() -> None:
    """Whatever the case, and for each form."""
    for url in ("https://Git.example/a/b", "git@git.example:a/b", "ssh://git@GIT.example:22/a/b"):
        check_url(url, allow_http=False, hosts=("git.EXAMPLE",))
        with pytest.raises(Invalid, match="PUSHGATE_FETCH_HOSTS"):
            check_url(url, allow_http=False, hosts=("other.example",))
