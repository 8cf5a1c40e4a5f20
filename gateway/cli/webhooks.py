"""The command `doctor`: the health of connections and sources, and their webhooks at the providers."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, connection_id
from gateway.cli.output import coloured, empty_list, err, escape, out, print_list

app = typer.Typer()

WAIT_SECONDS = 15
_POLL_SECONDS = 0.1
# What is shown of a webhook that cannot be checked.
_UNCHECKED: Mapping[str, Any] = {"differences": [], "problem": None, "reason": None, "advice": None}
_BAD = {"warning", "failing"}
# Differences that `doctor --fix` leaves if a person has to correct them.
_FOR_PEOPLE = {"missing events", "missing permissions"}


@client_command(app)
def doctor(
    connection: Annotated[
        str | None, typer.Argument(help="A connection or a source, by id or name; by default all of them.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair webhooks that are missing, changed, off or doubled.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check connections and sources, and say what to do; the exit status is 1 if one needs attention.

    The webhooks of those with an identity are compared with the provider's. With --fix, they are set
    anew, with their newest secrets. Only webhooks of this gateway are touched.

    Examples: pushgate doctor; pushgate doctor acme/digits --fix
    """
    client = client_of()
    found = [_checked(client, path, one, fix=fix) for path, one in with_paths(client, connection)]

    def row(checked: Any) -> list[str]:
        names = [escape(checked["name"]), escape(checked["provider"])]
        return [*names, coloured(checked["health"]["state"]), escape("\n".join(_sentences(checked)))]

    columns = ["connection", "provider", "health", "findings"]
    nothing = empty_list("connections")
    print_list({"items": found, "next": None}, columns, row, empty=nothing, as_json=as_json)
    if any(one["reason"] or one["health"]["state"] in _BAD for one in found):
        raise typer.Exit(1)


def registered_webhook(client: Client, path: str) -> Any:
    """Register the webhook of a new connection or source, and wait for a time for its test delivery.

    Return its state. Where the registration fails, the reason is in the state.
    """
    try:
        with err.status("registering the webhook"):
            webhook = registered(client, path)
        with err.status("waiting for the test delivery"):
            return _tested(client, path, webhook)
    except Unreachable:
        raise
    except ApiError as error:
        return {"reason": str(error)}


def registered(client: Client, path: str) -> Any:
    """Register or repair a webhook; return its state. Raises `ApiError`."""
    return client.send("POST", f"{path}/webhook", wait=WAIT_SECONDS)


def _tested(client: Client, path: str, webhook: Any) -> Any:
    """Return the state of a new webhook once its test delivery has arrived, or after a time."""
    ends_at = time.monotonic() + WAIT_SECONDS
    while webhook["is_tested"] and webhook["arrived_at"] is None and time.monotonic() < ends_at:
        time.sleep(_POLL_SECONDS)
        webhook = client.get(f"{path}/webhook")
    return webhook


def show_webhook(made: Any, webhook: Any) -> bool:
    """Print what became of the webhook of a new connection or source; return whether it is registered."""
    if webhook["reason"] is not None or webhook["webhook"] is None:
        reason = webhook["reason"] or "no worker has done it yet"
        err.print(
            f"\n[yellow]Warning:[/yellow] the webhook is not registered: {escape(reason)}. Try again with"
            f" `pushgate doctor {made['id']} --fix`, or register it by hand:",
            soft_wrap=True,
        )
        return False
    out.print(
        f"\n[green]✓[/green] The webhook is registered at the provider. {_test_result(webhook)}",
        soft_wrap=True,
    )
    return True


