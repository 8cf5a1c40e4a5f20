"""The commands about what came, and what became of it: deliveries and execution requests."""

from typing import Annotated, Any

import typer

from gateway.client import ApiError, part
from gateway.commands.options import AsJson, Data, Limit, OfConnection, client_of
from gateway.printing import (
    DELIVERY_COLUMNS,
    coloured,
    delivery_row,
    escape,
    execution_line,
    local_time,
    out,
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
            return
        answer = {"items": [one], "next": None}
    else:
        answer = client.get("/deliveries", connection=connection, verdict=verdict, limit=limit)

    print_list(answer, DELIVERY_COLUMNS, delivery_row, as_json=as_json)


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
    from gateway.explain import told  # noqa: PLC0415 - the others start without it

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
        for one in client.executions():
            if as_json:
                print_json(one, indent=None)
            else:
                out.print(execution_line(one))
        return
    answer = client.get("/executions", connection=connection, delivery=delivery, state=state, limit=limit)

    def row(one: Any) -> list[str]:
        message = one["message"]
        what = f"{message['execution']['name']} at {message['ref']['name']} {short(message['commit']['id'])}"
        state_ = coloured(one["state"]) + (f": {escape(one['reason'])}" if one["reason"] else "")
        return [one["id"], local_time(one["planned_at"]), escape(message["project"]), escape(what), state_]

    print_list(answer, ["id", "planned", "project", "what", "state"], row, as_json=as_json)


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
