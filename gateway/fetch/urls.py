"""Decides which clone URLs may be fetched from."""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from gateway.errors import Invalid

PORTS = {"https": 443, "http": 80, "ssh": 22}

# user@host:path, git's short form for ssh: https://git-scm.com/docs/git-clone#_git_urls. Not every program
# reads it as that if its path contains ://.
_SCP_LIKE = re.compile(r"(?!-)[A-Za-z0-9._-]+@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):/?(?!\S*://)[^\s:/][^\s]*")
# Names that a resolver, curl, ssh and a shell all read alike.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9._])?")


def check_url(url: str, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
    """Raise `Invalid`, with one sentence, for a URL that must not be fetched from.

    `hosts`, if there are any, are the only allowed ones. The sentence repeats nothing of the URL but its
    host, because the URL may contain a password.
    """
    scp_like = _SCP_LIKE.fullmatch(url)
    host = scp_like["host"] if scp_like else _host(url, allow_http=allow_http)
    if hosts and host.lower() not in {allowed.lower() for allowed in hosts}:
        raise Invalid(f"url: PUSHGATE_FETCH_HOSTS does not allow the host {host}")


def check_api_url(url: str, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
    """Raise `Invalid`, with one sentence, for the URL of an API to which no token may be sent.

    As `check_url`, but the path may be empty, and ssh is refused.
    """
    if is_ssh(url):
        raise Invalid("api_url: it must be https://…")
    try:
        # Any path: a repository's URL must have one.
        check_url(f"{url.rstrip('/')}/api", allow_http=allow_http, hosts=hosts)
    except Invalid as error:
        raise Invalid(f"api_{error}") from None


def target(url: str) -> tuple[str, str, int]:
    """Return the scheme, the host in lower case and the port of a URL that `check_url` has accepted."""
    scp_like = _SCP_LIKE.fullmatch(url)
    if scp_like:
        return "ssh", scp_like["host"].lower(), PORTS["ssh"]
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme]


def known_as(url: str) -> str:
    """Return the name that a known_hosts file uses for the host of an ssh URL."""
    _, host, port = target(url)
    return host if port == PORTS["ssh"] else f"[{host}]:{port}"


def is_ssh(url: str) -> bool:
    """Return whether a URL uses ssh."""
    return url.startswith("ssh://") or "://" not in url


def is_address(host: str) -> bool:
    """Return whether a host is an address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _host(url: str, *, allow_http: bool) -> str:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise Invalid(
            "url: it cannot be parsed; in a user name or password, write / as %2F, @ as %40, : as %3A"
        ) from None
    _check_scheme(parts.scheme, allow_http=allow_http)
    if not url.startswith(f"{parts.scheme}://"):
        raise Invalid(
            "url: it must begin with https:// or ssh:// in lower case, because git reads the scheme literally"
        )
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        raise Invalid("url: remove the user name and the password from it")
    return _checked_host(url, parts, port_is_fine=port_is_fine)


def _check_scheme(scheme: str, *, allow_http: bool) -> None:
    if scheme == "http" and not allow_http:
        raise Invalid("url: http is not encrypted; use https or ssh (PUSHGATE_FETCH_ALLOW_HTTP is for tests)")
    if scheme not in PORTS:
        raise Invalid("url: it must be https://…, ssh://… or user@host:path")


def _checked_host(url: str, parts: SplitResult, *, port_is_fine: bool) -> str:
    bad_start = any((part or "").startswith("-") for part in (parts.hostname, parts.username))
    if not parts.hostname or bad_start or not port_is_fine or parts.path in {"", "/"}:
        raise Invalid("url: it has no valid host, or no path of a repository")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise Invalid("url: it must not contain a query, a fragment, white space or control characters")
    if not (_NAME.fullmatch(parts.hostname) or is_address(parts.hostname)):
        raise Invalid(
            "url: its host is neither a host name nor an address (write a name in another script as xn--…)"
        )
    return parts.hostname
