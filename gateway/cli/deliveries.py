"""The commands about deliveries: list, show, explain."""

from typing import Annotated, Any

import typer

from gateway.cli.api_client import part
from gateway.cli.facts import show_delivery
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import (
    AsJson,
    Limit,
    OfAuthor,
    OfBranch,
    OfConnection,
    Search,
    Since,
    Until,
    push_filters,
)
from gateway.cli.output import (
    DELIVERY_COLUMNS,
    REFUSAL_COLUMNS,
    delivery_row,
    empty_list,
    escape,
    out,
    print_json,
    print_list,
    refusal_row,
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
    commit: Annotated[
        str | None, typer.Option(help="Only those of this commit: its id, or at least 7 digits of it.")
    ] = None,
    branch: OfBranch = None,
    author: OfAuthor = None,
    since: Since = None,
    until: Until = None,
    search: Search = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first, or show one.

    Examples: pushgate deliveries --outcome failed; pushgate deliveries --branch main --since 2d
    """
    client = client_of()
    if delivery is not None:
        shown = client.get(f"/deliveries/{part(delivery)}")
        if as_json:
            print_json(shown)
        else:
            show_delivery(client, shown)
        return
    shared = push_filters(
        connection=connection, branch=branch, author=author, since=since, until=until, search=search
    )
    filters = {**shared, "outcome": outcome, "verdict": verdict, "commit": commit}
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
    """Explain why a push did, or did not, run: each step from the webhook to the broker.

    Examples: pushgate explain DELIVERY; pushgate explain 4f2a9c1
    """
    from gateway.cli.explain import delivery_tree  # noqa: PLC0415 - the other commands start without it

    answer = client_of().get("/explain", what=what)
    if as_json:
        print_json(answer)
    else:
        out.print(*map(delivery_tree, answer["items"]), sep="\n")
