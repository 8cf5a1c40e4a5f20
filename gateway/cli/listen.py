"""The command `listen`: forwards the deliveries of one gateway to a webhook URL, such as a developer's."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.cli.api_client import ApiError, Client, Patience, Unreachable, part, post_webhook
from gateway.cli.following import NewDeliveries, patience_with, report
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, OfConnection, connection_id
from gateway.cli.output import clock, coloured, err, escape, out, print_json
from gateway.cli.provider import imitated_provider, secret_of_connection, signed_headers
from gateway.errors import Invalid

app = typer.Typer()


@client_command(app)
def listen(
    connection: OfConnection = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Forward them to this webhook URL; by default, they are only printed."
        ),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="The secret of the connection at --to.", envvar="WEBHOOK_SECRET")
    ] = None,
    secret_file: Annotated[Path | None, typer.Option(help="A file with that secret.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print new deliveries as they arrive, and forward them to another gateway, until Ctrl-C.

    Each request is sent as it was received, byte for byte, and signed anew with the secret of the connection
    at --to, which must have the same provider. After an interruption, the command goes on where it stopped:
    nothing is left out or sent twice.

    Examples: pushgate listen; pushgate listen --context production --connection acme/digits
    --to http://127.0.0.1:8080/hooks/ID --secret-file FILE
    """
    key = None
    if to is not None:
        key = secret_of_connection(secret, secret_file)
        if not urlsplit(to).path.startswith("/hooks/"):
            raise Invalid(f"--to {to}: give a webhook URL, which ends with /hooks/ and the connection's id")
    client = client_of()
    followed = connection_id(client, connection) if connection is not None else None
    arriving = NewDeliveries(client, followed)
    err.print(f"Listening at {escape(client.url)}. Ctrl-C ends this.", soft_wrap=True)
    here, there = patience_with(client), Patience(to or "", report)
    for deliveries in arriving.follow(here):
        for delivery in deliveries:
            answer = None
            if to is not None and key is not None:
                answer = _forwarded(client, delivery, to, key, here, there)
            _print(delivery, answer, as_json=as_json)


def _forwarded(
    client: Client, delivery: Any, to: str, secret: str, here: Patience, there: Patience
) -> dict[str, Any]:
    """Return the answer of the other gateway to a delivery, or the reason why it was not forwarded.

    Raises `Unreachable` if one of the two gateways does not answer any more.
    """
    path = f"/deliveries/{part(delivery['id'])}"
    try:
        request = here.insist(lambda: client.get(f"{path}/request"))
        body = here.insist(lambda: client.raw(f"{path}/body"))
    except Unreachable:
        raise
    except ApiError as error:
        return {"status": None, "reason": str(error)}
    headers = _headers(delivery, request["headers"], request["provider"], body, secret)
    started = time.monotonic()
    # It may be starting again after a change of its code. It drops a request that it has received before.
    there.heard()
    status, answer = there.insist(lambda: post_webhook(to, body, headers))
    took = round((time.monotonic() - started) * 1000)
    return {"status": status, "milliseconds": took, **answer}


def _headers(
    delivery: Any, stored: Mapping[str, str], provider: str, body: bytes, secret: str
) -> Mapping[str, str]:
    """Return the stored headers of a request with a new signature."""
    signed = signed_headers(
        imitated_provider(provider),
        body,
        secret,
        event=delivery["event"],
        delivery=stored.get("webhook-id") or delivery["provider_delivery_id"] or delivery["id"],
    )
    # Signatures are never stored. The time of a signature is new, too.
    return {**signed, **{name: value for name, value in stored.items() if name != "webhook-timestamp"}}


def _print(delivery: Any, answer: dict[str, Any] | None, *, as_json: bool) -> None:
    """Print a delivery on one line, with what became of it."""
    if as_json:
        print_json({"delivery": delivery, "forwarded": answer}, indent=None)
        return
    refs = ", ".join(update["name"] for update in delivery["updates"])
    facts = [delivery["name"], delivery["event"], refs, delivery["id"]]
    line = "  ".join(escape(fact) for fact in facts if fact)
    out.print(f"{clock(delivery['received_at'])}  {line}{_outcome(answer)}", soft_wrap=True)


def _outcome(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return ""
    reason = answer.get("reason") or answer.get("detail")
    because = f": {escape(reason)}" if reason else ""
    if answer["status"] is None:
        return f"  → [yellow]not forwarded[/yellow]{because}"
    verdict = answer.get("verdict") or answer.get("error") or ""
    return f"  → {answer['status']} {coloured(verdict)} in {answer['milliseconds']} ms{because}"
