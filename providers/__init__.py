"""The git providers: headers and bytes in, facts out. No I/O, no clock, no import of the gateway."""

from collections.abc import Mapping
from types import MappingProxyType

from providers import azure_devops, bitbucket, bitbucket_server, generic, gitea, github, gitlab, gogs
from providers.model import Provider

PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        "github": github,
        "gitlab": gitlab,
        "bitbucket": bitbucket,
        "bitbucket-server": bitbucket_server,
        "azure-devops": azure_devops,
        "gitea": gitea,
        "forgejo": gitea,
        "gogs": gogs,
        "generic": generic,
    }
)
"""The providers by the name that connections use. A new provider is a module and a line here."""
