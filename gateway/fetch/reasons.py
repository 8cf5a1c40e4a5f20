"""What keeps a remote from being fetched, out of what git, curl, ssh and the remote itself have said.

Only phrases of these programs decide. Names of repositories, hosts, refs and files are taken out before:
anybody may call a repository `openssl`. What the remote says counts only where the programs say nothing.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gateway.errors import (
    FetchError,
    LocalFailure,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    RemoteUnavailable,
)
from gateway.fetch.git import GitFailed, GitTimedOut, LimitReached

_NAMES = re.compile(r"\w[\w+.-]*://\S+|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|\S+@\S+|\brefs/\S+")
_NAMES_BEHIND = re.compile(r"(\bhost:|\bhostname|\bconnect to(?: host)?|\bkey for) +\S+", re.IGNORECASE)
# What the other side says, or git in its words.
_OF_THE_REMOTE = re.compile(r"^(remote|error): |remote error:|upload-pack:|remote side", re.IGNORECASE)
_OF_GIT = re.compile(r"^error: ")

_HTTP = r"(?:returned error:|rpc failed; http) "
# A disk, a quota, memory, descriptors, folders that were removed: of this machine, whatever was fetched.
_LOCAL = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|too many open files"
    r"|cannot allocate memory|out of memory|input/output error|cannot fork|resource temporarily unavailable"
    r"|unable to create thread"
    r"|(?:unable|failed|could not|cannot)\b[^|]*(?:permission denied|no such file or directory)",
    re.IGNORECASE,
)
_NOT_THERE = "there is no such repository, or we may not see it"
_REFUSED = "it refuses us"
# In this order; the flag says whether the remote's own words count as well.
_DENIED = (
    r"(?:permission|access)(?: to\b[^|]*)? denied|authentication failed|unauthori[sz]ed|not authori[sz]ed"
    r"|forbidden"
)
_BROKEN_OFF = (
    r"early eof|unexpected disconnect|hung up|connection (?:closed|reset|was reset|aborted)|transfer closed"
    r"|empty reply"
)
_DAMAGED = r"index-pack failed|invalid index-pack output|bad pack|did not send"
_PHRASES: tuple[tuple[str, bool, type[FetchError], str], ...] = (
    (
        r"could not resolve|name or service not known|failure in name resolution",
        False,
        RemoteUnavailable,
        "its host name cannot be resolved",
    ),
    (
        r"connection refused|failed to connect|couldn't connect|no route to host|network is unreachable",
        False,
        RemoteUnavailable,
        "it cannot be reached",
    ),
    (
        r"timed out|timeout was reached|operation too slow",
        False,
        RemoteSilent,
        "it did not answer in time",
    ),
    (
        r"host key verification failed|host key .*has changed|no .*host key is known",
        False,
        RemoteUnavailable,
        "its host key is not the one that is known; if that is right, give the connection the new host_keys",
    ),
    (
        r"no matching .*found|unable to negotiate",
        False,
        RemoteUnavailable,
        "it and ssh on this machine have no algorithm in common",
    ),
    (
        _HTTP + r"30\d|url base from redirection",
        False,
        RemoteRefuses,
        "it answers with another address: put the new URL into the connection",
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
    (_HTTP + r"407\b|response 407", False, RemoteUnavailable, "the proxy on the way refuses us"),
    (_HTTP + r"429\b", False, RemoteUnavailable, "it was asked too often"),
    (_HTTP + r"\d{3}", False, RemoteUnavailable, "its server answers with an error"),
    (
        r"(?<![\w./-])(?:certificates?|ssl(?:_\w+)?|tls(?:v[\d.]+)?|gnutls_\w+)(?![\w/-]|\.\w)",
        False,
        RemoteUnavailable,
        "its certificate is not trusted, or TLS failed",
    ),
    (
        r"protocol .*not supported|transport .*not allowed",
        False,
        RemoteRefuses,
        "its protocol is not allowed",
    ),
    (r"fsck error", False, ObjectUnusable, "what it sent is refused: git finds it dangerous"),
    (r"repository corruption", True, RemoteUnavailable, "its repository is damaged"),
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
        _BROKEN_OFF,
        False,
        RemoteUnavailable,
        "the connection broke off",
    ),
    (
        _DAMAGED,
        False,
        RemoteUnavailable,
        "what it sent is damaged",
    ),
)


def own_words(error: GitFailed) -> str:
    """Return what git and its helpers said, without names and without what the remote said."""
    own = (line for line in error.lines if _OF_GIT.match(line) or not _OF_THE_REMOTE.search(line))
    return _without_names(own)


def is_about_objects(error: GitFailed) -> bool:
    """Return whether a fetch failed over what it was to bring, of which other refs may be free."""
    if isinstance(error, LimitReached):
        return True
    own = own_words(error)
    is_cut = isinstance(error, GitTimedOut) or re.search(_BROKEN_OFF, own, re.IGNORECASE)
    return bool(re.search("fsck error", own) or (not is_cut and re.search(_DAMAGED, own, re.IGNORECASE)))


def is_redirect(error: GitFailed) -> bool:
    """Return whether the remote answered with another address."""
    return re.search(_HTTP + r"30\d", own_words(error), re.IGNORECASE) is not None


@contextmanager
def local_failures() -> Iterator[None]:
    """Raise `LocalFailure` for what files, folders and processes of this machine cannot do in the block."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise LocalFailure(
            f"this machine cannot fetch, from whatever remote: {error.strerror or error}{where}"
        ) from error


def remote_failure(error: GitFailed) -> FetchError:
    """Return the error that tells why a remote cannot be fetched, with what git said."""
    if isinstance(error, LimitReached):
        return ObjectUnusable(f"what was pushed cannot be fetched: {error}")
    if isinstance(error, GitTimedOut):
        return RemoteSilent(f"the remote cannot be fetched: {error}")
    own, everything = own_words(error), _without_names(error.lines)
    if _LOCAL.search(own):
        return LocalFailure(f"this machine cannot fetch, from whatever remote (git: {error})")
    for pattern, counts_remote, kind, told in _PHRASES:
        if re.search(pattern, everything if counts_remote else own, re.IGNORECASE):
            return kind(f"the remote cannot be fetched: {told} (git: {error})")
    return RemoteUnavailable(f"the remote cannot be fetched (git: {error})")


def _without_names(lines: Iterable[str]) -> str:
    return " | ".join(_NAMES_BEHIND.sub(r"\1", _NAMES.sub(" ", line)) for line in lines)
