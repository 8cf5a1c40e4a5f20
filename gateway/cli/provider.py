"""The commands on a git provider's side: send a webhook as it would; the hook of a server of one's own."""

import sys
import time
import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

import typer

from gateway.cli.api_client import ApiError, post_webhook
from gateway.cli.options import PROVIDER_NAMES, AsJson
from gateway.cli.output import coloured, escape, out, print_json

app = typer.Typer()


@app.command()
def send(
    url: Annotated[str, typer.Argument(help="The connection's webhook URL.")],
    payload: Annotated[
        typer.FileBinaryRead, typer.Argument(help="The payload: a file, or - for standard input.")
    ],
    provider: Annotated[str, typer.Option(help=f"The provider to send as: {', '.join(PROVIDER_NAMES)}.")],
    secret: Annotated[str, typer.Option(help="The connection's secret.", envvar="WEBHOOK_SECRET")],
    event: Annotated[str, typer.Option(help="The provider's name of the event.")] = "push",
    delivery: Annotated[str | None, typer.Option(help="The delivery's id, if not a new one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play the provider: sign a payload and post it."""
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    if provider not in PROVIDERS:
        raise ApiError(f"{provider} is none of {', '.join(PROVIDERS)}")
    body = payload.read()
    try:
        headers = PROVIDERS[provider].sign(
            event=event,
            body=body,
            # As bytes that are no text in a locale such as C, so that they are the bytes which were given.
            secret=secret.encode("utf-8", "surrogateescape"),
            delivery=delivery or str(uuid.uuid4()),
            now=datetime.now(UTC),
        )
    except ValueError as error:
        raise ApiError(f"nothing can be signed with this: {error}") from error
    started = time.monotonic()
    status, answer = post_webhook(url, body, headers)
    took = (time.monotonic() - started) * 1000
    if as_json:
        print_json({"status": status, **answer})
    else:
        verdict = answer.get("verdict") or answer.get("error") or ""
        told = answer.get("reason") or answer.get("detail")
        out.print(f"{status} {coloured(verdict)} in {took:.0f} ms" + (f": {escape(told)}" if told else ""))
        if answer.get("delivery"):
            out.print(f"delivery {answer['delivery']}")
    if status >= HTTPStatus.BAD_REQUEST:
        raise typer.Exit(1)


@app.command("hook-script")
def hook_script_command(
    url: Annotated[str, typer.Option(help="The connection's webhook URL.")],
    secret_file: Annotated[str, typer.Option(help="Where the secret will be, on the git server; mode 0600.")],
) -> None:
    """Print a post-receive hook for a git server of your own: POSIX sh with curl and openssl."""
    from providers.post_receive import hook_script  # noqa: PLC0415 - the other commands start without it

    sys.stdout.write(hook_script(url=url, secret_file=secret_file))
