"""The command `doctor`: the health of connections, and the repair of their webhooks."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.options import AsJson, Data, client_of, connection_id
from gateway.cli.output import coloured, empty_list, err, escape, print_list

app = typer.Typer()

WAIT_SECONDS = 15
# What is shown of a webhook that cannot be checked.
_UNCHECKED: Mapping[str, Any] = {"differences": [], "problem": None, "reason": None}
_BAD = {"warning", "failing"}


@app.command()
def doctor(
    connection: Annotated[
        str | None, typer.Argument(help="A connection, by id or name; by default all of them.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair webhooks that are missing, changed, off or doubled.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Check connections, and say what to do; the exit status is 1 if one needs attention.

    The webhooks of connections with an identity are compared with the provider's. With --fix, they are set
    anew, with their newest secrets. Only webhooks of this gateway are touched.

    Examples: pushgate doctor; pushgate doctor acme/digits --fix
    """
    client = client_of(data)
    found = [_checked(client, one, fix=fix) for one in _chosen(client, connection)]

    def row(checked: Any) -> list[str]:
        names = [escape(checked["name"]), escape(checked["provider"])]
        return [*names, coloured(checked["health"]["state"]), escape("\n".join(_sentences(checked)))]

    columns = ["connection", "provider", "health", "findings"]
    nothing = empty_list("connections")
    print_list({"items": found, "next": None}, columns, row, empty=nothing, as_json=as_json)
    if any(one["reason"] or one["health"]["state"] in _BAD for one in found):
        raise typer.Exit(1)


def register_webhook(client: Client, connection: str) -> Any:
    """Register or repair the webhook of a connection; return its state. Raises `ApiError`."""
    return client.send("POST", f"/connections/{part(connection)}/webhook", wait=WAIT_SECONDS)


def _chosen(client: Client, connection: str | None) -> list[Any]:
    if connection is not None:
        return [client.get(f"/connections/{part(connection_id(client, connection))}")]
    return list(client.items("/connections"))


def _checked(client: Client, connection: Any, *, fix: bool) -> Any:
    """Return the health of a connection, with the state of its webhook if it has an identity."""
    named = {key: connection[key] for key in ("id", "name", "provider")}
    if connection["identity"] is None or connection["source"] is not None:
        return {**named, **_UNCHECKED, "health": connection["health"]}
    with err.status(f"checking {escape(connection['name'])}"):
        webhook = _webhook(client, connection["id"], fix=fix)
    shown = client.get(f"/connections/{part(connection['id'])}")
    return {**named, **webhook, "health": shown["health"]}


def _webhook(client: Client, connection: str, *, fix: bool) -> Any:
    """Return the state of a connection's webhook; a failed check is the reason in it."""
    try:
        if fix:
            return register_webhook(client, connection)
        return client.send("POST", f"/connections/{part(connection)}/webhook/check", wait=WAIT_SECONDS)
    except Unreachable:
        raise
    except ApiError as error:
        return {**_UNCHECKED, "reason": str(error)}


def _sentences(checked: Any) -> list[str]:
    """Return what was found, and what to do."""
    findings = [f"{one['reason']} {one['repair']}" for one in checked["health"]["findings"]]
    reason = checked["reason"]
    if reason and not any(reason in one for one in findings):
        findings.insert(0, f"The webhook was not checked: {reason}.")
    return findings or ["in order"]
