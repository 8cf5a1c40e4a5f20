"""The command `replay`: fetches and plans stored deliveries again, by their ids or a range of them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, OfConnection, moment
from gateway.cli.output import DELIVERY_COLUMNS, delivery_row, err, escape, out, print_json, print_list
from gateway.errors import Invalid

app = typer.Typer()

_NONE = "No deliveries match these filters."

Outcome = Literal["ran", "nothing-matched", "failed", "waiting"]


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
            help="Only those of which a ref update failed or has vanished; ran something; matched no trigger;"
            " or waits. What a runner reported of an execution does not count: see `rerun`."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be replayed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch and plan deliveries again, oldest first, such as after you have corrected a trigger.

    Requests that exist keep their ids, so nothing runs twice. With --since, deliveries are selected; those
    that cannot be replayed (duplicates, pings, deleted connections) are left out. The exit status is 1 if a
    replay is refused.

    Examples: pushgate replay ID; pushgate replay --since 2h --connection acme/digits --outcome failed
    """
    if bool(delivery) == (since is not None) or (delivery and (connection or outcome)):
        raise Invalid("give either the ids of deliveries, or --since with --connection and --outcome")
    client = client_of()
    if delivery:
        found = [client.get(f"/deliveries/{part(one)}") for one in delivery]
    else:
        start = moment(since or "", datetime.now(UTC))
        with err.status("listing deliveries"):
            found = list(_selected(client, start, connection, outcome))[::-1]
    if dry_run:
        _show_selection(found, as_json=as_json)
        return
    refused = _replay_all(client, found)
    replayed = [one for one in found if one["id"] not in refused]
    if as_json:
        reasons = [{"delivery": one, "reason": reason} for one, reason in refused.items()]
        print_json({"dry_run": False, "replayed": [one["id"] for one in replayed], "refused": reasons})
    else:
        _show_result(len(replayed), len(found), refused)
    if refused:
        raise typer.Exit(1)


def _selected(client: Client, start: datetime, connection: str | None, outcome: str | None) -> Iterator[Any]:
    """Yield the deliveries since then that can be replayed and have this outcome, newest first."""
    for delivery in client.items("/deliveries", connection=connection, verdict="accepted"):
        if datetime.fromisoformat(delivery["received_at"]) < start:
            return
        is_replayable = any(update["state"] != "duplicate" for update in delivery["updates"])
        if is_replayable and not delivery["is_orphan"] and outcome in {None, _outcome(delivery)}:
            yield delivery


def _outcome(delivery: Any) -> Outcome:
    """Return what became of a delivery: the worst outcome of its ref updates."""
    states = {update["state"] for update in delivery["updates"]}
    verdicts = [verdict for update in delivery["updates"] for verdict in update["verdicts"]]
    if states & {"failed", "gone"} or any(verdict["failure"] for verdict in verdicts):
        return "failed"
    if "pending" in states or delivery["is_waiting"]:
        return "waiting"
    return "ran" if any(verdict["matched"] for verdict in verdicts) else "nothing-matched"


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
