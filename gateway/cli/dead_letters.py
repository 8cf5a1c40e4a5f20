"""The command about messages that nobody could deliver: list them, put them back, drop them."""

from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson
from gateway.cli.output import coloured, err, escape, out, print_json, print_list, when

app = typer.Typer()

_COLUMNS = ["id", "since", "state", "what", "reason"]


@client_command(app, "dead-letters")
def dead_letters(
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of some of them.")] = None,
    put_back: Annotated[
        bool, typer.Option("--put-back", help="Publish these execution requests again.")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Give these up, for good.")] = False,
    is_all: Annotated[bool, typer.Option("--all", help="All that are listed, instead of ids.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the messages that nobody could deliver, the oldest first; put them back, or drop them.

    The exit status is 1 if that fails for one of them.

    Examples: pushgate dead-letters; pushgate dead-letters --put-back --all; pushgate dead-letters --drop ID
    """
    client = client_of()
    if put_back and drop:
        raise ApiError("give --put-back or --drop, not both")
    if not (put_back or drop):
        if ids or is_all:
            raise ApiError("say what to do with them: --put-back or --drop")
        _print(client.get("/dead-letters"), as_json=as_json)
        return
    if bool(ids) == is_all:
        raise ApiError("give the ids of dead letters, or --all")
    chosen = ids or [letter["id"] for letter in client.get("/dead-letters")["items"]]
    if not chosen:
        out.print("No dead letters.")
        return
    action = "put-back" if put_back else "drop"
    done = client.send("POST", f"/dead-letters/{action}", {"ids": chosen})
    if as_json:
        print_json(done)
    else:
        for letter in done["done"]:
            out.print(f"{'put back' if put_back else 'dropped'} {escape(letter)}")
        for failure in done["failed"]:
            err.print(f"{escape(failure['id'])}: {escape(failure['reason'])}")
    if done["failed"]:
        raise typer.Exit(1)


def _print(page: Any, *, as_json: bool) -> None:
    if page["problem"] is not None and not as_json:
        err.print(f"Those at the broker are not listed: {escape(page['problem'])}")
    print_list(page, _COLUMNS, _row, empty="No dead letters.", as_json=as_json)


def _row(letter: Any) -> list[str]:
    execution = letter["execution"]
    return [
        escape(letter["id"]),
        when(letter["since"]) if letter["since"] is not None else "-",
        coloured(execution["state"]) if execution is not None else "-",
        escape(f"{execution['target']} of {execution['project']}") if execution is not None else "-",
        escape(letter["reason"]),
    ]
