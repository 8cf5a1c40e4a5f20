"""Which URLs can be those of sources: pages of owners of repositories, or servers, that have webhooks."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from gateway.errors import Invalid
from gateway.fetch.urls import check_url
from gateway.provider_apis.apis import APIS
from gateway.store.sources import Scope
from providers import PROVIDERS
from providers.places import owner_of

_KINDS: Mapping[Scope, str] = {
    "owner": "an organisation, group, workspace or project",
    "server": "a whole server",
}


def scope_of(url: str) -> Scope:
    """Return the scope that a URL has by default: a URL without a path is that of a server."""
    return "owner" if urlsplit(url).path.strip("/") else "server"


def default_name(provider: str, url: str, scope: Scope) -> str:
    """Return the name of a source that was given none. It has no slash: it is a part of paths of the API."""
    if scope == "server":
        return urlsplit(url).hostname or ""
    return owner_of(url, provider).name.replace("/", "-")


def check_place(provider: str, url: str, scope: Scope, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
    """Raise `Invalid` if the provider has no webhook for such a place, or if the URL does not name one."""
    scopes = APIS[provider].SCOPES if provider in APIS else frozenset()
    offered = [kind for each, kind in _KINDS.items() if each in scopes]
    if not offered:
        raise Invalid(
            f"provider: {provider} has no webhook for many repositories: connect each of them by itself"
        )
    if not url.startswith(("https://", "http://")):
        raise Invalid("url: it must be the address of a web page, such as https://github.com/acme")
    # Any path below it: the URL of a server has none, and that of a repository must have one.
    check_url(f"{url.rstrip('/')}/any", allow_http=allow_http, hosts=hosts)
    is_public = urlsplit(url).hostname == PROVIDERS[provider].PUBLIC_HOST
    if scope not in scopes or (scope == "server" and is_public):
        where = f" at {PROVIDERS[provider].PUBLIC_HOST}" if scope in scopes else ""
        raise Invalid(f"url: {provider} has no webhook for {_KINDS[scope]}{where}: give that of {offered[0]}")
    if scope == "owner":
        try:
            owner_of(url, provider)
        except ValueError as error:
            raise Invalid(f"url: {error}") from None
