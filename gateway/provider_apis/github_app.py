"""The REST API of GitHub Apps, of GitHub and of GitHub Enterprise Server.

Some operations are for the App itself, which signs in with its private key, and some for an installation.
https://docs.github.com/en/rest/apps
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.provider_apis.delivery_log import LogPage
from gateway.provider_apis.github import Repository, listed, log_page, next_page, request_attempt
from gateway.provider_apis.operation import ApiRequest, Operation
from gateway.provider_apis.webhooks import ListedRepository, Place
from providers.clone_urls import host_and_path, server_url

_AS_APP = "the private key of the App"
_HOOK = "/app/hook"
_LEVELS = ("none", "read", "write", "admin")
# As the settings of an App show them.
_NAMES = {
    "checks": "Checks",
    "contents": "Contents",
    "merge_queues": "Merge queues",
    "metadata": "Metadata",
    "pull_requests": "Pull requests",
    "repository_hooks": "Webhooks",
}


class Owner(BaseModel):
    """The owner of an App. That of an enterprise has no login."""

    login: str = ""
    type: str = ""


class App(BaseModel):
    """A GitHub App. `html_url` is the address of its page."""

    id: int
    slug: str
    name: str
    html_url: str
    owner: Owner = Owner()
    permissions: Mapping[str, str] = {}
    events: Sequence[str] = ()

    @property
    def settings_page(self) -> str:
        """The address of the settings that only people can change."""
        if not self.owner.login:
            return self.html_url
        is_organization = self.owner.type == "Organization"
        owner = f"organizations/{self.owner.login}/" if is_organization else ""
        return f"{server_url(self.html_url)}/{owner}settings/apps/{self.slug}"


class NewApp(BaseModel):
    """A GitHub App that was just made of a manifest, with its secrets, which are shown only once."""

    id: int
    slug: str
    name: str
    html_url: str
    client_id: str
    client_secret: str = Field(repr=False)
    webhook_secret: str | None = Field(repr=False)
    pem: str = Field(repr=False)


class Installation(BaseModel):
    """The installation of an App at an owner of repositories. `html_url` is the address of its settings."""

    id: int
    app_slug: str
    html_url: str
    permissions: Mapping[str, str]
    suspended_at: datetime | None = None


class InstallationToken(BaseModel):
    """A token of an installation."""

    token: str = Field(repr=False)
    expires_at: datetime


class HookConfig(BaseModel):
    """Where an App's own webhook is sent. GitHub shows the secret as asterisks."""

    url: str | None = None
    secret: str | None = None


class _Repositories(BaseModel):
    repositories: list[Repository]


def path_of(place: Place) -> str:
    """Return the full name of a repository, or the name of an owner."""
    return host_and_path(place.url)[1] if place.scope == "repository" else place.owner("github").name


def lacking(needed: Mapping[str, str], granted: Mapping[str, str]) -> list[str]:
    """Return the permissions that are needed and not granted, as the settings of an App show them."""
    return [
        f"“{_NAMES[name]}: {'read and write' if level == 'write' else 'read-only'}”"
        for name, level in needed.items()
        if _LEVELS.index(granted.get(name, "none")) < _LEVELS.index(level)
    ]


def app() -> Operation[App]:
    """Return the App itself."""
    answer = yield ApiRequest(method="GET", path="/app", right=_AS_APP)
    return answer.read(App)


def installation(place: Place) -> Operation[Installation | None]:
    """Return the App's installation at an owner that includes a repository; None if there is none.

    Of an owner, an installation for only some of its repositories counts as well.
    """
    path = path_of(place)
    kinds = ("repos",) if place.scope == "repository" else ("orgs", "users")
    for kind in kinds:
        answer = yield ApiRequest(
            method="GET", path=f"/{kind}/{quote(path)}/installation", right=_AS_APP, may_be_missing=True
        )
        if answer.status != HTTPStatus.NOT_FOUND:
            return answer.read(Installation)
    return None


def access_token(
    installation_id: int, *, permissions: Mapping[str, str], repository: str | None
) -> Operation[InstallationToken]:
    """Obtain a token with these permissions only, for one repository by its name or for all."""
    answer = yield ApiRequest(
        method="POST",
        path=f"/app/installations/{installation_id}/access_tokens",
        body={"permissions": permissions} | ({} if repository is None else {"repositories": [repository]}),
        right=_AS_APP,
        is_sign_in=True,
    )
    return answer.read(InstallationToken)


def hook_config() -> Operation[HookConfig]:
    """Return where the App's own webhook is sent."""
    answer = yield ApiRequest(method="GET", path=f"{_HOOK}/config", right=_AS_APP)
    return answer.read(HookConfig)


def change_hook_config(*, url: str, secret: str) -> Operation[HookConfig]:
    """Set URL and secret of the App's own webhook. Its events can be changed only by hand."""
    config = {"url": url, "secret": secret, "content_type": "json", "insecure_ssl": "0"}
    answer = yield ApiRequest(method="PATCH", path=f"{_HOOK}/config", body=config, right=_AS_APP)
    return answer.read(HookConfig)


def delivery_log(start: str | None) -> Operation[LogPage]:
    """Return a page of the log of the App's own webhook, also with the deliveries that succeeded."""
    return (yield from log_page(_HOOK, start, right=_AS_APP))


def redeliver(attempt_id: str) -> Operation[None]:
    """Request another attempt to deliver an event. GitHub makes it after it has answered."""
    yield from request_attempt(_HOOK, attempt_id, right=_AS_APP)


def repositories() -> Operation[Sequence[ListedRepository]]:
    """Return all repositories of the installation that has obtained the token."""
    found: list[ListedRepository] = []
    path: str | None = "/installation/repositories"
    query: Mapping[str, str] = {"per_page": "100"}
    while path is not None:
        answer = yield ApiRequest(method="GET", path=path, query=query, right="Metadata: read")
        found += map(listed, answer.read(_Repositories).repositories)
        path, query = next_page(answer), {}
    return found


def convert_manifest(code: str) -> Operation[NewApp]:
    """Make the App of a manifest, within an hour, without signing in. A code works once."""
    path = f"/app-manifests/{quote(code, safe='')}/conversions"
    answer = yield ApiRequest(method="POST", path=path, right="a code that is not an hour old")
    return answer.read(NewApp)
