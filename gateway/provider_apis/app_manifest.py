"""The manifest of which GitHub makes an App for a source, and the pages of GitHub about it. Pure.

https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest
"""

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlencode

from gateway.provider_apis import github
from gateway.provider_apis.app_webhook import CHECK_EVENTS, PERMISSIONS
from gateway.provider_apis.webhooks import Place
from providers.clone_urls import server_url

MAX_NAME = 34
_PUBLIC = "https://github.com"

Account = Literal["organization", "user"]


def manifest(place: Place, *, hook_url: str, base_url: str, page: str) -> Mapping[str, Any]:
    """Return the manifest of the App of a source, whose page at `base_url` is `page`."""
    return {
        "name": f"Pushgate {place.owner('github').name}"[:MAX_NAME].rstrip(),
        "url": base_url,
        "hook_attributes": {"url": hook_url, "active": True},
        "redirect_url": f"{page}/created",
        "setup_url": page,
        "public": False,
        # GitHub shows the results of executions as checks. The statuses are for runners.
        "default_permissions": {**PERMISSIONS, "statuses": "write"},
        "default_events": sorted(github.EVENTS | CHECK_EVENTS),
    }


def form_url(place: Place, account: Account, state: str) -> str:
    """Return where a browser posts the manifest."""
    owner = f"/organizations/{quote(place.owner('github').name)}" if account == "organization" else ""
    return f"{server_url(place.url)}{owner}/settings/apps/new?{urlencode({'state': state})}"


def install_url(place: Place, slug: str) -> str:
    """Return the page that installs an App."""
    server = server_url(place.url)
    apps = "apps" if server == _PUBLIC else "github-apps"
    return f"{server}/{apps}/{quote(slug)}/installations/new"
