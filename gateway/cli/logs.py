"""The command `logs`: the way of a delivery, from the webhook to the verdict at the provider, as lines."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import typer

from gateway.cli.api_client import Client, Missing
from gateway.cli.following import NewDeliveries, patience_with
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson
from gateway.cli.output import clock, coloured, escape, out, print_json, short

app = typer.Typer()

_POLL_SECONDS = 1.0
_CONNECTION = re.compile(r"[0-9a-f]{24}")
# How many deliveries of a connection are followed at the same time; the older ones have long ended.
_MAX_FOLLOWED = 50
_WAITING = "waiting"
_UNKNOWN_TIME = "time unknown"
# Of the longest frequent state.
_STATE_WIDTH = 9
_GOES_ON = {"pending", "published", "accepted", "running"}
_FAILED = {"failed", "gone", "rejected", "lost", "undeliverable", "unreadable", "refused"}


@dataclass(frozen=True, slots=True)
class Line:
    """One event on the way of a delivery.

    `at` is None for what is still waited for, and for the end of an execution of which no time is stored.
    """

    at: str | None
    state: str
    text: str


@client_command(app)
def logs(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="A delivery, an execution, a commit or a URL, or a connection by its id or name; by default,"
            " all connections.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the delivery has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the way of a delivery as lines in the order of time: received, planned, published, run, shown.

    Of a connection, the latest deliveries are shown. With --follow, a delivery is followed until it has
    ended: the exit status is then 1 if something of it has failed. A connection is followed until Ctrl-C.

    Examples: pushgate logs DELIVERY --follow; pushgate logs acme/digits --follow; pushgate logs
    """
    client, printer = client_of(), _Printer(as_json=as_json)
    is_open_ended = follow and (what is None or _is_connection(client, what))
    # Before the first look, so that nothing that arrives meanwhile is left out.
    arriving = NewDeliveries(client, what) if is_open_ended else None
    try:
        found = _found(client, what)
    except Missing:
        # A connection without deliveries has its first one still to come.
        if arriving is None:
            raise
        found = []
    for delivery in found:
        printer.show(delivery)
    if arriving is not None:
        _follow_new(client, arriving, found, printer)
    elif follow:
        _follow_until_end(client, [delivery["id"] for delivery in found], printer)


def _found(client: Client, what: str | None) -> list[Any]:
    """Return the explanations of deliveries, oldest first."""
    if what is not None:
        return list(client.get("/explain", what=what)["items"])
    latest = client.get("/deliveries", limit=5)["items"]
    return [_explained(client, delivery["id"]) for delivery in reversed(latest)]


def _explained(client: Client, delivery: str) -> Any:
    [explained] = client.get("/explain", what=delivery)["items"]
    return explained


def _is_connection(client: Client, what: str) -> bool:
    return _CONNECTION.fullmatch(what) is not None or any(client.items("/connections", name=what))


def _follow_until_end(client: Client, ids: Sequence[str], printer: "_Printer") -> None:
    """Print what becomes of deliveries, and exit once all have ended: with 1 if something has failed."""
    patience = patience_with(client)
    patience.heard()
    has_failed = False
    for delivery in ids:
        while True:
            explained = patience.insist(partial(_explained, client, delivery))
            printer.show(explained)
            if has_ended(explained):
                break
            time.sleep(_POLL_SECONDS)
        has_failed = has_failed or _has_failed(explained)
    raise typer.Exit(1 if has_failed else 0)


def _follow_new(client: Client, arriving: NewDeliveries, found: Sequence[Any], printer: "_Printer") -> None:
    """Print what becomes of these deliveries, and of those that arrive, until Ctrl-C."""
    patience = patience_with(client)
    followed = [one["id"] for one in found if not has_ended(one)]
    for new in arriving.follow(patience):
        followed += [one["id"] for one in new if one["id"] not in followed]
        for delivery in followed[-_MAX_FOLLOWED:]:
            explained = patience.insist(partial(_explained, client, delivery))
            printer.show(explained)
            if has_ended(explained):
                followed.remove(delivery)


