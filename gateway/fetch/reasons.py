"""Finds out from the messages of git, curl, ssh and the remote why a remote cannot be fetched.

Only phrases of these programs decide. Names of repositories, hosts, refs and files are removed first, because
a repository may be called `openssl`. Messages of the remote count only if the programs give no reason.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from gateway.errors import (
    FetchError,
    Gone,
    LocalFailure,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    RemoteUnavailable,
)
from gateway.fetch.process import GitFailed, GitTimedOut, LimitReached

_NAMES = re.compile(r"\w[\w+.-]*://\S+|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|\S+@\S+|\brefs/\S+")
_NAMES_BEHIND = re.compile(r"(\bhost:|\bhostname|\bconnect to(?: host)?|\bkey for) +\S+", re.IGNORECASE)
# Messages of the remote, or git's messages in its words.
_OF_THE_REMOTE = re.compile(r"^(remote|error): |remote error:|upload-pack:|remote side", re.IGNORECASE)
_OF_GIT = re.compile(r"^error: ")

_HTTP = r"(?:returned error:|rpc failed; http) "
# Failures of this machine, which do not depend on the remote: disk, quota, memory, descriptors, lost folders.
_LOCAL = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|too many open files"
    r"|cannot allocate memory|out of memory|input/output error|cannot fork|resource temporarily unavailable"
    r"|unable to create thread"
    r"|(?:unable|failed|could not|cannot)\b[^|]*(?:permission denied|no such file or directory)",
    re.IGNORECASE,
)
_PREFIX = "the remote cannot be fetched: "
_UNRESOLVED = "its host name cannot be resolved"
_UNREACHABLE = "the host cannot be reached"
_SILENT = "it did not answer in time"
_TOO_SLOW = "git took longer than"
_OTHER_HOST_KEY = (
    "its host key does not match the known one; if that is expected, set the connection's new host_keys"
)
_MOVED = "it redirects to another URL: set the connection's URL to the new one"
_UNTRUSTED = "its certificate is not trusted, or TLS failed"
_NOT_THERE = "the repository does not exist, or the credentials give no access to it"
_REFUSED = "access was denied"
_PROXY = "the proxy denied access"
_TOO_MANY = "it received too many requests"
_SERVER_ERROR = "its server returned an error"
_NO_ALGORITHM = "it has no algorithm in common with ssh on this machine"
_PROTOCOL = "its protocol is not allowed"
_CORRUPT = "its repository is damaged"
_LOST = "the connection was lost"
_SENT_DAMAGED = "it sent damaged data"
_DENIED = (
    r"(?:permission|access)(?: to\b[^|]*)? denied|authentication failed|unauthori[sz]ed|not authori[sz]ed"
    r"|forbidden"
)
_INTERRUPTED = (
    r"early eof|unexpected disconnect|hung up|connection (?:closed|reset|was reset|aborted)|transfer closed"
    r"|empty reply"
)
_DAMAGED = r"index-pack failed|invalid index-pack output|bad pack|did not send"
# Tried in this order; the flag is whether the remote's own messages count as well.
_PHRASES: tuple[tuple[str, bool, type[FetchError], str], ...] = (
    (
        r"could not resolve|name or service not known|failure in name resolution",
        False,
        RemoteUnavailable,
        _UNRESOLVED,
    ),
    (
        r"connection refused|failed to connect|couldn't connect|no route to host|network is unreachable",
        False,
        RemoteUnavailable,
        _UNREACHABLE,
    ),
    (
        r"timed out|timeout was reached|operation too slow",
        False,
        RemoteSilent,
        _SILENT,
    ),
    (
        r"host key verification failed|host key .*has changed|no .*host key is known",
        False,
        RemoteUnavailable,
        _OTHER_HOST_KEY,
    ),
    (
        r"no matching .*found|unable to negotiate",
        False,
        RemoteUnavailable,
        _NO_ALGORITHM,
    ),
    (
        _HTTP + r"30\d|url base from redirection",
        False,
        RemoteRefuses,
        _MOVED,
    ),
    (
        _HTTP + r"40[13]\b|authentication failed|could not read (?:username|password)|permission denied"
        r"|too many authentication failures",
        False,
        RemoteRefuses,
        _REFUSED,
    ),
    (
        _HTTP + r"4(?:04|10)\b|repository +not found|does not appear to be a git repository",
        False,
        RemoteRefuses,
        _NOT_THERE,
    ),
    (_HTTP + r"407\b|response 407", False, RemoteUnavailable, _PROXY),
    (_HTTP + r"429\b", False, RemoteUnavailable, _TOO_MANY),
    (_HTTP + r"\d{3}", False, RemoteUnavailable, _SERVER_ERROR),
    (
        r"(?<![\w./-])(?:certificates?|ssl(?:_\w+)?|tls(?:v[\d.]+)?|gnutls_\w+)(?![\w/-]|\.\w)",
        False,
        RemoteUnavailable,
        _UNTRUSTED,
    ),
    (
        r"protocol .*not supported|transport .*not allowed",
        False,
        RemoteRefuses,
        _PROTOCOL,
    ),
    (r"fsck error", False, ObjectUnusable, "git rejects its objects as dangerous"),
    (r"repository corruption", True, RemoteUnavailable, _CORRUPT),
    (
        r"not found|does not exist|could not be found|no such (?:project|repository)",
        True,
        RemoteRefuses,
        _NOT_THERE,
    ),
    (
        _DENIED,
        True,
        RemoteRefuses,
        _REFUSED,
    ),
    (
        _INTERRUPTED,
        False,
        RemoteUnavailable,
        _LOST,
    ),
    (
        _DAMAGED,
        False,
        RemoteUnavailable,
        _SENT_DAMAGED,
    ),
)

Access = Literal["ssh key", "login", "identity", "none"]
"""The kind of the credentials that fetches use."""

CHECK_THE_NETWORK = "check that the host is up, and that a firewall lets the worker through to it"
"""What to do about a host that does not answer."""

_GIVE_ACCESS: Mapping[Access, str] = {
    "ssh key": "add the connection's deploy key to the repository (read access is enough), and check the URL",
    "login": "check the URL, and set credentials that may read the repository: a token may have expired",
    "identity": "check the URL, and that the identity may read the repository: its token may have expired, or"
    " it is not in the organization",
    "none": "check the URL; if the repository is private, set the connection's credentials",
}
_REPAIRS: Mapping[str, str] = {
    _UNRESOLVED: "correct the host in the connection's URL, or the name server of the worker's machine",
    _UNREACHABLE: "correct the host and port in the connection's URL, or let the worker through the firewall",
    _SILENT: CHECK_THE_NETWORK,
    _TOO_SLOW: CHECK_THE_NETWORK,
    _OTHER_HOST_KEY: "compare the host's key with the one that its operator publishes before you set it",
    _MOVED: "set the connection's url to the one that the repository's page shows",
    _UNTRUSTED: "correct the URL; if the host's certificates come from your own authority, set SSL_CERT_FILE"
    " for the worker",
}

_CAUSES: Mapping[str, str] = {
    _UNRESOLVED: "unresolved",
    _UNREACHABLE: "unreachable",
    _OTHER_HOST_KEY: "host_key",
    _NO_ALGORITHM: "no_algorithm",
    _MOVED: "moved",
    _REFUSED: "denied",
    _NOT_THERE: "not_found",
    _PROXY: "proxy",
    _TOO_MANY: "rate_limited",
    _SERVER_ERROR: "server_error",
    _UNTRUSTED: "certificate",
    _PROTOCOL: "protocol",
    _CORRUPT: "damaged",
    _LOST: "interrupted",
    _SENT_DAMAGED: "damaged",
}
_CAUSES_OF_KINDS: tuple[tuple[type[FetchError], str], ...] = (
    (LocalFailure, "local"),
    (Gone, "gone"),
    (ObjectUnusable, "unusable"),
    (RemoteSilent, "timeout"),
)


def cause_of(error: FetchError) -> str:
    """Return why a fetch failed in one word, for a label of metrics."""
    for kind, cause in _CAUSES_OF_KINDS:
        if isinstance(error, kind):
            return cause
    detail = str(error).removeprefix(_PREFIX)
    return next((cause for start, cause in _CAUSES.items() if detail.startswith(start)), "other")


def repair_of(reason: str, access: Access) -> str | None:
    """Return what a user can do about the reason of a `FetchError`; None if only waiting helps."""
    detail = reason.removeprefix(_PREFIX)
    if detail.startswith((_REFUSED, _NOT_THERE)):
        return _GIVE_ACCESS[access]
    return next((repair for start, repair in _REPAIRS.items() if detail.startswith(start)), None)


def own_words(error: GitFailed) -> str:
    """Return the messages of git and its helpers, without names and without the messages of the remote."""
    own = (line for line in error.lines if _OF_GIT.match(line) or not _OF_THE_REMOTE.search(line))
    return _without_names(own)


def is_about_objects(error: GitFailed) -> bool:
    """Return whether some of the fetched objects made a fetch fail, so that other refs may succeed."""
    if isinstance(error, LimitReached):
        return True
    own = own_words(error)
    is_cut = isinstance(error, GitTimedOut) or re.search(_INTERRUPTED, own, re.IGNORECASE)
    return bool(re.search("fsck error", own) or (not is_cut and re.search(_DAMAGED, own, re.IGNORECASE)))


def is_redirect(error: GitFailed) -> bool:
    """Return whether the remote answered with a redirect."""
    return re.search(_HTTP + r"30\d", own_words(error), re.IGNORECASE) is not None


@contextmanager
def local_failures() -> Iterator[None]:
    """Raise `LocalFailure` for each `OSError` in the block: files, folders or processes of this machine."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise LocalFailure(
            f"this machine cannot fetch from any remote: {error.strerror or error}{where}"
        ) from error


def remote_failure(error: GitFailed) -> FetchError:
    """Return the error with the reason why a remote cannot be fetched, and with git's message."""
    if isinstance(error, LimitReached):
        return ObjectUnusable(f"the pushed commit cannot be fetched: {error}")
    if isinstance(error, GitTimedOut):
        return RemoteSilent(f"{_PREFIX}{error}")
    own, everything = own_words(error), _without_names(error.lines)
    if _LOCAL.search(own):
        return LocalFailure(f"this machine cannot fetch from any remote (git: {error})")
    for pattern, counts_remote, kind, reason in _PHRASES:
        if re.search(pattern, everything if counts_remote else own, re.IGNORECASE):
            return kind(f"{_PREFIX}{reason} (git: {error})")
    return RemoteUnavailable(f"the remote cannot be fetched (git: {error})")


def _without_names(lines: Iterable[str]) -> str:
    return " | ".join(_NAMES_BEHIND.sub(r"\1", _NAMES.sub(" ", line)) for line in lines)
