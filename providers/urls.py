"""Clone URLs in all their forms, and the one key by which two of them name the same repository."""

import re
from urllib.parse import unquote, urlsplit

# The same hosts on the https port, for networks that let nothing else out:
# https://docs.github.com/en/authentication/troubleshooting-ssh/using-ssh-over-the-https-port
# https://support.atlassian.com/bitbucket-cloud/docs/configure-ssh-and-two-step-verification/
# https://docs.gitlab.com/user/gitlab_com/#alternative-ssh-port
_ALIASES = {
    "ssh.github.com": "github.com",
    "altssh.bitbucket.org": "bitbucket.org",
    "altssh.gitlab.com": "gitlab.com",
}
_SCP_LIKE = re.compile(r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>\[[^\]]+\]|[^/:\s]+):(?!//)(?P<path>\S.*)")
_OLD_AZURE = ".visualstudio.com"
_OLD_AZURE_SSH = "vs-ssh.visualstudio.com"
_NOT_IN_AZURE_KEYS = frozenset({"v3", "_git", "_ssh", "defaultcollection"})


def repository_key(url: str) -> str:
    """Return `host/path` in lower case, the same for every way to write a repository's clone URL.

    Not part of it: scheme, user, password, port, `.git`, percent-encoding, and which of Azure DevOps' three
    hosts was named. The text of a URL that is none comes back as it is, in lower case.
    """
    user, host, path = _parts(url)
    host = _ALIASES.get(host, host)
    if host in {"dev.azure.com", "ssh.dev.azure.com"} or host.endswith(_OLD_AZURE):
        host, path = "dev.azure.com", _azure_path(user, host, path)
    # Bitbucket Data Center writes https://host/scm/PROJECT/repo.git, but ssh://git@host/PROJECT/repo.git
    path = path.removeprefix("scm/")
    return f"{host}/{path}".lower()


def same_repository(key: str, *, full_name: str) -> bool:
    """Say whether a repository key ends with the full name that a payload tells, such as `owner/name`."""
    path = key.partition("/")[2]
    wanted = full_name.strip("/").lower()
    return bool(wanted) and (path == wanted or path.endswith("/" + wanted))


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


def _azure_path(user: str, host: str, path: str) -> str:
    """Return organisation/project/repository.

    https://learn.microsoft.com/en-us/azure/devops/repos/git/use-ssh-keys-to-authenticate
    """
    words = path.split("/")
    parts = [word for word in words if word.lower() not in _NOT_IN_AZURE_KEYS]
    if host != _OLD_AZURE_SSH and host.endswith(_OLD_AZURE):
        parts.insert(0, host.removesuffix(_OLD_AZURE))
    elif host == _OLD_AZURE_SSH and "_ssh" in words:
        # https://blogs.msdn.microsoft.com/devops/2017/10/23/vsts-ssh-on-azure-global-network/
        parts.insert(0, user)
    if len(parts) == 2:  # noqa: PLR2004 - the project's own repository is written without repeating its name
        parts.append(parts[1])
    return "/".join(parts)
