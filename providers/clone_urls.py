"""Clone URLs in all their forms, and the key that is equal for all URLs of a repository."""

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from providers.model import Repository

# SSH on the https port, for networks that block other ports:
# https://docs.github.com/en/authentication/troubleshooting-ssh/using-ssh-over-the-https-port
# https://support.atlassian.com/bitbucket-cloud/docs/configure-ssh-and-two-step-verification/
# https://docs.gitlab.com/user/gitlab_com/#alternative-ssh-port
_ALIASES = {
    "ssh.github.com": "github.com",
    "altssh.bitbucket.org": "bitbucket.org",
    "altssh.gitlab.com": "gitlab.com",
}
_SCP_LIKE = re.compile(r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>\[[^\]]+\]|[^/:\s]+):(?!//)(?P<path>\S.*)")
_AZURE_HOSTS = frozenset({"dev.azure.com", "ssh.dev.azure.com"})
_OLD_AZURE = ".visualstudio.com"
_OLD_AZURE_SSH = "vs-ssh.visualstudio.com"
# The word before a repository's name in the URLs of Azure DevOps, where no name begins with `_`; and the
# words that may follow it, for all refs or only frequently used refs.
# https://learn.microsoft.com/en-us/azure/devops/repos/git/limits
_AZURE_MARKS = frozenset({"_git", "_ssh"})
_NOT_IN_AZURE_KEYS = frozenset({"_full", "_optimized"})
_WORDS_BEFORE_A_SHORT_FORM = 2
# Where a server is installed by default: https://host/tfs/collection/project/_git/repository
_AZURE_DIRECTORY = "tfs"
# Azure DevOps writes the organisation there. Never show it: elsewhere it may be a secret.
_USER_IN_HTTP_URL = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)


def repository_key(url: str) -> str:
    """Return `host/path` in lower case, equal for all forms of a repository's clone URL.

    The key omits scheme, user, password, port, `.git`, percent-encoding, which of Azure DevOps' three hosts
    the URL names, and the short form for a project's default repository. For text that is not a URL, return
    the text in lower case.
    """
    user, host, path = _parts(url)
    host = _ALIASES.get(host, host)
    words = path.split("/")
    if host in _AZURE_HOSTS or host.endswith(_OLD_AZURE):
        host, path = "dev.azure.com", _azure_path(user, host, words)
    elif any(word.lower() in _AZURE_MARKS for word in words):
        path = _azure_server_path(words)
    return f"{host}/{_without_scm(path)}".lower()


def host_of(url: str) -> str:
    """Return the host of `repository_key`."""
    return repository_key(url).partition("/")[0]


def host_and_path(url: str) -> tuple[str, str]:
    """Return the host in lower case, and the path without `.git` in its own case, of a clone URL."""
    _, host, path = _parts(url)
    return _ALIASES.get(host, host), path


def server_url(url: str) -> str:
    """Return scheme, host and port of the web server of a clone URL; https for a clone URL of ssh."""
    parts = urlsplit(url)
    host, _ = host_and_path(url)
    is_web = parts.scheme in {"https", "http"}
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{f':{parts.port}' if parts.port else ''}" if is_web else f"https://{name}"


def without_user(url: str) -> str:
    """Return a URL of http without the user that some providers put into it."""
    return _USER_IN_HTTP_URL.sub(r"\1", url)


def azure_place(url: str) -> tuple[str, str, str]:
    """Return the URL of an Azure DevOps organisation or collection, and the names of project and repository.

    A server in a directory other than `tfs` is recognized only by a URL with the project. Raise `ValueError`
    for a URL that names no repository.
    """
    user, host, path = _parts(url)
    words = path.split("/")
    if host in _AZURE_HOSTS or host.endswith(_OLD_AZURE):
        organisation, project, name = _azure_path(user, host, words).split("/")
        return f"https://dev.azure.com/{quote(organisation)}", project, name
    before, after = _parted([word for word in words if word.lower() not in _NOT_IN_AZURE_KEYS])
    before = [word for word in before if word]
    if len(after) != 1 or not before:
        raise ValueError(path)
    has_project = len(before) > _WORDS_BEFORE_A_SHORT_FORM or (
        len(before) == _WORDS_BEFORE_A_SHORT_FORM and before[0].lower() != _AZURE_DIRECTORY
    )
    project = before.pop() if has_project else after[0]
    return "/".join([server_url(url), *map(quote, before)]), project, after[0]


