"""The table in docs/connect.md of the rights that a token needs, as the providers' modules declare them."""

from collections.abc import Mapping

from gateway.provider_apis.apis import APIS, LOGS
from gateway.provider_apis.status_apis import status_api

# Of each provider its name, its page about tokens, and the right to fetch with git, without an API.
_FETCH: Mapping[str, tuple[str, str, str]] = {
    "github": (
        "GitHub",
        "https://docs.github.com/en/rest/authentication/permissions-required-for-fine-grained-personal-access-tokens",
        "Contents: read; of a classic token: repo",
    ),
    "gitlab": (
        "GitLab",
        "https://docs.gitlab.com/user/project/settings/project_access_tokens/",
        "scope read_repository",
    ),
    "bitbucket": (
        "Bitbucket Cloud",
        "https://support.atlassian.com/bitbucket-cloud/docs/access-tokens/",
        "Repositories: read; of an API token: read:repository:bitbucket",
    ),
    "bitbucket-server": (
        "Bitbucket Data Center",
        "https://confluence.atlassian.com/bitbucketserver/http-access-tokens-939515499.html",
        "Repository read",
    ),
    "azure-devops": (
        "Azure DevOps",
        "https://learn.microsoft.com/azure/devops/organizations/accounts/use-personal-access-tokens-to-authenticate",
        "scope Code (read)",
    ),
    "gitea": ("Gitea", "https://docs.gitea.com/development/oauth2-provider#scopes", "read:repository"),
    "forgejo": ("Forgejo", "https://forgejo.org/docs/latest/user/token-scope/", "read:repository"),
    "gogs": ("Gogs", "https://gogs.io/api-reference/introduction", "read access of the token's user"),
}
_APP = (
    "[GitHub App](providers/github.md#a-github-app)",
    "Contents: read",
    "Metadata: read",
    "Webhooks: read and write",
    "none: the App has a webhook of its own",
)
_HEAD = (
    "identity",
    "fetch",
    "list repositories",
    "webhook of a repository",
    "webhook of a [source](sources.md)",
    "set statuses",
)


def rights_table() -> str:
    """Return the table: one row for each kind of identity."""
    app = (*_APP, _status_right("github", "github-app"))
    rows = [_HEAD, ("---",) * len(_HEAD), app, *map(_row, _FETCH)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(provider: str) -> tuple[str, ...]:
    name, page, fetch = _FETCH[provider]
    api = APIS[provider]
    sources = [f"{right} ({scope})" for scope, right in api.RIGHTS.items() if scope != "repository"]
    return (
        f"[{name}]({page})",
        fetch,
        api.READ_RIGHT,
        api.RIGHTS["repository"] + (", also to request deliveries again" if provider in LOGS else ""),
        "; ".join(sources) or "there is none",
        _status_right(provider, "token"),
    )


def _status_right(provider: str, kind: str) -> str:
    api = status_api(provider, kind)
    return "there are none" if api is None else api.STATUS_RIGHT
