"""The command that plays stored deliveries against the rules of a file, and tells what would differ."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from gateway.cli.api_client import Client, part
from gateway.cli.options import AsJson, Data, client_of
from gateway.cli.output import coloured_change, err, escape, field_line, local_time, out, print_json, ref_move
from gateway.errors import Invalid

app = typer.Typer()

_PAGE = 20
_LAST = 100
_AGO = re.compile(r"(\d{1,4})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
# As they are summed up; the words follow a number.
_TOTALS = {"new": "new", "gone": "gone", "changed": "changed", "failed": "impossible", "same": "the same"}


@app.command("plan")
def plan_command(
    file: Annotated[
        typer.FileBinaryRead, typer.Option("--file", "-f", help="The file; - for standard input.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Needed: to plan for good is what pushes are for.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Play deliveries since then: 2026-11-23, 2026-11-23T09:00, 7d, 12h.")
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(min=1, help=f"Play so many deliveries of each connection; {_LAST} without --since."),
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Play stored deliveries against the rules of a file: which requests would differ. Changes nothing."""
    from gateway.cli.connections_file import pairs, read_file, rules_of  # noqa: PLC0415 - the others start without it

    if not dry_run:
        raise Invalid(
            "pushgate plan only plays, so say --dry-run; `pushgate apply` brings the file into force"
        )
    since = _moment(since, datetime.now(UTC)).isoformat() if since is not None else None
    most = last or (None if since is not None else _LAST)
    wanted = read_file(file.read())
    client = client_of(data)
    results = []
    for one, present in pairs(wanted, list(client.items("/connections"))):
        which = present["id"] if present is not None else None
        updates = []
        if which is not None:
            updates = list(_played(client, which, one.name, rules_of(one), since=since, most=most))
        results.append({"name": one.name, "id": which, "totals": _totals(updates), "updates": updates})
        if not as_json:
            _show(results[-1])
    if as_json:
        print_json({"dry_run": True, "connections": results})
    else:
        out.print("Nothing was changed: this was a dry run.")


def _played(
    client: Client, which: str, name: str, rules: Mapping[str, Any], *, since: str | None, most: int | None
) -> Iterator[Any]:
    """Yield the ref updates of a connection's deliveries, the newest delivery first, page by page."""
    seen: set[str] = set()
    cursor = None
    with err.status(f"{escape(name)}: playing") as status:
        while most is None or len(seen) < most:
            limit = _PAGE if most is None else min(_PAGE, most - len(seen))
            path = f"/connections/{part(which)}/plan"
            page = client.send("POST", path, rules, since=since, limit=limit, cursor=cursor)
            yield from page["items"]
            seen.update(update["delivery"] for update in page["items"])
            status.update(f"{escape(name)}: {len(seen)} deliveries played")
            cursor = page["next"]
            if cursor is None:
                break


def _totals(updates: Sequence[Any]) -> dict[str, int]:
    counted = Counter(one["change"] for update in updates for one in update["requests"])
    unplayed = sum(update["unplayed"] is not None for update in updates)
    return {**{change: counted[change] for change in _TOTALS}, "unplayed": unplayed}


def _show(result: Any) -> None:
    """Print what would differ for a connection: each ref update where something would, and the sums."""
    name = f"[bold]{escape(result['name'])}[/bold]"
    if result["id"] is None:
        out.print(f"{name}: there is no such connection yet, so nothing is stored that could be played")
        return
    unplayed: Counter[str] = Counter()
    for update in result["updates"]:
        if update["unplayed"] is not None:
            unplayed[update["unplayed"]] += 1
        differing = [one for one in update["requests"] if one["change"] != "same"]
        if differing:
            when = f"{local_time(update['received_at'])}, delivery {update['delivery']}"
            out.print(f"{ref_move(update)}  {when}", soft_wrap=True)
        for one in differing:
            out.print(f"  {coloured_change(one['change'], one['trigger'])}: {_told(one)}", soft_wrap=True)
            for field, values in one["fields"].items():
                out.print(field_line(field, values, indent=6), soft_wrap=True)
    totals = result["totals"]
    told = ", ".join(f"{totals[change]} {word}" for change, word in _TOTALS.items() if totals[change])
    out.print(f"{name}: {told or 'no requests'}, of {len(result['updates'])} ref updates")
    for reason, count in unplayed.items():
        out.print(f"  [yellow]{count} could not be played:[/yellow] {escape(reason)}", soft_wrap=True)


def _told(change: Any) -> str:
    target = f"{change['target']}: " if change["target"] is not None else ""
    return escape(f"{target}{change['reason']}")


def _moment(text: str, now: datetime) -> datetime:
    """Return the instant that is meant: a time ago, or a date, local where it names no zone."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise Invalid(
            f"--since {text} is neither a date such as 2026-11-23 nor so long ago: 7d, 12h"
        ) from None
