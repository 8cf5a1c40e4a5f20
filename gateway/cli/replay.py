"""The command `replay`: fetches and plans stored deliveries again, by their ids or a range of them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, OfConnection, moment
from gateway.cli.output import DELIVERY_COLUMNS, delivery_row, err, escape, out, print_json, print_list
from gateway.errors import Invalid

app = typer.Typer()

_NONE = "No deliveries match these filters."

Outcome = Literal["ran", "nothing-matched", "failed", "waiting", "superseded"]


@client_command(app)
def replay(
    delivery: Annotated[
        list[str] | None, typer.Argument(metavar="DELIVERY", help="The ids of deliveries.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="All deliveries since 2026-11-23, 2026-11-23T09:00, 2d or 3h ago."),
    ] = None,
    connection: OfConnection = None,
    outcome: Annotated[
        Outcome | None,
        typer.Option(
            help="Only those with this outcome, as `pushgate deliveries` shows it. What a runner reported of"
            " an execution does not count: see `rerun`."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be replayed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch and plan deliveries again, oldest first, such as after you have corrected a trigger.

    Requests that exist keep their ids, so nothing runs twice. With --since, deliveries are selected;
    duplicates and pings are left out. The exit status is 1 if a
    replay is refused.

    Examples: pushgate replay ID; pushgate replay --since 2h --connection acme/digits --outcome failed
    """
    if bool(delivery) == (since is not None) or (delivery and (connection or outcome)):
        raise Invalid("give either the ids of deliveries, or --since with --connection and --outcome")
    client = client_of()
    if delivery:
        found = [client.get(f"/deliveries/{part(one)}") for one in delivery]
        if dry_run:
            _show_selection(found, as_json=as_json)
            return
        refused = _replay_all(client, found)
        replayed = [one["id"] for one in found if one["id"] not in refused]
    else:
        filters = {"since": moment("--since", since), "connection": connection, "outcome": outcome}
        selected, refused = _replay_selected(client, filters, dry_run=dry_run)
        if dry_run:
            listed = client.items("/deliveries", **filters, verdict="accepted")
            found = [one for one in listed if one["id"] in set(selected)]
            _show_selection(found[::-1], as_json=as_json)
            return
        replayed = selected
    if as_json:
        reasons = [{"delivery": one, "reason": reason} for one, reason in refused.items()]
        print_json({"dry_run": False, "replayed": replayed, "refused": reasons})
    else:
        _show_result(len(replayed), len(replayed) + len(refused), refused)
    if refused:
        raise typer.Exit(1)


def _replay_selected(
    client: Client, filters: dict[str, str | None], *, dry_run: bool
) -> tuple[list[str], dict[str, str]]:
    """Replay all deliveries that filters select; return them, oldest first, and why others are refused.

    Raises `ApiError` with the count if the gateway does not answer any more.
    """
    replayed: list[str] = []
    refused: dict[str, str] = {}
    cursor: str | None = None
    with err.status("selecting" if dry_run else "replaying") as progress:
        while True:
            body = {**filters, "dry_run": dry_run, "cursor": cursor}
            try:
                answer = client.send("POST", "/deliveries/replay", body)
            except Unreachable as error:
                raise ApiError(f"{len(replayed)} deliveries were replayed, then: {error}") from error
            replayed += answer["replayed"]
            refused |= {one["delivery"]: one["reason"] for one in answer["refused"]}
            progress.update(f"{len(replayed)} deliveries")
            cursor = answer["next"]
            if cursor is None:
                return replayed[::-1], refused


def _replay_all(client: Client, found: Sequence[Any]) -> dict[str, str]:
    """Replay deliveries one by one; return the reasons of those that the gateway refuses.

    Raises `ApiError` with the count if the gateway does not answer any more.
    """
    refused: dict[str, str] = {}
    with err.status("replaying") as progress:
        for number, delivery in enumerate(found):
            progress.update(f"replaying {number + 1} of {len(found)}")
            try:
                client.send("POST", f"/deliveries/{part(delivery['id'])}/replay")
            except Unreachable as error:
                raise ApiError(f"{number} of {len(found)} deliveries were replayed, then: {error}") from error
            except ApiError as error:
                refused[delivery["id"]] = str(error)
    return refused


def _show_selection(found: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": True, "deliveries": found})
        return
    page = {"items": found, "next": None}
    print_list(page, DELIVERY_COLUMNS, delivery_row, empty=_NONE, as_json=False)
    out.print(f"{_count(len(found))} would be replayed: this was a dry run.")


def _show_result(replayed: int, total: int, refused: dict[str, str]) -> None:
    for delivery, reason in refused.items():
        err.print(f"[yellow]{delivery} was not replayed:[/yellow] {escape(reason)}", soft_wrap=True)
    of = f" of {total}" if refused else ""
    out.print(f"{_count(replayed)}{of} replayed." if total else _NONE)


def _count(number: int) -> str:
    return "1 delivery" if number == 1 else f"{number} deliveries"
