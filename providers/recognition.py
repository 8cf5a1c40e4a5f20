"""The provider that a clone URL probably belongs to."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from providers import PROVIDERS
from providers.clone_urls import host_and_path

# Words that operators commonly put into the names of their servers.
_WORDS = {
    "github": "github",
    "gitlab": "gitlab",
    "gitea": "gitea",
    "codeberg": "forgejo",
    "forgejo": "forgejo",
    "gogs": "gogs",
    "bitbucket": "bitbucket-server",
    "stash": "bitbucket-server",
    "visualstudio": "azure-devops",
    "azure": "azure-devops",
}


def likely_provider(url: str, known: Mapping[str, str]) -> str | None:
    """Return the provider of a clone URL, or None if nothing shows it.

    `known` has providers of hosts that are known already.
    """
    host, path = host_and_path(url)
    if host in known:
        return known[host]
    public = {module.PUBLIC_HOST: name for name, module in PROVIDERS.items() if module.PUBLIC_HOST}
    if host in public:
        return public[host]
    words = path.lower().split("/")
    if "_git" in words or host.endswith("dev.azure.com"):
        return "azure-devops"
    named = next((provider for word, provider in _WORDS.items() if word in host), None)
    # The clone URLs of Bitbucket Data Center: https://server/scm/PROJECT/name.git, and its ssh on port 7999.
    return named or ("bitbucket-server" if words[0] == "scm" or _port(url) == _PORT_OF_BITBUCKET else None)


_PORT_OF_BITBUCKET = 7999


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
