"""The command `show`: one record in full, of whatever kind it is."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, Missing, part
from gateway.cli.facts import (
    channel_facts,
    connection_facts,
    execution_facts,
    identity_facts,
    request_facts,
    show_delivery,
    source_facts,
)
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson
from gateway.cli.output import escape, out, print_facts, print_json
from gateway.errors import Invalid

app = typer.Typer()

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PATHS: Mapping[str, str] = {
    "connection": "connections",
    "source": "sources",
    "identity": "identities",
    "channel": "notification-channels",
    "delivery": "deliveries",
    "execution": "executions",
}
# Only these have names; the ids of the others are UUIDs.
_NAMED = ("connection", "source", "identity", "channel")
_FACTS: Mapping[str, Callable[[Any], dict[str, str]]] = {
    "connection": connection_facts,
    "source": source_facts,
    "identity": identity_facts,
    "channel": channel_facts,
    "execution": execution_facts,
}


@client_command(app)
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A connection, source, identity or channel by its name or id, or the id of a delivery or an"
            " execution.",
        ),
    ],
    kind: Annotated[
        str | None, typer.Option(help=f"What it is, if several have this name: {', '.join(_PATHS)}.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one record in full; what it is, is found out.

    Examples: pushgate show acme/digits; pushgate show DELIVERY; pushgate show acme-bot --kind identity
    """
    if kind is not None and kind not in _PATHS:
        raise Invalid(f"--kind {kind}: choose {', '.join(_PATHS)}")
    client = client_of()
    kind, shown = _only(client, what, [*_found(client, what, kind)])
    if as_json:
        print_json({"kind": kind, kind: shown})
    elif kind == "delivery":
        show_delivery(client, shown)
    else:
        print_facts(_FACTS[kind](shown))


def _found(client: Client, what: str, kind: str | None) -> Iterator[tuple[str, Any]]:
    """Yield what has this name or id, with its kind."""
    likely = ("delivery", "execution") if _UUID.fullmatch(what) else _NAMED
    for one in likely if kind is None else (kind,):
        if one == "connection":
            # Unlike the other names, those of connections contain slashes.
            named = list(client.items("/connections", name=what))
            yield from ((one, connection) for connection in named)
            if named:
                continue
        try:
            yield one, client.get(f"/{_PATHS[one]}/{part(what)}")
        except Missing:
            continue


def _only(client: Client, what: str, found: list[tuple[str, Any]]) -> tuple[str, Any]:
    """Return the one that was found. Raises `ApiError`."""
    if not found:
        raise ApiError(
            f"nothing has the name or the id {what}; of a commit or a URL, `pushgate explain` shows the"
            " deliveries",
            client.named,
        )
    if len(found) == 1:
        return found[0]
    kinds = {kind for kind, _ in found}
    if len(kinds) == 1:
        ids = ", ".join(shown["id"] for _, shown in found)
        raise ApiError(f"several connections have the name {what}: give the id instead ({ids})")
    choices = " or ".join(f"--kind {kind}" for kind, _ in found)
    raise ApiError(f"{what} is the name of {len(found)} records: give {choices}")


@client_command(app)
def request(
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="The id of the delivery.")],
    body: Annotated[
        bool, typer.Option("--body", help="Print only the body, byte for byte as it was received.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the webhook request of a delivery as it was received, and the answer of Pushgate.

    Signatures and tokens are never stored: only their lengths are.

    Examples: pushgate request DELIVERY; pushgate request DELIVERY --body > payload.json
    """
    client, path = client_of(), f"/deliveries/{part(delivery)}"
    if body:
        if as_json:
            raise Invalid("--body prints the body as it is: omit --json")
        typer.get_binary_stream("stdout").write(client.raw(f"{path}/body"))
        return
    shown = client.get(f"{path}/request")
    if as_json:
        print_json(shown)
        return
    print_facts(request_facts(shown))
    content = shown["body"]["content"]
    if shown["body"]["encoding"] == "text" and content is not None:
        out.print(f"\n{escape(content)}", soft_wrap=True)
    else:
        out.print(f"\n`pushgate request {shown['delivery']} --body` prints the body.", soft_wrap=True)
