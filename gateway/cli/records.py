"""The commands about what came, and what became of it: deliveries and execution requests."""

import json
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, part
from gateway.cli.options import AsJson, Data, Limit, OfConnection, client_of
from gateway.cli.output import (
    DELIVERY_COLUMNS,
    coloured,
    delivery_row,
    err,
    escape,
    execution_line,
    local_time,
    nothing,
    out,
    print_facts,
    print_json,
    print_list,
    short,
)

app = typer.Typer()


@app.command()
def deliveries(
    delivery: Annotated[str | None, typer.Argument(help="Show this one, whole.")] = None,
    connection: OfConnection = None,
    verdict: Annotated[str | None, typer.Option(help="accepted, duplicate, ignored or unreadable.")] = None,
    limit: Limit = 20,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest first, or show one."""
    client = client_of(data)
    if delivery is not None:
        one = client.get(f"/deliveries/{part(delivery)}")
        if as_json:
            print_json(one)
        else:
            _show(client, one)
        return
    answer = client.get("/deliveries", connection=connection, verdict=verdict, limit=limit)
    empty = nothing("deliveries", connection, verdict)
    print_list(answer, DELIVERY_COLUMNS, delivery_row, empty=empty, as_json=as_json)


def _show(client: Client, one: Any) -> None:
    """Print a delivery with all that is kept of it: what came, what it moved, and what came of that."""
    from gateway.cli.explain import told  # noqa: PLC0415 - the lists start without it

    sender = {name: str(value) for name, value in (one["repository"] or {}).items() if value is not None}
    facts = {
        "connection": f"{one['name']} ({one['connection']}{', deleted' if one['is_orphan'] else ''})",
        "provider": one["provider"],
        "event": one["event"],
        "id at the provider": one["provider_delivery_id"],
        "pushed by": one["pusher"],
        **{f"repository {name}": value for name, value in sender.items()},
        "detail": json.dumps(one["detail"], ensure_ascii=False) if one["detail"] else None,
    }
    for move in one["updates"]:
        commits = f", {len(move['commits'])} commits listed" if move["commits"] else ""
        forced = ", forced" if move["forced"] else ""
        ids = f"{move['before'] or '∅'} → {move['after'] or '∅'}"
        facts[move["ref"]] = f"{move['action']} {ids}{forced}{commits}"
    print_facts({name: value for name, value in facts.items() if value})
    for explained in client.get("/explain", what=one["id"])["items"]:
        out.print(told(explained))


@app.command()
def explain(
    what: Annotated[
        str,
        typer.Argument(
            help="A delivery, an execution, a commit or its beginning, or a URL: its page or a repository."
        ),
    ],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Say why a push did, or did not, run: the whole way, from the webhook to the broker."""
    from gateway.cli.explain import told  # noqa: PLC0415 - the others start without it

    answer = client_of(data).get("/explain", what=what)
    if as_json:
        print_json(answer)
    else:
        out.print(*map(told, answer["items"]), sep="\n")


@app.command()
def executions(
    execution: Annotated[str | None, typer.Argument(help="Show this one, whole.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new ones as they come.")] = False,
    connection: OfConnection = None,
    delivery: Annotated[str | None, typer.Option("--delivery", help="Only those of this delivery.")] = None,
    state: Annotated[
        str | None, typer.Option(help="pending, published, superseded, undeliverable or dropped.")
    ] = None,
    limit: Limit = 20,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List execution requests, the newest first; show one; or follow them."""
    client = client_of(data)
    if execution is not None:
        print_json(client.get(f"/executions/{part(execution)}"))
        return
    if follow:
        if {connection, delivery, state} != {None}:
            raise ApiError("--follow prints all new ones: leave out --connection, --delivery and --state")
        for one in client.executions(interrupted=_tell):
            if as_json:
                print_json(one, indent=None)
            else:
                out.print(execution_line(one))
        return
    answer = client.get("/executions", connection=connection, delivery=delivery, state=state, limit=limit)
    empty = nothing("executions", connection, delivery, state)

    def row(one: Any) -> list[str]:
        message = one["message"]
        what = f"{message['execution']['name']} at {message['ref']['name']} {short(message['commit']['id'])}"
        state_ = coloured(one["state"]) + (f": {escape(one['reason'])}" if one["reason"] else "")
        return [one["id"], local_time(one["planned_at"]), escape(message["project"]), escape(what), state_]

    columns = ["id", "planned", "project", "what", "state"]
    print_list(answer, columns, row, empty=empty, as_json=as_json)


@app.command()
def drop(
    execution: Annotated[str, typer.Argument(help="The id of one that is pending.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Drop an execution that the broker does not take: it is not published, and what waits behind it is."""
    dropped = client_of(data).send("POST", f"/executions/{part(execution)}/drop", {})
    if as_json:
        print_json(dropped)
    else:
        out.print(f"{coloured('dropped')} {dropped['id']}; to publish it after all, replay its delivery")


def _tell(reason: str) -> None:
    err.print(f"[yellow]pushgate:[/yellow] {escape(reason)} Connecting again …", soft_wrap=True)