def _test_result(webhook: Any) -> str:
    """Return what became of the test delivery, as a sentence."""
    if not webhook["is_tested"]:
        return "This provider sends no test delivery: the first push will show whether it arrives."
    if webhook["arrived_at"] is None:
        return (
            f"[yellow]Warning:[/yellow] its test delivery has not arrived within {WAIT_SECONDS} s. Look for"
            " it with `pushgate deliveries --outcome refused`; the webhook's page at the provider shows the"
            " answer that it got."
        )
    began, arrived = (datetime.fromisoformat(webhook[key]) for key in ("registered_at", "arrived_at"))
    # The clocks of two processes may differ.
    seconds = max((arrived - began).total_seconds(), 0.0)
    return f"The test delivery arrived after {seconds:.1f} s."


def show_steps(
    provider: str, scope: Literal["repository", "owner", "server"], *, heading: str = "Next:"
) -> None:
    """Print what is to be done at the provider."""
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    out.print(f"\n{heading}")
    for line in PROVIDERS[provider].SETUP.lines(scope):
        out.print(f"  {line}", soft_wrap=True)


def with_paths(client: Client, name: str | None) -> list[tuple[str, Any]]:
    """Return sources and connections with their paths.

    Sources come first, because the health of a connection depends on the webhook of its source.
    """
    sources = [one for one in client.items("/sources") if name in {None, one["id"], one["name"]}]
    found = [(f"/sources/{one['id']}", one) for one in sources if name or one["identity"]]
    if name is None:
        return found + [(f"/connections/{one['id']}", one) for one in client.items("/connections")]
    if found:
        return found
    path = f"/connections/{part(connection_id(client, name))}"
    return [(path, client.get(path))]


def _checked(client: Client, path: str, shown: Any, *, fix: bool) -> Any:
    """Return the health of a connection or a source, with the state of its webhook if it has an identity."""
    named = {key: shown[key] for key in ("id", "name", "provider")}
    is_source = "scope" in shown
    if shown["identity"] is None or shown.get("source") is not None:
        health = _health_of_source(shown, _UNCHECKED) if is_source else shown["health"]
        return {**named, **_UNCHECKED, "health": health}
    with err.status(f"checking {escape(shown['name'])}"):
        webhook = _webhook(client, path, fix=fix)
    after = client.get(path)
    health = _health_of_source(after, webhook) if is_source else after["health"]
    return {**named, **webhook, "health": health}


def _health_of_source(source: Any, webhook: Any) -> Any:
    """Return what is not in order with a source, in the form of the health of a connection."""
    advice, problem, name = webhook["advice"], webhook["problem"], source["name"]
    ours = [one for one in webhook["differences"] if advice is None or one not in _FOR_PEOPLE]
    differences = ", ".join(ours)
    found = {
        "The GitHub App of the webhook lacks events or permissions.": f"{advice}." if advice else None,
        f"The webhook of the source differs: {differences}.": f"Run `pushgate doctor {name} --fix`."
        if differences
        else None,
        f"The provider's last request failed: {problem}.": "Check that the provider reaches the webhook URL."
        if problem
        else None,
        f"The repositories could not be listed: {source['reason']}.": "Correct the cause, then run"
        f" `pushgate source list-now {name}`."
        if source["reason"]
        else None,
    }
    findings = [
        {"what": "webhook", "state": "warning", "reason": reason, "repair": repair}
        for reason, repair in found.items()
        if repair is not None
    ]
    return {"state": "warning" if findings else "ok", "findings": findings}


def _webhook(client: Client, path: str, *, fix: bool) -> Any:
    """Return the state of a webhook; a failed check is the reason in it."""
    try:
        if fix:
            return registered(client, path)
        return client.send("POST", f"{path}/webhook/check", wait=WAIT_SECONDS)
    except Unreachable:
        raise
    except ApiError as error:
        return {**_UNCHECKED, "reason": str(error)}


def _sentences(checked: Any) -> list[str]:
    """Return what was found, and what to do."""
    findings = [f"{one['reason']} {one['repair']}" for one in checked["health"]["findings"]]
    reason = checked["reason"]
    if reason and not any(reason in one for one in findings):
        findings.insert(0, f"The webhook was not checked: {reason}.")
    return findings or ["in order"]
