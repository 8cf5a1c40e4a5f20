"""The command `status`: the state of a gateway on one screen."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson
from gateway.cli.output import coloured, duration, err, escape, out, print_facts, print_json

app = typer.Typer()

# So many connections that need attention fit on a screen.
_MAX_SHOWN = 8
_BACKLOG = {
    "pushes": ("pushgate_pending_ref_updates", "pushgate_oldest_pending_seconds"),
    "requests": ("pushgate_pending_requests", "pushgate_oldest_unpublished_request_seconds"),
    "events": ("pushgate_pending_events", "pushgate_oldest_unpublished_event_seconds"),
}
# What is published, by its label in the metrics.
_PUBLISHED = {"requests": "request", "events": "event"}
_WAITING = {"pushes": "not planned yet", "requests": "not published yet", "events": "not published yet"}


@client_command(app)
def status(as_json: AsJson = False) -> None:
    """Show the state of the gateway on one screen; the exit status is 1 if something fails.

    Warnings do not change the exit status. `pushgate doctor` also checks webhooks at the providers.

    Examples: pushgate status; pushgate status --json
    """
    client = client_of()
    with err.status("reading the state"):
        found = _state(client)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found["problems"]:
        raise typer.Exit(1)


def _state(client: Client) -> dict[str, Any]:
    """Return everything that `status` shows."""
    code, ready = client.root_json("/readyz")
    is_ready = code == HTTPStatus.OK
    values = _metrics(client)
    found: dict[str, Any] = {
        "url": client.url,
        "version": client.root_json("/openapi.json")[1].get("info", {}).get("version"),
        "ready": is_ready,
        "reason": None if is_ready else ready.get("detail"),
        "fetching": ready.get("fetching"),
        "broker": {what: _connected(values, label) for what, label in _PUBLISHED.items()},
        "backlog": {what: _waiting(values, *names) for what, names in _BACKLOG.items()},
    }
    try:
        found["connections"] = {
            state: list(client.items("/health", state=state)) for state in ("failing", "warning")
        }
    except ApiError:
        # The reason why the database cannot be read is known already.
        if is_ready:
            raise
        found["connections"] = None
    return {**found, "problems": list(_problems(found))}


def _metrics(client: Client) -> Mapping[tuple[str, str], float]:
    """Return the metrics by name and by their label `what`, if they have it."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - the others start without it

    return {
        (sample.name, sample.labels.get("what", "")): sample.value
        for family in text_string_to_metric_families(client.root("/metrics")[1])
        for sample in family.samples
    }


def _connected(values: Mapping[tuple[str, str], float], label: str) -> bool | None:
    """Return whether the process is connected to the broker; None if it does not publish."""
    value = values.get(("pushgate_broker_connected", label))
    return None if value is None else value == 1


def _waiting(values: Mapping[tuple[str, str], float], count: str, age: str) -> dict[str, int | None]:
    """Return how many wait, and for how long the oldest does; None if the database did not answer."""
    numbers = {"waiting": values.get((count, "")), "oldest_seconds": values.get((age, ""))}
    return {
        name: None if value is None or math.isnan(value) else round(value) for name, value in numbers.items()
    }


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what fails, in sentences."""
    if not found["ready"]:
        yield f"The gateway is not ready: {found['reason']}."
    if found["fetching"] is not None:
        yield f"Nothing can be fetched: {found['fetching']}."
    for what, is_connected in found["broker"].items():
        if is_connected is False:
            yield f"The broker is not connected: {what} wait."
    for connection in (found["connections"] or {}).get("failing", ()):
        yield f"{connection['name']}: {' '.join(_sentences(connection))}"


def _sentences(connection: Any) -> list[str]:
    worst = connection["health"]["findings"][0]
    return [worst["reason"], worst["repair"]]


def _show(found: Any) -> None:
    from importlib.metadata import version  # noqa: PLC0415 - the other commands start without it

    ours = version("pushgate")
    differs = f" (this command: {ours})" if found["version"] != ours else ""
    connections = found["connections"]
    facts = {
        "gateway": f"{found['url']}, version {found['version'] or 'unknown'}{differs}",
        "ready": _yes_or(None if found["ready"] else found["reason"] or "for an unknown reason"),
        "fetching": _yes_or(found["fetching"]),
        "broker": _broker(found["broker"]),
        **{what: _queue(queue, _WAITING[what]) for what, queue in found["backlog"].items()},
        "connections": "unknown" if connections is None else _counts(connections),
    }
    for name, text in facts.items():
        out.print(f"  {name.ljust(11)}  {text}", soft_wrap=True)
    listed = [one for state in ("failing", "warning") for one in (connections or {}).get(state, ())]
    for one in listed[:_MAX_SHOWN]:
        sentences = escape(" ".join(_sentences(one)))
        name = f"[bold]{escape(one['name'])}[/bold]"
        out.print(f"    {name} {coloured(one['health']['state'])}: {sentences}", soft_wrap=True)
    if len(listed) > _MAX_SHOWN:
        out.print(f"    … and {len(listed) - _MAX_SHOWN} more: pushgate doctor")


def _yes_or(trouble: str | None) -> str:
    return "[green]yes[/green]" if trouble is None else f"[red]no[/red]: {escape(trouble)}"


def _broker(connected: Mapping[str, bool | None]) -> str:
    lost = [what for what, is_connected in connected.items() if is_connected is False]
    if lost:
        return f"[red]not connected[/red]: {' and '.join(lost)} wait"
    if set(connected.values()) == {None}:
        return "unknown: the process at this address has no broker (PUSHGATE_AMQP_URL), or the role web"
    return "[green]connected[/green]"


def _queue(queue: Mapping[str, int | None], what: str) -> str:
    waiting, oldest = queue["waiting"], queue["oldest_seconds"]
    if waiting is None:
        return "unknown"
    since = f", the oldest for {duration(oldest)}" if waiting and oldest is not None else ""
    return f"{waiting} {what}{since}"


def _counts(connections: Mapping[str, list[Any]]) -> str:
    counts = [f"{len(listed)} {state}" for state, listed in connections.items() if listed]
    return ", ".join(counts) or "[green]none needs attention[/green]"


@client_command(app)
def statistics(
    hours: Annotated[int, typer.Option(min=1, help="Of how many hours, up to now.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Count the deliveries of the last hours by outcome, and show how long each stage took.

    Examples: pushgate statistics; pushgate statistics --hours 168 --json
    """
    found = client_of().get("/statistics", hours=hours)
    if as_json:
        print_json(found)
        return
    totals: Counter[str] = Counter()
    for bucket in found["buckets"]:
        totals.update(bucket["counts"])
    counts = {**totals, **({"refused": found["refused"]} if found["refused"] else {})}
    lines = [f"{number} {outcome.replace('-', ' ')}" for outcome, number in counts.items()]
    stages = {
        one["stage"]: f"median {_duration(one['median'])}, 95th percentile {_duration(one['p95'])}"
        for one in found["latencies"]
    }
    print_facts({"hours": str(hours), "deliveries": ", ".join(lines) or "none", **stages})


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
