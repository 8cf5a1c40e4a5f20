"""The pages about webhook secrets.

One page shows a secret: the answer to the form that made it, which a reload does not repeat.
"""

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from gateway.api.connection_views import ConnectionCreated, ConnectionView, RemoteView
from gateway.api.schemas import NewSecret
from gateway.api.source_views import SourceCreated, SourceView
from gateway.dashboard.api_forms import Filled, Form, FormField
from gateway.dashboard.rendering import Renderer
from providers import PROVIDERS

SECRET = Form(
    model=NewSecret,
    fields=(
        FormField(
            name="secret",
            label="A secret of your own",
            kind="secret",
            help="At least 16 characters. By default, a secret is generated.",
        ),
    ),
)
"""The form of a rotation."""


def newest_secret(shown: ConnectionView | SourceView) -> str:
    """Return what identifies the newest secret without showing it: a form rotates only this one."""
    return shown.secrets[0].created_at.isoformat() if shown.secrets else ""


def secrets_page(
    renderer: Renderer,
    shown: ConnectionView | SourceView,
    form: Filled,
    *,
    path: str,
    above: tuple[str, str],
    refusal: str | None = None,
) -> Response:
    """Return the page with the dates of the valid secrets, and the form of a rotation.

    `path` is that of the page of the connection or source, `above` the list that it is in. `refusal` is why
    there is nothing to rotate.
    """
    facts: dict[str, Any] = {
        "form": form,
        "path": f"{path}/secret",
        "section_of": above[1].strip("/"),
        "above": [above, (shown.name, path)],
        "name": shown.name,
        "secrets": shown.secrets,
        "newest": newest_secret(shown),
        "refusal": refusal,
    }
    return renderer.page("secrets.html", 422 if form.is_wrong else 200, **facts)


def secret_page(
    renderer: Renderer,
    made: ConnectionCreated | SourceCreated,
    *,
    above: Sequence[tuple[str, str]],
    next_path: str,
    is_new: bool,
    failure: str | None = None,
    is_registered: bool = False,
    remote: RemoteView | None = None,
    deploy_key: str | None = None,
) -> Response:
    """Return the page with a new secret, and with what to do with it at the provider.

    `failure` is why Pushgate could not register the webhook there; `is_registered`, whether it has. `above`
    are the pages above this one.
    """
    guide = PROVIDERS[made.provider].SETUP
    places: dict[str, str | None] = {"owner": guide.owner_place, "server": guide.server_place}
    facts: dict[str, Any] = {
        "above": above,
        "next_path": next_path,
        "is_new": is_new,
        "failure": failure,
        "is_registered": is_registered,
        "remote": remote,
        "deploy_key": deploy_key,
    }
    place = places.get(made.scope) if isinstance(made, SourceCreated) else None
    return renderer.page("secret.html", made=made, guide=guide, place=place, **facts)