class _Printer:
    """Prints the lines of deliveries that are not printed yet."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed: set[tuple[str, Line]] = set()
        self._shown: set[str] = set()

    def show(self, delivery: Any) -> None:
        """Print what is new of a delivery."""
        is_first = delivery["id"] not in self._shown
        self._shown.add(delivery["id"])
        for line in lines(delivery):
            if (delivery["id"], line) in self._printed:
                continue
            self._printed.add((delivery["id"], line))
            # What was not there a second ago has just happened.
            is_now = line.state == _WAITING or not is_first
            at = line.at or (datetime.now(UTC).isoformat() if is_now else None)
            if self._as_json:
                facts = {"at": at, "delivery": delivery["id"], "connection": delivery["name"]}
                print_json({**facts, "state": line.state, "text": line.text}, indent=None)
                continue
            state = coloured(line.state) + " " * (_STATE_WIDTH - len(line.state))
            shown_at = _UNKNOWN_TIME if at is None else clock(at)
            text = f"{shown_at}  {escape(delivery['name'])}  {state}  {escape(line.text)}"
            out.print(text.rstrip(), soft_wrap=True)


def has_ended(delivery: Mapping[str, Any]) -> bool:
    """Return whether nothing more is expected of a delivery."""
    is_sending = any(status["is_due"] for status in delivery["statuses"])
    return not (delivery["is_waiting"] or is_sending or _GOES_ON & _states(delivery))


def _has_failed(delivery: Mapping[str, Any]) -> bool:
    unplanned = [one for update in delivery["updates"] for one in update["verdicts"] if one["failure"]]
    return bool(unplanned or _FAILED & {delivery["verdict"], *_states(delivery)})


def _states(delivery: Mapping[str, Any]) -> set[str]:
    """Return the states of the ref updates and the executions."""
    return {one["state"] for one in [*delivery["updates"], *delivery["executions"]]}


def lines(delivery: Mapping[str, Any]) -> list[Line]:
    """Return what is known of the way of a delivery, in the order of time."""
    found = [*_arrival(delivery)]
    for update in delivery["updates"]:
        found += _update(update, delivery["received_at"])
    for execution in delivery["executions"]:
        found += _execution(execution)
    for status in delivery["statuses"]:
        found += _status(status, delivery["provider"])
    # Those that are waited for come last; of one instant, the order is that of the way.
    return sorted(found, key=lambda line: (line.at is None, _instant(line.at)))


def _instant(at: str | None) -> datetime:
    return datetime.fromisoformat(at) if at is not None else datetime.max.replace(tzinfo=UTC)


def _arrival(delivery: Mapping[str, Any]) -> Iterator[Line]:
    at, is_found = delivery["received_at"], delivery["source"] == "reconciliation"
    where = "found at the remote" if is_found else f"{delivery['event']} from {delivery['provider']}"
    yield Line(at, "received", f"{where}: delivery {delivery['id']}")
    refusal = delivery["refusal"]
    if refusal is not None:
        text = f"with status {refusal['status']}, {refusal['count']} times: {delivery['reason']}"
        yield Line(refusal["last_at"], delivery["verdict"], text)
    elif delivery["is_waiting"]:
        yield Line(None, _WAITING, delivery["reason"] or "for the rules of its source")
    else:
        yield Line(at, delivery["verdict"], delivery["reason"] or "")


def _update(update: Mapping[str, Any], received_at: str) -> Iterator[Line]:
    move = f"{update['name']} {short(update['before'])} → {short(update['after'])}"
    for attempt in update["attempts"]:
        if attempt["settled_at"] is not None:
            yield from _settled(attempt, move)
        yield Line(attempt["replayed_at"], "replayed", move)
    if update["fetched_at"] is not None:
        yield Line(update["fetched_at"], "fetched", move)
    if update["settled_at"] is not None:
        yield from _settled(update, move)
    elif update["state"] != "pending":
        # A duplicate: decided when it was received.
        yield Line(received_at, update["state"], f"{move}: {update['reason']}")
    elif update["reason"] is not None:
        yield Line(None, _WAITING, f"{move}: {update['reason']}")


def _settled(update: Mapping[str, Any], move: str) -> Iterator[Line]:
    """Yield how a ref update has ended, and what each trigger has decided."""
    at = update["settled_at"]
    because = f": {update['reason']}" if update["reason"] else ""
    yield Line(at, update["state"], f"{move}{because}")
    for verdict in update["verdicts"]:
        state = "matched" if verdict["matched"] else "unmatched"
        yield Line(at, state, f"trigger {verdict['trigger']}: {verdict['reason']}")
        if verdict["failure"] is not None:
            yield Line(at, "failed", f"trigger {verdict['trigger']}: {verdict['failure']}")


def _execution(execution: Mapping[str, Any]) -> Iterator[Line]:
    name = f"{execution['target']} {execution['id']}"
    again = f", a re-run of {execution['rerun_of']}" if execution["rerun_of"] is not None else ""
    yield Line(execution["planned_at"], "requested", f"{name} by trigger {execution['trigger']}{again}")
    lane = f" in lane {execution['lane']}" if execution["lane"] is not None else ""
    if execution["published_at"] is not None:
        yield Line(execution["published_at"], "published", f"{name}{lane}: confirmed by the broker")
    if execution["republished_at"] is not None:
        yield Line(execution["republished_at"], "republished", f"{name}, redrive {execution['redrives']}")
    is_withdrawn = execution["state"] == "cancelled" and execution["run"] is None
    if execution["cancel_requested_at"] is not None and not is_withdrawn:
        yield Line(execution["cancel_requested_at"], "cancelling", name)
    because = f": {execution['reason']}" if execution["reason"] else ""
    if execution["run"] is not None:
        yield from _run(execution, execution["run"], name, because)
    elif execution["state"] == "pending" and because:
        yield Line(None, _WAITING, f"{name}{because}")
    elif is_withdrawn:
        yield Line(execution["cancel_requested_at"], "cancelled", f"{name}{because}")
    elif execution["state"] not in _GOES_ON:
        yield Line(None, execution["state"], f"{name}{because}")


def _run(execution: Mapping[str, Any], run: Mapping[str, Any], name: str, because: str) -> Iterator[Line]:
    """Yield what runners have reported."""
    runner = f" by {run['runner']}" if run["runner"] else ""
    for key, state in (("accepted_at", "accepted"), ("started_at", "running")):
        if run[key] is not None:
            yield Line(run[key], state, f"{name}{runner}")
    if run["ended_at"] is not None:
        yield Line(run["ended_at"], execution["state"], f"{name}{_summary(run)}")
    elif execution["state"] == "lost":
        yield Line(run["lost_at"], "lost", f"{name}{because}")


def _summary(run: Mapping[str, Any]) -> str:
    said = [text for text in ((run["summary"] or "").strip().partition("\n")[0], run["url"]) if text]
    return f": {', '.join(said)}" if said else ""


def _status(status: Mapping[str, Any], provider: str) -> Iterator[Line]:
    """Yield what the provider shows of a verdict."""
    verdict = f"{status['context']} on {short(status['commit'])}"
    if status["problem"] is not None:
        yield Line(status["tried_at"], "unsent", f"verdict {verdict}: {status['problem']}")
    elif status["shown"] is not None:
        yield Line(status["tried_at"], "shown", f"verdict {verdict} as {status['shown']} by {provider}")
