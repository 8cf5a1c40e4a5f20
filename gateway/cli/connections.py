"""The commands about connections: list, apply a file, fetch now."""

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, File, connection_id
from gateway.cli.output import (
    DELIVERY_COLUMNS,
    change_line,
    coloured,
    delivery_row,
    empty_list,
    err,
    escape,
    names_of,
    out,
    print_facts,
    print_json,
    print_list,
)

if TYPE_CHECKING:
    from gateway.cli.wanted import Change

app = typer.Typer()

_POLL_SECONDS = 0.1
# A reconciliation that has begun takes no longer than its lease: see gateway/worker/reconciler.py.
_MAX_RECONCILIATION_SECONDS = 900.0


@client_command(app)
def connections(as_json: AsJson = False) -> None:
    """List the connections.

    Examples: pushgate connections; pushgate connections --json
    """
    answer = {"items": list(client_of().items("/connections")), "next": None}

    def row(connection: Any) -> list[str]:
        triggers = names_of(connection["triggers"]) or "-"
        texts = [connection["provider"], connection["project"], triggers, connection["url"]]
        health = coloured(connection["health"]["state"])
        return [escape(connection["name"]), health, *map(escape, texts), connection["id"]]

    columns = ["name", "health", "provider", "project", "triggers", "url", "id"]
    print_list(answer, columns, row, empty=empty_list("connections"), as_json=as_json)


@client_command(app, "apply")
def apply_command(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete connections and sources that the file does not name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create, change and (with --prune) delete connections and sources to match a file; print each change.

    Connections that a source has made stay. A file without `sources` leaves all sources alone.

    Example: pushgate apply --file connections.yaml --dry-run
    """
    from gateway.cli import connections_file, sources_file  # noqa: PLC0415 - the others start without it

    wanted = connections_file.read_file(file.read())
    client = client_of()
    sources: list[Change[Any]] = []
    if wanted.sources is not None:
        sources = sources_file.compare(wanted.sources, list(client.items("/sources")), prune=prune)
    present = list(client.items("/connections"))
    changes = [*sources, *connections_file.compare(wanted.connections, present, prune=prune)]
    if not as_json:
        for change in changes:
            out.print(change_line(change.shown))
    results = []
    for change in changes:
        carry_out = sources_file.carry_out if change.kind == "source" else connections_file.carry_out
        done = None if dry_run else carry_out(client, change)
        results.append({**change.shown, change.kind: done})
        if done is not None and change.action == "create" and not as_json:
            _show_created(done, is_secret_known=bool(change.secret))
    if as_json:
        print_json({"dry_run": dry_run, "changes": results})
    elif dry_run:
        out.print("Nothing was changed: this was a dry run.")


def _show_created(made: Any, *, is_secret_known: bool) -> None:
    # A secret from the file is known already, and the output may be a log.
    secret = {} if is_secret_known else {"secret": f"{made['secret']}  (shown only once)"}
    print_facts({"webhook URL": made["hook_url"], **secret})


@client_command(app)
def fetch(
    connection: Annotated[str, typer.Argument(help="The connection's id or name.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until a worker begins.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Reconcile a repository now: recover pushes whose webhook never arrived.

    Example: pushgate fetch acme/digits
    """
    client = client_of()
    found_id = connection_id(client, connection)
    scheduled = client.send("POST", f"/connections/{part(found_id)}/fetch", {})["reconciliation"]
    with err.status("reading the refs of the remote"):
        reconciliation = reconciliation_result(client, found_id, scheduled["due_at"], wait)
    if reconciliation is None:
        raise ApiError(
            f"no worker has begun within {wait:g} s: check that a process with the role all or worker is"
            " running and not overloaded. The reconciliation remains scheduled"
        )
    found = client.get(f"/deliveries/{reconciliation['delivery']}") if reconciliation["delivery"] else None
    _show_reconciliation(reconciliation, found, as_json=as_json)


def _show_reconciliation(reconciliation: Any, found: Any, *, as_json: bool) -> None:
    """Print the result and the delivery with what was found, if any. Raises `ApiError` if it failed."""
    if as_json:
        print_json({"reconciliation": reconciliation, "delivery": found})
        if reconciliation["reason"]:
            raise typer.Exit(1)
    elif reconciliation["reason"]:
        raise ApiError(reconciliation["reason"])
    elif found is None:
        out.print("No ref has moved since the last delivery or reconciliation.")
    else:
        page = {"items": [found], "next": None}
        print_list(page, DELIVERY_COLUMNS, delivery_row, empty="", as_json=False)


def reconciliation_result(client: Client, connection: str, requested_at: str, wait: float) -> Any:
    """Return the result of the reconciliation that was requested at `requested_at`, of the gateway's clock.

    A reconciliation that began earlier may have missed later changes. Returns None where no worker begins
    within `wait` seconds, or where the reconciliation does not end.
    """
    requested, started = datetime.fromisoformat(requested_at), time.monotonic()
    while True:
        reconciliation = client.get(f"/connections/{part(connection)}")["reconciliation"]
        if (
            reconciliation["tried_at"] is not None
            and datetime.fromisoformat(reconciliation["tried_at"]) >= requested
        ):
            return reconciliation
        has_begun = datetime.fromisoformat(reconciliation["due_at"]) > requested
        if time.monotonic() - started > (_MAX_RECONCILIATION_SECONDS if has_begun else wait):
            return None
        time.sleep(_POLL_SECONDS)


@client_command(app)
def refs(
    connection: Annotated[str, typer.Argument(help="The connection's id or name.")],
    as_json: AsJson = False,
) -> None:
    """List the branches and tags of a repository, at the positions that Pushgate knows.

    Example: pushgate refs acme/digits
    """
    client = client_of()
    answer = client.get(f"/connections/{part(connection_id(client, connection))}/refs")

    def row(ref: Any) -> list[str]:
        return [escape(ref["ref"]), ref["id"] or "deleted"]

    print_list(answer, ["ref", "position"], row, empty=empty_list("refs"), as_json=as_json)


@client_command(app, "forget-repository")
def forget_repository(
    connection: Annotated[str, typer.Argument(help="The connection's id or name.")],
    as_json: AsJson = False,
) -> None:
    """Forget the provider's id of a repository that was deleted and re-created at the same URL.

    Example: pushgate forget-repository acme/digits
    """
    client = client_of()
    found_id = connection_id(client, connection)
    view = client.send("POST", f"/connections/{part(found_id)}/forget-repository", {})
    if as_json:
        print_json(view)
    else:
        out.print("Forgotten: the next delivery from this repository's URL sets the id.")
