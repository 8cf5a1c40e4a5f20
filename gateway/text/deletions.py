"""What a deletion removes and what stays, in sentences: the command line and the dashboard show the same."""

from collections.abc import Sequence

LOSSES_OF_SOURCE = (
    "A worker removes its webhook at the provider, if Pushgate has registered it.",
    "Its connections stay, without a webhook: reconciliation finds their pushes, later.",
    "Its deliveries remain readable.",
)


def losses_of_connection(
    *, url: str, triggers: Sequence[str], source: str | None, is_registered: bool
) -> list[str]:
    """Return them for a connection; `source` is the name of the source that has connected it, if any.

    `is_registered` is whether Pushgate has registered a webhook at the provider.
    """
    webhook = (
        "Remove its webhook at the provider yourself: from now on, its deliveries are answered with 404."
    )
    if is_registered:
        webhook = "A worker removes its webhook at the provider."
    elif source is not None:
        webhook = f"The source {source} does not connect the repository again by itself; its webhook stays."
    named = f" ({', '.join(triggers)})" if triggers else ""
    return [
        f"Pushes to {url} run nothing any more{named}.",
        webhook,
        "Its settings, triggers, secrets and credentials are deleted.",
        "Pushes that are not planned yet are given up.",
        "Its deliveries and executions remain readable.",
    ]
