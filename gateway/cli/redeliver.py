"""The command `redeliver`: has the providers send deliveries again that failed."""

from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, connection_id, moment
from gateway.cli.output import empty_list, err, escape, print_list

app = typer.Typer()

_WAIT_SECONDS = 15
_WITH_LOG = {"github", "gitlab"}


@client_command(app)
def redeliver(
    connection: Annotated[
        str | None,
        typer.Argument(help="A connection, by id or name; by default all, and all sources."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Deliveries since 2026-11-23, 2026-11-23T09:00, 2d or 3h ago.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Request GitHub or GitLab to send failed deliveries again; the exit status is 1 if that fails.

    Without --since, the provider's log is searched from where the last search ended. GitHub keeps it for 3
    days, GitLab for 7.

    Examples: pushgate redeliver; pushgate redeliver acme/digits --since 3h
    """
    client = client_of()
    start = moment("--since", since)
    found = [_redelivered(client, path, one, start) for path, one in _chosen(client, connection)]

    def row(redelivered: Any) -> list[str]:
        shown = (redelivered["name"], redelivered["provider"], _state(redelivered))
        return [escape(text) for text in shown]

    columns = ["connection", "provider", "failed deliveries"]
    nothing = empty_list("connections with an identity at GitHub or GitLab")
    print_list({"items": found, "next": None}, columns, row, empty=nothing, as_json=as_json)
    if any(one["reason"] for one in found):
        raise typer.Exit(1)


def _chosen(client: Client, connection: str | None) -> list[tuple[str, Any]]:
    """Return the paths of connections and sources in the API, and what is shown of them."""
    if connection is not None:
        path = f"/connections/{part(connection_id(client, connection))}"
        return [(path, client.get(path))]
    return [
        (f"/{kind}/{part(one['id'])}", one)
        for kind in ("sources", "connections")
        for one in client.items(f"/{kind}")
        if one["provider"] in _WITH_LOG and one["identity"] is not None and one.get("source") is None
    ]


def _redelivered(client: Client, path: str, of: Any, since: str | None) -> Any:
    """Return what was requested again; a failed search is the reason in it."""
    named = {key: of[key] for key in ("id", "name", "provider")}
    try:
        with err.status(f"searching the log of {escape(of['name'])}"):
            found = client.send("POST", f"{path}/webhook/redeliver", since=since, wait=_WAIT_SECONDS)
    except Unreachable:
        raise
    except ApiError as error:
        found = {"requested": 0, "given_up": 0, "reason": str(error)}
    return {**named, **found}


def _state(redelivered: Any) -> str:
    requested = f"{redelivered['requested']} requested again" if redelivered["requested"] else "none"
    return f"{requested}; {redelivered['reason']}" if redelivered["reason"] else requested
