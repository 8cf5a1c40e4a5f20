"""Whether a provider can reach the gateway at its public URL, as far as the names alone show it."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from providers.clone_urls import repository_key

# Names that are not in the public DNS: https://www.rfc-editor.org/rfc/rfc6762#appendix-G,
# https://www.rfc-editor.org/rfc/rfc8375 and the services of Kubernetes.
_PRIVATE_ENDINGS = (
    ".local",
    ".localdomain",
    ".internal",
    ".intranet",
    ".private",
    ".corp",
    ".home",
    ".lan",
    ".home.arpa",
    ".svc",
)
_WHAT_TO_DO = (
    "set PUSHGATE_PUBLIC_URL to a URL of the gateway that it can reach, restart the gateway, and use the new"
    " webhook URL"
)


def unreachable_hook(base_url: str, repository_url: str) -> str | None:
    """Return why the host of a repository cannot send webhooks to `base_url`; None if it may be able to."""
    gateway = urlsplit(base_url).hostname or ""
    provider = repository_key(repository_url).partition("/")[0]
    if _is_loopback(gateway):
        if _is_loopback(provider):
            return None
        return f"{provider} cannot reach {gateway}, the host of the webhook URL: {_WHAT_TO_DO}"
    if _is_private(gateway) and not _is_private(provider):
        return (
            f"{gateway}, the host of the webhook URL, can be reached only from inside its private network:"
            f" if {provider} is outside of it, {_WHAT_TO_DO}"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_private(host: str) -> bool:
    """Return whether a host is known only to this machine or in a private network."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", *_PRIVATE_ENDINGS))
