"""The commands about execution requests: list, show, follow, drop, cancel, republish, re-run."""

from typing import Annotated, Any, get_args

import typer

from gateway.cli.api_client import ApiError, Client, part
from gateway.cli.facts import execution_facts
from gateway.cli.following import report
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import (
    AsJson,
    Limit,
    OfAuthor,
    OfBranch,
    OfConnection,
    Search,
    Since,
    Until,
    push_filters,
)
from gateway.cli.output import (
    coloured,
    empty_list,
    escape,
    execution_line,
    out,
    print_facts,
    print_json,
    print_list,
    run_summary,
    short,
    state_line,
    when,
)
from gateway.messages.execution_states import ExecutionState

app = typer.Typer()

_COLUMNS = ["id", "planned", "state", "project", "what", "result"]


@client_command(app)
def executions(
    execution: Annotated[str | None, typer.Argument(help="Show this execution request in full.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new requests, and without --json, reports.")
    ] = False,
    connection: OfConnection = None,
    delivery: Annotated[str | None, typer.Option("--delivery", help="Only those of this delivery.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help=f"Only this state: {', '.join(get_args(ExecutionState))}."),
    ] = None,
    branch: OfBranch = None,
    author: OfAuthor = None,
    since: Since = None,
    until: Until = None,
    search: Search = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List execution requests, newest first; show one; or follow new ones.

    Examples: pushgate executions --state failed; pushgate executions --branch main --since 2d;
    pushgate executions --follow
    """
    client = client_of()
    if execution is not None:
        shown = client.get(f"/executions/{part(execution)}")
        print_json(shown) if as_json else print_facts(execution_facts(shown))
        return
    shared = push_filters(
        connection=connection, branch=branch, author=author, since=since, until=until, search=search
    )
    filters = {**shared, "delivery": delivery, "state": state}
    if follow:
        if {*filters.values()} != {None}:
            raise ApiError("--follow prints all new requests: omit the filters, such as --connection")
        _follow(client, as_json=as_json)
        return
    answer = client.get("/executions", **filters, limit=limit)
    empty = empty_list("executions", *filters.values())
    print_list(answer, _COLUMNS, _row, empty=empty, as_json=as_json)


def _follow(client: Client, *, as_json: bool) -> None:
    """Print new requests and what runners report, until interrupted; as JSON, only new requests."""
    for event, execution in client.executions(report=report):
        if event == "state" and not as_json:
            out.print(state_line(execution))
        elif event == "execution":
            print_json(execution, indent=None) if as_json else out.print(execution_line(execution))


def _row(execution: Any) -> list[str]:
    message = execution["message"]
    what = f"{message['execution']['name']} at {message['ref']['name']} {short(message['commit']['id'])}"
    return [
        execution["id"],
        when(execution["planned_at"]),
        coloured(execution["state"]),
        escape(message["project"]),
        escape(what),
        f"{escape(execution['reason'] or '')}{run_summary(execution['run'])}".removeprefix(": "),
    ]


@client_command(app)
def drop(
    execution: Annotated[str, typer.Argument(help="The id of a pending execution request.")],
    as_json: AsJson = False,
) -> None:
    """Drop a pending execution request that the broker does not accept; requests behind it are published.

    Example: pushgate drop EXECUTION
    """
    dropped = client_of().send("POST", f"/executions/{part(execution)}/drop", {})
    if as_json:
        print_json(dropped)
    else:
        out.print(f"{coloured('dropped')} {dropped['id']}; to publish it after all, replay its delivery")


@client_command(app)
def cancel(
    execution: Annotated[str, typer.Argument(help="The id of an execution that has not ended.")],
    as_json: AsJson = False,
) -> None:
    """Cancel an execution: withdraw its request, or if it was published, tell its runner to stop.

    Example: pushgate cancel EXECUTION
    """
    cancelled = client_of().send("POST", f"/executions/{part(execution)}/cancel", {})
    if as_json:
        print_json(cancelled)
    elif cancelled["state"] == "cancelled":
        out.print(f"{coloured('cancelled')} {cancelled['id']}")
    else:
        out.print(f"{cancelled['id']} is {coloured(cancelled['state'])}: its runner is told to stop it")


@client_command(app)
def rerun(
    execution: Annotated[
        str, typer.Argument(help="The id of an execution that has ended, or waits for a runner.")
    ],
    as_json: AsJson = False,
) -> None:
    """Run an execution again, as a new one: same commit, package and values.

    Example: pushgate rerun EXECUTION
    """
    again = client_of().send("POST", f"/executions/{part(execution)}/rerun", {})
    if as_json:
        print_json(again)
    else:
        out.print(f"{again['id']} runs {again['rerun_of']} again")


@client_command(app)
def republish(
    execution: Annotated[
        str, typer.Argument(help="The id of a published or undeliverable execution request.")
    ],
    as_json: AsJson = False,
) -> None:
    """Publish an execution request again: same id, new package URL, marked as a redrive.

    Example: pushgate republish ID
    """
    again = client_of().send("POST", f"/executions/{part(execution)}/republish", {})
    if as_json:
        print_json(again)
    else:
        out.print(f"{again['id']} will be published again, with ce-redrive {again['redrives']}")
