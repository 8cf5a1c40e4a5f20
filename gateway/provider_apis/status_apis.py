"""The API for statuses of each provider that has one."""

from collections.abc import Mapping

from gateway.provider_apis import (
    azure_devops_statuses,
    bitbucket_server_statuses,
    bitbucket_statuses,
    gitea_statuses,
    github_checks,
    github_statuses,
    gitlab_statuses,
)
from gateway.provider_apis.statuses import StatusApi

_APIS: Mapping[str, StatusApi] = {
    "azure-devops": azure_devops_statuses,
    "bitbucket": bitbucket_statuses,
    "bitbucket-server": bitbucket_server_statuses,
    "forgejo": gitea_statuses,
    "gitea": gitea_statuses,
    "github": github_statuses,
    "github-app": github_checks,
    "gitlab": gitlab_statuses,
}


def status_api(provider: str, identity_kind: str) -> StatusApi | None:
    """Return the API that sets statuses, as an identity of a kind; None if there is none."""
    return _APIS.get(identity_kind) or _APIS.get(provider)
