"""The command that replans stored deliveries under the rules of a file, and shows what would differ."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from gateway.cli.api_client import Client, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, File, moment
from gateway.cli.output import coloured_change, err, escape, field_line, out, print_json, ref_move, when
from gateway.errors import Invalid

app = typer.Typer()

_PAGE = 20
_LAST = 100
# The words of the summary; each follows a number.
_TOTALS = {"new": "new", "gone": "gone", "changed": "changed", "failed": "failed", "same": "unchanged"}


Since = Annotated[
    str | None, typer.Option(help="Simulate deliveries since 2026-11-23, 2026-11-23T09:00, 7d or 12h ago.")
]
Last = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"Simulate at most this many deliveries of each connection; {_LAST} without --since."
    ),
]


@client_command(app, "plan")
def plan_command(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Required: `plan` only simulates.")] = False,
    since: Since = None,
    last: Last = None,
    as_json: AsJson = False,
) -> None:
    """Show which execution requests of stored deliveries would differ under the rules of a file.

    Example: pushgate plan --file connections.yaml --dry-run
    """
    from gateway.cli.connections_file import pairs, read_file, rules_of  # noqa: PLC0415 - the others start without it

    if not dry_run:
        raise Invalid("plan only simulates and requires --dry-run; use `pushgate apply` to apply the file")
    since = moment("--since", since)
    max_deliveries = last or (None if since is not None else _LAST)
    wanted = read_file(file.read()).connections
    client = client_of()
    results = []
    for connection, present in pairs(wanted, list(client.items("/connections"))):
        found_id = present["id"] if present is not None else None
        result = _simulated(
            client, connection.name, found_id, rules_of(connection), since=since, limit=max_deliveries
        )
        results.append(result)
        if not as_json:
            _show(result)
    if as_json:
        print_json({"dry_run": True, "connections": results})
    else:
        out.print("Nothing was changed: this was a dry run.")


def _simulated(
    client: Client,
    name: str,
    found_id: str | None,
    rules: Mapping[str, Any],
    *,
    since: str | None,
    limit: int | None,
) -> dict[str, Any]:
    """Return the ref updates of a connection's deliveries under the rules, with the totals."""
    updates: list[Any] = []
    if found_id is not None:
        updates += _updates(client, found_id, name, rules, since=since, limit=limit)
    return {"name": name, "id": found_id, "totals": _totals(updates), "updates": updates}


def _updates(
    client: Client,
    connection: str,
    name: str,
    rules: Mapping[str, Any],
    *,
    since: str | None,
    limit: int | None,
) -> Iterator[Any]:
    """Yield the ref updates of a connection's deliveries, newest delivery first."""
    seen: set[str] = set()
    cursor = None
    with err.status(f"{escape(name)}: simulating") as status:
        while limit is None or len(seen) < limit:
            page_size = _PAGE if limit is None else min(_PAGE, limit - len(seen))
            path = f"/connections/{part(connection)}/plan"
            page = client.send("POST", path, rules, since=since, limit=page_size, cursor=cursor)
            yield from page["items"]
            seen.update(update["delivery"] for update in page["items"])
            status.update(f"{escape(name)}: {len(seen)} deliveries simulated")
            cursor = page["next"]
            if cursor is None:
                break


def _totals(updates: Sequence[Any]) -> dict[str, int]:
    counted = Counter(request["change"] for update in updates for request in update["requests"])
    unplayed = sum(update["unplayed"] is not None for update in updates)
    return {**{change: counted[change] for change in _TOTALS}, "unplayed": unplayed}


def _show(result: Any) -> None:
    """Print the differences of a connection: each ref update with a difference, then the totals."""
    name = f"[bold]{escape(result['name'])}[/bold]"
    if result["id"] is None:
        out.print(f"{name}: this connection does not exist yet, so it has no stored deliveries")
        return
    for update in result["updates"]:
        _show_differences(update)
    totals = result["totals"]
    counts = ", ".join(f"{totals[change]} {word}" for change, word in _TOTALS.items() if totals[change])
    out.print(f"{name}: {counts or 'no requests'}, of {len(result['updates'])} ref updates")
    unplayed = Counter(update["unplayed"] for update in result["updates"] if update["unplayed"] is not None)
    for reason, count in unplayed.items():
        out.print(f"  [yellow]{count} could not be simulated:[/yellow] {escape(reason)}", soft_wrap=True)


def _show_differences(update: Any) -> None:
    differing = [request for request in update["requests"] if request["change"] != "same"]
    if differing:
        received = f"{when(update['received_at'])}, delivery {update['delivery']}"
        out.print(f"{ref_move(update)}  {received}", soft_wrap=True)
    for request in differing:
        change = coloured_change(request["change"], request["trigger"])
        out.print(f"  {change}: {_reason(request)}", soft_wrap=True)
        for field, values in request["fields"].items():
            out.print(field_line(field, values, indent=6), soft_wrap=True)


def _reason(request: Any) -> str:
    target = f"{request['target']}: " if request["target"] is not None else ""
    return escape(f"{target}{request['reason']}")
