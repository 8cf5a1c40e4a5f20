"""The commands on the side of a git provider: send a signed webhook, print a hook for a git server."""

import sys
import time
import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.api_client import ApiError, post_webhook
from gateway.cli.options import PROVIDER_NAMES, AsJson
from gateway.cli.output import coloured, escape, out, print_json

if TYPE_CHECKING:
    from providers.model import Provider

app = typer.Typer()


@app.command()
def send(
    url: Annotated[str, typer.Argument(help="The connection's webhook URL.")],
    payload: Annotated[
        typer.FileBinaryRead, typer.Argument(help="The payload: a file, or - for standard input.")
    ],
    provider: Annotated[str, typer.Option(help=f"The provider to imitate: {', '.join(PROVIDER_NAMES)}.")],
    secret: Annotated[str, typer.Option(help="The connection's secret.", envvar="WEBHOOK_SECRET")],
    event: Annotated[str, typer.Option(help="The event, by the provider's name.")] = "push",
    delivery: Annotated[str | None, typer.Option(help="The delivery's id; by default a new id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a payload as the provider would, and post it to a webhook URL."""
    imitated = _provider(provider)
    body = payload.read()
    headers = _signed(imitated, body, secret, event=event, delivery=delivery or str(uuid.uuid4()))
    started = time.monotonic()
    status, answer = post_webhook(url, body, headers)
    took = (time.monotonic() - started) * 1000
    if as_json:
        print_json({"status": status, **answer})
    else:
        _show(answer, status, took)
    if status >= HTTPStatus.BAD_REQUEST:
        raise typer.Exit(1)


def _provider(name: str) -> "Provider":
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    if name not in PROVIDERS:
        raise ApiError(f"unknown provider {name}: choose {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def _signed(provider: "Provider", body: bytes, secret: str, *, event: str, delivery: str) -> dict[str, str]:
    """Return the headers of a delivery, with its signature. Raises `ApiError`."""
    try:
        return provider.sign(
            event=event,
            body=body,
            # Arguments that are not text in the locale, such as C, become the original bytes again.
            secret=secret.encode("utf-8", "surrogateescape"),
            delivery=delivery,
            now=datetime.now(UTC),
        )
    except ValueError as error:
        raise ApiError(f"cannot sign with this secret: {error}") from error


def _show(answer: Any, status: int, took: float) -> None:
    verdict = answer.get("verdict") or answer.get("error") or ""
    reason = answer.get("reason") or answer.get("detail")
    detail = f": {escape(reason)}" if reason else ""
    out.print(f"{status} {coloured(verdict)} in {took:.0f} ms{detail}")
    if answer.get("delivery"):
        out.print(f"delivery {answer['delivery']}")


@app.command("hook-script")
def hook_script_command(
    url: Annotated[str, typer.Option(help="The connection's webhook URL.")],
    secret_file: Annotated[
        str, typer.Option(help="The path of the secret on the git server; give the file mode 0600.")
    ],
) -> None:
    """Print a post-receive hook for your own git server (POSIX sh with curl and openssl)."""
    from providers.post_receive import hook_script  # noqa: PLC0415 - the other commands start without it

    sys.stdout.write(hook_script(url=url, secret_file=secret_file))
