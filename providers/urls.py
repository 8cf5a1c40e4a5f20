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
_SCP_LIKE = re.compile(r"(?:[^@/:\s]+@)?(?P<host>\[[^\]]+\]|[^/:\s]+):(?!//)(?P<path>\S.*)")
_OLD_AZURE = ".visualstudio.com"


def repository_key(url: str) -> str:
    """Return `host/path` in lower case, the same for every way to write a repository's clone URL.

    Not part of it: scheme, user, password, port, `.git`, percent-encoding, and which of Azure DevOps' three
    hosts was named. The text of a URL that is none comes back as it is, in lower case.
    """
    host, path = _host_and_path(url)
    host = _ALIASES.get(host, host)
    if host in {"dev.azure.com", "ssh.dev.azure.com"} or host.endswith(_OLD_AZURE):
        host, path = "dev.azure.com", _azure_path(host, path)
    # Bitbucket Data Center writes https://host/scm/PROJECT/repo.git, but ssh://git@host/PROJECT/repo.git
    path = path.removeprefix("scm/")
    return f"{host}/{path}".lower()


def same_repository(key: str, *, full_name: str) -> bool:
    """Say whether a repository key ends with the full name that a payload tells, such as `owner/name`."""
    path = key.partition("/")[2]
    wanted = full_name.strip("/").lower()
    return bool(wanted) and (path == wanted or path.endswith("/" + wanted))


def _host_and_path(url: str) -> tuple[str, str]:
    scp_like = _SCP_LIKE.fullmatch(url.strip())
    if scp_like and "://" not in url:
        host, path = scp_like["host"].strip("[]"), scp_like["path"]
    else:
        try:
            parts = urlsplit(url.strip())
            host, path = parts.hostname or "", parts.path
        except ValueError:
            return "", url
    path = unquote(path).strip("/")
    return host.lower(), path.removesuffix(".git").rstrip("/")


def _azure_path(host: str, path: str) -> str:
    """Return organisation/project/repository.

    https://learn.microsoft.com/en-us/azure/devops/repos/git/use-ssh-keys-to-authenticate
    """
    parts = [
        part for part in path.split("/") if part.lower() not in {"v3", "_git", "_ssh", "defaultcollection"}
    ]
    if host.endswith(_OLD_AZURE) and host != "vs-ssh.visualstudio.com":
        parts.insert(0, host.removesuffix(_OLD_AZURE))
    if len(parts) == 2:  # noqa: PLR2004 - the project's own repository is written without repeating its name
        parts.append(parts[1])
    return "/".join(parts)
