"""Which clone URLs are fetched from, and which never are."""

import re
from urllib.parse import urlsplit

from gateway.errors import Invalid

# user@host:path, git's short form for ssh: https://git-scm.com/docs/git-clone#_git_urls
_SCP_LIKE = re.compile(r"[A-Za-z0-9._-]+@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?!/)[^\s:][^\s]*")


def check_url(url: str, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
    """Raise `Invalid`, with one sentence, for a URL that is not to be fetched from.

    `hosts`, where there are any, are the only ones allowed.
    """
    scp_like = _SCP_LIKE.fullmatch(url)
    host = scp_like["host"] if scp_like else _host(url, allow_http=allow_http)
    if hosts and host.lower() not in {allowed.lower() for allowed in hosts}:
        raise Invalid(f"url: the host {host} is not one of those that PUSHGATE_FETCH_HOSTS allows")


def check_platform(url: str, *, allow_http: bool) -> None:
    """Raise `Invalid` for the address of a platform that is none, or that a token is not to be sent to."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise Invalid("platform: its url begins with https://")
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Invalid("platform: its url is scheme and host, without user, query or fragment")


def host_of(url: str) -> str:
    """Return the host of a URL that `check_url` has let pass."""
    scp_like = _SCP_LIKE.fullmatch(url)
    return scp_like["host"] if scp_like else urlsplit(url).hostname or ""


def is_ssh(url: str) -> bool:
    """Say whether a URL is fetched from over ssh."""
    return url.startswith("ssh://") or "://" not in url


def _host(url: str, *, allow_http: bool) -> str:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as error:
        raise Invalid(f"url: it cannot be read: {error}") from None
    if parts.scheme == "http" and not allow_http:
        raise Invalid("url: http is not encrypted; use https or ssh (PUSHGATE_FETCH_ALLOW_HTTP is for tests)")
    if parts.scheme not in {"https", "ssh", "http"}:
        raise Invalid("url: it must be https://…, ssh://… or user@host:path")
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        raise Invalid("url: take the user name and the password out of it")
    bad_start = any((part or "").startswith("-") for part in (parts.hostname, parts.username))
    if not parts.hostname or bad_start or not port_is_fine or parts.path in {"", "/"}:
        raise Invalid("url: it names no host, or no repository on it")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise Invalid("url: it holds a query, a fragment, blanks or control characters")
    return parts.hostname
