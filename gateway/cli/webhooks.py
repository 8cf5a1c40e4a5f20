"""The command `doctor`: whether the providers have the webhooks of the connections, and their repair."""

from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.options import AsJson, Data, client_of, connection_id
from gateway.cli.output import empty_list, err, escape, print_list

app = typer.Typer()

WAIT_SECONDS = 15


@app.command()
def doctor(
    connection: Annotated[
        str | None, typer.Argument(help="A connection, by id or name; by default all with an identity.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair webhooks that are missing, changed, off or doubled.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Check the webhooks at the providers; the exit status is 1 if one is not in order.

    With --fix, each webhook is set anew, with its newest secret. Only webhooks of this gateway are touched.

    Examples: pushgate doctor; pushgate doctor acme/digits --fix
    """
    client = client_of(data)
    found = [_checked(client, one, fix=fix) for one in _chosen(client, connection)]

    def row(checked: Any) -> list[str]:
        return [escape(text) for text in (checked["name"], checked["provider"], _state(checked))]

    columns = ["connection", "provider", "webhook"]
    nothing = empty_list("connections with an identity")
    print_list({"items": found, "next": None}, columns, row, empty=nothing, as_json=as_json)
    if any(one["reason"] or one["differences"] or one["problem"] for one in found):
        raise typer.Exit(1)


def register_webhook(client: Client, connection: str) -> Any:
    """Register or repair the webhook of a connection; return its state. Raises `ApiError`."""
    return client.send("POST", f"/connections/{part(connection)}/webhook", wait=WAIT_SECONDS)


def _chosen(client: Client, connection: str | None) -> list[Any]:
    if connection is not None:
        return [client.get(f"/connections/{part(connection_id(client, connection))}")]
    return [one for one in client.items("/connections") if one["identity"] is not None]


def _checked(client: Client, connection: Any, *, fix: bool) -> Any:
    """Return the state of a connection's webhook; a failed check is the reason in it."""
    named = {key: connection[key] for key in ("id", "name", "provider")}
    try:
        with err.status(f"checking {escape(connection['name'])}"):
            if fix:
                return {**named, **register_webhook(client, connection["id"])}
            path = f"/connections/{part(connection['id'])}/webhook/check"
            return {**named, **client.send("POST", path, wait=WAIT_SECONDS)}
    except Unreachable:
        raise
    except ApiError as error:
        return {**named, "differences": [], "problem": None, "reason": str(error)}


def _state(checked: Any) -> str:
    if checked["reason"]:
        return f"not checked: {checked['reason']}"
    if checked["differences"]:
        return f"{', '.join(checked['differences'])}: repair it with --fix"
    if checked["problem"]:
        return f"in order, but its last delivery failed: {checked['problem']}"
    return "in order"