def is_about(key: str, repository: Repository) -> bool:
    """Return whether a payload's repository may be the one of a key, by clone URL or by full name.

    A payload with neither may be about any repository.
    """
    if not repository.urls and not repository.full_name:
        return True
    if any(_same_place(key, repository_key(url)) for url in repository.urls):
        return True
    return bool(repository.full_name) and same_repository(key, full_name=repository.full_name or "")


def same_repository(key: str, *, full_name: str) -> bool:
    """Return whether a repository key ends with a payload's full name, such as `owner/name`."""
    path = key.partition("/")[2]
    wanted = _without_scm(full_name.strip("/")).lower()
    before, mark, name = path.rpartition("/_git/")
    if mark:
        # On a self-hosted server, a collection and a project look alike.
        is_short = before.count("/") < _WORDS_BEFORE_A_SHORT_FORM
        return wanted == f"{before.rpartition('/')[2]}/{name}" or (is_short and wanted == f"{name}/{name}")
    return bool(wanted) and (path == wanted or path.endswith("/" + wanted))


def _same_place(key: str, other: str) -> bool:
    """Return whether two keys are equal, or have one path on an Azure DevOps Server with several names."""
    if key == other:
        return True
    left, right = (f"/{text.partition('/')[2]}" for text in (key, other))
    return all("/_git/" in path for path in (left, right)) and (left.endswith(right) or right.endswith(left))


def _parts(url: str) -> tuple[str, str, str]:
    """Return user, host and path; the host in lower case, the path without `.git`."""
    scp_like = _SCP_LIKE.fullmatch(url.strip())
    if scp_like and "://" not in url:
        user, host, path = scp_like["user"] or "", scp_like["host"].strip("[]"), scp_like["path"]
    else:
        try:
            parts = urlsplit(url.strip())
            user, host, path = parts.username or "", parts.hostname or "", parts.path
        except ValueError:
            return "", "", url
    path = unquote(path).strip("/")
    return user, host.lower(), path.removesuffix(".git").rstrip("/")


def _without_scm(path: str) -> str:
    """Return the path without the `scm` of Bitbucket Data Center.

    Its URLs are https://host/scm/PROJECT/repo.git, but ssh://git@host/PROJECT/repo.git; elsewhere `scm` may
    be an owner.
    """
    words = path.split("/")
    return "/".join(words[1:]) if words[0].lower() == "scm" and len(words) > 2 else path  # noqa: PLR2004


def _azure_path(user: str, host: str, words: Sequence[str]) -> str:
    """Return organisation/project/repository.

    https://learn.microsoft.com/en-us/azure/devops/repos/git/use-ssh-keys-to-authenticate
    """
    parts = [word for word in words if word.lower() not in _NOT_IN_AZURE_KEYS | {"defaultcollection"}]
    if host in {"ssh.dev.azure.com", _OLD_AZURE_SSH}:
        parts = parts[1:] if parts[:1] == ["v3"] else parts
    if host != _OLD_AZURE_SSH and host.endswith(_OLD_AZURE):
        parts.insert(0, host.removesuffix(_OLD_AZURE))
    elif host == _OLD_AZURE_SSH and "_ssh" in words:
        # https://blogs.msdn.microsoft.com/devops/2017/10/23/vsts-ssh-on-azure-global-network/
        parts.insert(0, user)
    before, after = _parted(parts)
    # The URL of a project's default repository does not repeat the name.
    if len(before) == 1 and after:
        before.append(after[0])
    elif len(before) == 2 and not after:  # noqa: PLR2004 - organisation and project
        before.append(before[1])
    return "/".join([*before, *after])


def _azure_server_path(words: Sequence[str]) -> str:
    """Return [directory/]collection[/project]/_git/repository, without a project of the repository's name.

    The number of words before a collection is unknown, so both forms map to the short form.
    """
    before, after = _parted([word for word in words if word.lower() not in _NOT_IN_AZURE_KEYS])
    if len(before) > 1 and after and before[-1].lower() == after[0].lower():
        before.pop()
    return "/".join([*before, "_git", *after])


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the word that precedes a repository."""
    for index, word in enumerate(words):
        if word.lower() in _AZURE_MARKS:
            return words[:index], words[index + 1 :]
    return words, []
