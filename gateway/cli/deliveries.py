"""The commands about deliveries: list, show, explain."""

import json
from typing import Annotated, Any

import typer

from gateway.cli.api_client import Client, part
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, Limit, OfConnection
from gateway.cli.output import (
    DELIVERY_COLUMNS,
    REFUSAL_COLUMNS,
    delivery_row,
    empty_list,
    escape,
    out,
    print_facts,
    print_json,
    print_list,
    refusal_row,
    times,
)

app = typer.Typer()


@client_command(app)
def deliveries(
    delivery: Annotated[str | None, typer.Argument(help="Show this delivery in full, by its id.")] = None,
    connection: OfConnection = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            help="Only this outcome: ran, nothing-matched, failed, waiting, duplicate, superseded, ignored,"
            " or refused: requests that were not verified, too large or for no connection, which are listed"
            " only with this option."
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(help="Only this verdict: accepted, duplicate, ignored, unreadable, or refused."),
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first, or show one."""
    client = client_of()
    if delivery is not None:
        shown = client.get(f"/deliveries/{part(delivery)}")
        if as_json:
            print_json(shown)
        else:
            _show(client, shown)
        return
    filters = {"connection": connection, "outcome": outcome, "verdict": verdict}
    answer = client.get("/deliveries", **filters, limit=limit)
    if "refused" in {outcome, verdict}:
        empty = empty_list("refused requests", connection)
        print_list(answer, REFUSAL_COLUMNS, refusal_row, empty=empty, as_json=as_json)
        _print_repairs(answer["items"], as_json=as_json)
        return
    empty = empty_list("deliveries", *filters.values())
    if outcome is None and verdict is None:
        empty += " Requests that Pushgate refused: pushgate deliveries --outcome refused"
    print_list(answer, DELIVERY_COLUMNS, delivery_row, empty=empty, as_json=as_json)


def _print_repairs(refused: Any, *, as_json: bool) -> None:
    """Print once for each status what to do."""
    repairs = {item["refusal"]["repair"]: item["refusal"]["status"] for item in refused}
    if not as_json:
        for repair, status in repairs.items():
            if repair is not None:
                out.print(f"{status}: {escape(repair)}", soft_wrap=True)


def _show(client: Client, delivery: Any) -> None:
    """Print a delivery with everything that is stored about it, and its explanation."""
    from gateway.cli.explain import delivery_tree  # noqa: PLC0415 - the lists start without it

    repository = delivery["repository"] or {}
    is_orphan = ", deleted" if delivery["is_orphan"] else ""
    what = "source" if delivery["is_of_source"] else "connection"
    facts = {
        what: f"{delivery['name']} ({delivery['connection']}{is_orphan})",
        "provider": delivery["provider"],
        "event": delivery["event"],
        "id at the provider": delivery["provider_delivery_id"],
        "pushed by": delivery["pusher"],
        **{f"repository {name}": str(value) for name, value in repository.items() if value is not None},
        "refused": _refused(delivery["refusal"]),
        "detail": json.dumps(delivery["detail"], ensure_ascii=False) if delivery["detail"] else None,
    }
    for update in delivery["updates"]:
        commits = f", {len(update['commits'])} commits listed" if update["commits"] else ""
        forced = ", forced" if update["forced"] else ""
        ids = f"{update['before'] or '∅'} → {update['after'] or '∅'}"
        facts[update["ref"]] = f"{update['action']} {ids}{forced}{commits}"
    print_facts({name: value for name, value in facts.items() if value})
    for explained in client.get("/explain", what=delivery["id"])["items"]:
        out.print(delivery_tree(explained))


def _refused(refusal: Any) -> str | None:
    if refusal is None:
        return None
    where = refusal["client"] or "an unknown address"
    return f"{refusal['status']} to {where}, {times(refusal['count'])}, last {refusal['last_at']}"


@client_command(app)
def explain(
    what: Annotated[
        str,
        typer.Argument(
            help="The id of a delivery or execution, a commit or its first digits, or a URL: of one of their"
            " pages, or of a repository."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Explain why a push did, or did not, run: each step from the webhook to the broker."""
    from gateway.cli.explain import delivery_tree  # noqa: PLC0415 - the other commands start without it

    answer = client_of().get("/explain", what=what)
    if as_json:
        print_json(answer)
    else:
        out.print(*map(delivery_tree, answer["items"]), sep="\n")
