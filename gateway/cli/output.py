"""Output of the command line: tables, lines and colours for people, JSON for programs."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from rich import markup
from rich.console import Console

from gateway.cli.tables import rendered
from gateway.text.escape import printable
from gateway.text.relative import relative


class _Console(Console):
    """A console whose closed pipe is an error like that of any other file; the base class would exit."""

    def on_broken_pipe(self) -> None:
        """Write nothing more. Raises `BrokenPipeError`."""
        self.quiet = True
        raise BrokenPipeError


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)
if not out.is_terminal:
    # In a pipe each row and each sentence stays on one line, so that it can be searched.
    out.width = 100_000

exact_times: ContextVar[bool] = ContextVar("exact_times", default=False)
"""Whether `--utc` was given."""

# Characters that a terminal may obey and JSON allows unescaped: controls, and marks that reverse text.
_TERMINAL_CONTROL = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Of the first line of a summary, in a list.
_MAX_SUMMARY = 200

_SHOWN_OF_TRIGGERS = ("name", "run", "on")
DELIVERY_COLUMNS = ["id", "received", "event", "outcome", "result"]
REFUSAL_COLUMNS = ["id", "last received", "connection", "from", "event", "result"]
_CHANGES = {
    "create": ("+", "green"),
    "change": ("~", "yellow"),
    "delete": ("-", "red"),
    "keep": ("=", "dim"),
    "new": ("+", "green"),
    "changed": ("~", "yellow"),
    "gone": ("-", "red"),
    "failed": ("!", "red"),
}
_COLOURS = {
    "accepted": "green",
    "ran": "green",
    "nothing-matched": "cyan",
    "planned": "green",
    "published": "green",
    "succeeded": "green",
    "running": "yellow",
    "cancelled": "cyan",
    "rejected": "red",
    "lost": "red",
    "superseded": "cyan",
    "duplicate": "cyan",
    "ignored": "cyan",
    "dropped": "cyan",
    "pending": "yellow",
    "waiting": "yellow",
    "undeliverable": "red",
    "refused": "red",
    "unreadable": "red",
    "failed": "red",
    "gone": "red",
    "connected": "green",
    "due": "yellow",
    "removed": "cyan",
    "ok": "green",
    "warning": "yellow",
    "failing": "red",
}


def escape(text: str) -> str:
    """Escape foreign text for the terminal: neither rich markup nor a control sequence remains."""
    return markup.escape("\n".join(map(printable, text.split("\n"))))


def empty_list(what: str, *filters: str | None) -> str:
    """Return the text for an empty list."""
    if any(value is not None for value in filters):
        return f"No {what} match these filters."
    return f"No {what} yet."


def print_list(
    answer: Any, columns: list[str], row: Callable[[Any], list[str]], *, empty: str, as_json: bool
) -> None:
    """Print a list as a table, or as JSON; `empty` is printed for an empty list."""
    if as_json:
        print_json(answer)
        return
    if not answer["items"]:
        out.print(empty)
        return
    rows = [row(item) for item in answer["items"]]
    for line in rendered(columns, rows, width=out.width if out.is_terminal else None, console=out):
        out.print(line, soft_wrap=True)


def change_line(change: Any) -> str:
    """Return the change that `apply` makes to a connection or a source, field by field."""
    kind = "source " if change["kind"] == "source" else ""
    lines = [coloured_change(change["action"], kind + change["name"])]
    lines += [field_line(field, values, indent=4) for field, values in change["fields"].items()]
    return "\n".join(lines)


def coloured_change(change: str, name: str) -> str:
    """Return the name of a changed item, with a sign for the kind of change."""
    sign, colour = _CHANGES[change]
    return f"[{colour}]{sign} {escape(name)}[/{colour}]"


def field_line(field: str, values: Mapping[str, Any], *, indent: int) -> str:
    """Return the old and the new value of a field on one line; of triggers, a line for each that differs."""
    start = f"{' ' * indent}{escape(field)}:"
    if field == "triggers":
        old, new = (values[side] or [] for side in ("from", "to"))
        differing = [f"[red]- {escape(trigger_line(one))}[/red]" for one in old if one not in new]
        differing += [f"[green]+ {escape(trigger_line(one))}[/green]" for one in new if one not in old]
        between = f"\n{' ' * indent}  "
        return start + between + between.join(differing or ["in another order"])
    before, after = (json.dumps(values[side], ensure_ascii=False) for side in ("from", "to"))
    return f"{start} [red]{escape(before)}[/red] → [green]{escape(after)}[/green]"


def trigger_line(trigger: Any) -> str:
    """Return a trigger with the options that it sets."""
    run = " ".join(f"{name} {value}" for name, value in trigger["run"].items() if value)
    options = [
        f"{name.replace('_', ' ')} {value_text(value).replace(chr(10), ', ')}"
        for name, value in trigger.items()
        if value and name not in _SHOWN_OF_TRIGGERS
    ]
    return "; ".join([f"{trigger['name']}: {run} on {', '.join(trigger['on'])}", *options])


def value_text(value: Any) -> str:
    """Return a value for people; nothing for one that is empty."""
    match value:
        case None | [] | {} | "":
            return ""
        case str():
            return value
        case list() if all(isinstance(one, str) for one in value):
            return "\n".join(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def delivery_row(delivery: Any) -> list[str]:
    """Return a delivery as a row of `DELIVERY_COLUMNS`."""
    moves = [
        f"{move['name']} {short(move['before'])}→{short(move['after'])} {coloured(move['state'])}"
        + (f": {escape(move['reason'])}" if move["reason"] else "")
        for move in delivery["updates"]
    ]
    return [
        delivery["id"],
        when(delivery["received_at"]),
        escape(delivery["event"]),
        coloured(delivery["outcome"]),
        "\n".join(moves) or escape(delivery["reason"] or ""),
    ]


def refusal_row(delivery: Any) -> list[str]:
    """Return refused requests as a row of `REFUSAL_COLUMNS`."""
    refusal = delivery["refusal"]
    return [
        delivery["id"],
        when(refusal["last_at"]),
        escape(refused_connection(delivery)),
        refusal["client"] or "an unknown address",
        escape(f"{delivery['event']} {delivery['provider_delivery_id'] or ''}".strip()),
        f"{refusal['status']} {times(refusal['count'])}: {escape(delivery['reason'])}",
    ]


def refused_connection(delivery: Any) -> str:
    """Return the name of the connection; if it never existed, also the id in the URL, if that was one."""
    identified = delivery["provider"] is not None or not delivery["connection"]
    return delivery["name"] if identified else f"{delivery['name']} {delivery['connection']}"


def times(count: int) -> str:
    """Return how often something happened."""
    return "once" if count == 1 else f"{count} times"


def print_facts(facts: dict[str, str]) -> None:
    """Print names and values, in two columns; further lines of a value are below its first."""
    width = max(map(len, facts))
    for name, value in facts.items():
        lines = escape(value).split("\n")
        for number, line in enumerate(lines):
            out.print(f"  {('' if number else name).ljust(width)}  {line}", soft_wrap=True)


def execution_line(execution: Any) -> str:
    """Return an execution request on one line."""
    message = execution["message"]
    where = f"{message['ref']['name']} {short(message['commit']['id'])}"
    command = " && ".join(message["execution"].get("command", ()))
    return (
        f"{clock(execution['planned_at'])}  [bold]{escape(message['project'])}[/bold]"
        f"  {escape(message['execution']['name'])}  {escape(where)}  {escape(command)}  {execution['id']}"
    )


def state_line(execution: Any) -> str:
    """Return on one line what a runner has reported about an execution."""
    run = execution["run"]
    reason = f": {escape(execution['reason'])}" if execution["reason"] else ""
    at = run["lost_at"] if execution["state"] == "lost" else run["reported_at"]
    return (
        f"{clock(at)}  [bold]{escape(execution['project'])}[/bold]"
        f"  {escape(execution['target'])}  {execution['id']}"
        f"  {coloured(execution['state'])}{reason}{run_summary(run)}"
    )


def run_summary(run: Any) -> str:
    """Return the first line of a run's summary and its page, to follow the state; empty if it has none."""
    if run is None:
        return ""
    summary = (run["summary"] or "").strip().partition("\n")[0][:_MAX_SUMMARY]
    said = ", ".join(escape(text) for text in (summary, run["url"]) if text)
    return f": {said}" if said else ""


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON; pushed text is escaped, so that a terminal does not obey it."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not is_unicode)
    sys.stdout.write(_TERMINAL_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def coloured(word: str) -> str:
    """Return a word in its colour."""
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/{colour}]" if colour else escape(word)


