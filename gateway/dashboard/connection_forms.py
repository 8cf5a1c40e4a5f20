"""The fields of the forms that connect a repository, and that change a connection."""

from collections.abc import Mapping, Sequence

from gateway.api.schemas import ConnectionChange, NewConnection
from gateway.dashboard.api_forms import Empty, Form, FormField
from gateway.fetch.urls import is_ssh
from gateway.text.sentences import PROVIDER_NAMES
from providers import PROVIDERS

_PROVIDER_LABELS: Mapping[str, str] = {
    **PROVIDER_NAMES,
    "generic": "Another git server, by a post-receive hook",
}
_FORMATS = {"tar.gz": "tar.gz", "tar.zst": "tar.zst"}
_SECRET_OPTIONS = frozenset({"token", "signing_token", "value"})

_URL = FormField(
    name="url",
    label="Clone URL",
    required=True,
    example="https://github.com/acme/digits.git",
    empty="keep",
    help="Over https or ssh, as the provider shows it.",
)
_USER = FormField(name="credentials.user", label="User")
_PASSWORD = FormField(name="credentials.password", label="Password or token", kind="secret")
_PRIVATE_KEY = FormField(name="credentials.private_key", label="Private key", kind="long-secret")
_HOST_KEYS = FormField(name="credentials.host_keys", label="Host keys", kind="long-text")


def provider_field(first: str) -> FormField:
    """Return the choice of a provider; `first` is the text of the empty choice."""
    return FormField(
        name="provider",
        label="Provider",
        kind="choice",
        choices={"": first, **_PROVIDER_LABELS},
        help="The kind of git server that sends the webhooks.",
        required=True,
    )


FIRST = Form(model=NewConnection, fields=(_URL, provider_field("recognize it from the URL")))
"""The first step of connecting."""


def connect_form(url: str, provider: str, identities: Sequence[str]) -> Form:
    """Return the second step, for a provider and for the scheme of a URL."""
    keys = (_PRIVATE_KEY, _HOST_KEYS) if is_ssh(url) else (_USER, _PASSWORD)
    options = sorted(PROVIDERS[provider].AUTH_OPTIONS) if provider in PROVIDERS else ()
    return Form(
        model=NewConnection,
        fields=(
            _URL,
            provider_field("choose a provider"),
            FormField(name="project", label="Project", required=True, example="digits", empty="keep"),
            FormField(name="name", label="Name"),
            identity_field(identities, none="none"),
            *keys,
            FormField(name="yaml_path", label="Path of the manifest"),
            FormField(name="follows", label="Branches that count", kind="lines"),
            FormField(name="networks", label="Networks that may send webhooks", kind="lines"),
            FormField(name="package_format", label="Format of packages", kind="choice", choices=_FORMATS),
            FormField(name="statuses", label="Show verdicts on commits at the provider", kind="check"),
            FormField(name="secret", label="Webhook secret", kind="secret"),
            *(
                FormField(
                    name=f"auth.{option}",
                    label=f"Authentication: {option.replace('_', ' ')}",
                    kind="secret" if option in _SECRET_OPTIONS else "text",
                    help="",
                )
                for option in options
            ),
            FormField(name="force", label="Connect it again to the same project", kind="check"),
        ),
        places={"credentials": keys[-1].name, "auth": f"auth.{options[0]}" if options else "secret"},
    )


CHANGE = Form(
    model=ConnectionChange,
    fields=(
        FormField(name="name", label="Name", empty="keep", required=True),
        _URL,
        FormField(name="project", label="Project", empty="keep", required=True),
        FormField(name="yaml_path", label="Path of the manifest", empty="keep", required=True),
        FormField(name="follows", label="Branches that count", kind="lines"),
        FormField(name="networks", label="Networks that may send webhooks", kind="lines"),
        FormField(name="package_format", label="Format of packages", kind="choice", choices=_FORMATS),
        FormField(name="statuses", label="Show verdicts on commits at the provider", kind="check"),
        FormField(name="status_webhook.url", label="URL of a webhook for verdicts"),
        FormField(name="status_webhook.secret", label="Its signing secret", kind="secret"),
        FormField(name="platform.url", label="URL of the platform", example="https://app.valohai.com"),
        FormField(name="platform.project", label="Project on the platform"),
        FormField(name="platform.token", label="Token of the platform", kind="secret"),
    ),
    places={"platform": "platform.url", "status_webhook": "status_webhook.url"},
)
"""The settings of a connection, but its triggers and its credentials."""


def access_form(url: str, identities: Sequence[str]) -> Form:
    """Return the form of what a connection signs in with."""
    keys = (_PRIVATE_KEY, _HOST_KEYS) if is_ssh(url) else (_USER, _PASSWORD)
    return Form(
        model=ConnectionChange,
        fields=(identity_field(identities, none="none", empty="null"), *keys),
        places={"credentials": keys[-1].name},
    )


def identity_field(names: Sequence[str], *, none: str, empty: Empty = "omit") -> FormField:
    """Return the choice of an identity; an `empty` one is left out of the request, or null there."""
    return FormField(
        name="identity",
        label="Identity",
        kind="choice",
        choices={"": none, **{name: name for name in names}},
        empty=empty,
        help="What Pushgate is at the provider: it fetches with it where there are no credentials below,"
        " registers the webhook, and shows verdicts on commits.",
    )
