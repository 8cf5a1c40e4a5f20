"""Sentences that the dashboard and the command line share."""

from collections.abc import Mapping

WAITS = "no broker has confirmed it yet; a gateway without PUSHGATE_AMQP_URL keeps it in its store"
"""Why an execution request is pending."""

PROVIDER_NAMES: Mapping[str, str] = {
    "github": "GitHub",
    "gitlab": "GitLab",
    "bitbucket": "Bitbucket Cloud",
    "bitbucket-server": "Bitbucket Data Center",
    "azure-devops": "Azure DevOps",
    "gitea": "Gitea",
    "forgejo": "Forgejo",
    "gogs": "Gogs",
    "generic": "a git server",
}
"""What people call the providers."""

_REPAIRS: Mapping[str, str] = {
    "not verified": "Enter this {what}'s secret in the webhook's settings at the provider. If you no"
    " longer have it, rotate the secret: on the {what}'s page of the dashboard, or by `pushgate {command}`.",
    "network": "If this is an address of the provider, add it to the {what}'s networks. If it is your"
    " proxy's, set PUSHGATE_TRUSTED_PROXIES.",
    "no such connection": "Copy the webhook URL from the connection's page into the webhook's settings at the"
    " provider. If the connection was deleted, delete its webhook there.",
    "body too large": "Raise PUSHGATE_BODY_LIMIT, and the limit of your proxy. Reconciliation recovers the"
    " push.",
    "unsupported content encoding": "Configure the proxy in front of Pushgate so that it does not compress"
    " the bodies of requests.",
}


def repair_of_refusal(cause: str, *, is_of_source: bool = False) -> str | None:
    """Return what to do about refused requests of a connection or a source; None if nothing is known."""
    repair = _REPAIRS.get(cause)
    return (
        None
        if repair is None
        else repair.format(
            what="source" if is_of_source else "connection",
            command="sources rotate-secret NAME" if is_of_source else "rotate-secret NAME",
        )
    )


def provider_name(provider: str | None) -> str:
    """Return what people call a provider; `provider` is None for a sender that is not known."""
    return "an unknown sender" if provider is None else PROVIDER_NAMES.get(provider, provider)


def begin_sentence(text: str) -> str:
    """Return a reason with a capital letter, unless its first word is a name, a URL, a file or the like."""
    first = text.partition(" ")[0].rstrip(",:;.")
    return f"{text[:1].upper()}{text[1:]}" if first.replace("-", "").isalpha() else text