def names_of(triggers: list[Any]) -> str:
    """Return the names of triggers."""
    return ", ".join(trigger["name"] for trigger in triggers)


def short(object_id: str | None) -> str:
    """Return the first 10 digits of an object id."""
    return object_id[:10] if object_id else "∅"


def ref_move(update: Mapping[str, Any]) -> str:
    """Return the name of a ref with its old and new object id."""
    what = escape(f"{update['kind'].replace('_', ' ')} {update['name']}")
    return f"[bold]{what}[/bold] {short(update['before'])} → {short(update['after'])}"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit: 45 s, 12 min, 3 h, 2 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def when(instant: str) -> str:
    """Return an instant as "3 min ago" on a terminal; exactly, in UTC, elsewhere and with `--utc`."""
    at = datetime.fromisoformat(instant)
    return relative(at, now=datetime.now(UTC)) if _is_for_people() else _exact(at)


def clock(instant: str) -> str:
    """Return an instant for a line that stays on the screen: in local time on a terminal, else as `when`."""
    at = datetime.fromisoformat(instant)
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if _is_for_people() else _exact(at)


def _is_for_people() -> bool:
    return out.is_terminal and not exact_times.get()


def _exact(at: datetime) -> str:
    """Return an instant in UTC, as in `--json`; on a terminal, which is narrow, to the second."""
    precision = "seconds" if out.is_terminal else "auto"
    return at.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
