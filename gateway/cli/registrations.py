"""The commands about the webhooks that Pushgate registers at providers."""

from typing import Annotated, Any

import typer

from gateway.cli.api_client import Client
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson
from gateway.cli.output import err, out, print_facts, print_json, when
from gateway.cli.webhooks import WAIT_SECONDS, registered, with_paths

app = typer.Typer(
    help="Show, register and remove the webhooks at providers; `pushgate doctor` checks them.",
    no_args_is_help=True,
)

Named = Annotated[
    str, typer.Argument(metavar="NAME", help="A connection or a source with an identity, by its id or name.")
]


@client_command(app)
def show(name: Named, as_json: AsJson = False) -> None:
    """Show what Pushgate knows of a webhook: where it is, when it was checked, and what differs.

    Example: pushgate webhook show acme/digits
    """
    client = client_of()
    _show(client.get(f"{_path(client, name)}/webhook"), as_json=as_json)


@client_command(app)
def remove(name: Named, as_json: AsJson = False) -> None:
    """Remove a webhook that Pushgate has registered; exit with 1 if that fails. The connection stays.

    Example: pushgate webhook remove acme/digits
    """
    client = client_of()
    path = _path(client, name)
    with err.status("removing the webhook"):
        webhook = client.send("DELETE", f"{path}/webhook", wait=WAIT_SECONDS)
    if as_json:
        print_json(webhook)
    elif webhook["webhook"] is None:
        out.print("Removed. Pushes are found by reconciliation, unless you enter the webhook by hand.")
    else:
        _show(webhook, as_json=False)
    if webhook["webhook"] is not None:
        raise typer.Exit(1)


@client_command(app)
def register(name: Named, as_json: AsJson = False) -> None:
    """Register a webhook at the provider, or repair it; exit with 1 if that fails.

    Example: pushgate webhook register acme/digits
    """
    client = client_of()
    path = _path(client, name)
    with err.status("registering the webhook"):
        webhook = registered(client, path)
    _show(webhook, as_json=as_json)
    if webhook["reason"] is not None:
        raise typer.Exit(1)


def _path(client: Client, name: str) -> str:
    [(path, _), *_] = with_paths(client, name)
    return path


def _show(webhook: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(webhook)
        return
    facts = {
        "webhook": webhook["webhook"] or "not registered",
        "at": webhook["url"] or "",
        "registered": when(webhook["registered_at"]) if webhook["registered_at"] else "",
        "checked": when(webhook["checked_at"]) if webhook["checked_at"] else "not yet",
        "tested": when(webhook["arrived_at"]) if webhook["arrived_at"] else "",
        "differs": ", ".join(webhook["differences"]),
        "failed": webhook["reason"] or "",
        "provider says": webhook["problem"] or "",
        "what to do": webhook["advice"] or "",
    }
    print_facts({name: value for name, value in facts.items() if value})
