"""The commands on the side of a git provider: send signed webhooks, print a hook for a git server."""

import json
import re
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.api_client import ApiError, part, post_webhook
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import PROVIDER_NAMES, AsJson, connection_id, text_of
from gateway.cli.output import coloured, err, escape, out, print_json
from gateway.errors import Invalid

if TYPE_CHECKING:
    from providers.model import Provider

app = typer.Typer()
trigger = typer.Typer(help="Play a connection's provider: send a webhook.", no_args_is_help=True)

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
    """Sign a payload as the provider would, and post it to a webhook URL.

    Example: pushgate send WEBHOOK_URL payload.json --provider github
    """
    body = payload.read()
    headers = signed_headers(
        imitated_provider(provider), body, secret, event=event, delivery=delivery or str(uuid.uuid4())
    )
    _post(url, body, headers, as_json=as_json)


@client_command(trigger, "push")
def push_command(
    connection: Annotated[str, typer.Argument(metavar="CONNECTION", help="The connection's id or name.")],
    branch: Annotated[str | None, typer.Option(help="The branch; by default the default branch.")] = None,
    commit: Annotated[
        str | None, typer.Option(help="The commit, in full; by default the branch's known position.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="The connection's secret.", envvar="WEBHOOK_SECRET")
    ] = None,
    secret_file: Annotated[Path | None, typer.Option(help="A file with the connection's secret.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a connection the webhook of a push, signed with its secret, as its provider would.

    It goes to the connection's webhook URL, through whatever is in front of it. Without --commit, the push
    ends at the position that Pushgate knows of the branch; a push that was reported before is a duplicate:
    `pushgate replay` plans it again.

    Examples: pushgate trigger push acme/digits --branch main; pushgate trigger push acme/digits --commit SHA
    """
    key = secret_of_connection(secret, secret_file)
    client = client_of()
    path = f"/connections/{part(connection_id(client, connection))}"
    shown = client.get(path)
    if shown["source"] is not None:
        raise Invalid(
            f"the webhooks of {shown['name']} arrive at its source {shown['source']['name']}: send it"
            " a payload that names the repository with `pushgate send`"
        )
    imitated = imitated_provider(shown["provider"])
    move = _move(client.get(f"{path}/refs")["items"], branch or shown["remote"]["default_branch"], commit)
    body = json.dumps(imitated.push(**move)).encode()
    headers = signed_headers(imitated, body, key, event=imitated.PUSH_EVENT, delivery=str(uuid.uuid4()))
    verdict = _post(shown["hook_url"], body, headers, as_json=as_json)
    if verdict == "duplicate" and commit is None and not as_json:
        err.print(
            "This is where Pushgate last saw the branch. For a newer commit, give --commit; `pushgate fetch"
            f" {escape(connection)}` finds it as well. `pushgate replay` plans the known push again.",
            soft_wrap=True,
        )


def _move(refs: Any, branch: str | None, commit: str | None) -> dict[str, Any]:
    """Return the move of a branch to a commit, by default to its known position. Raises `Invalid`."""
    if branch is None:
        raise Invalid("the default branch is not known: give --branch")
    ref = f"refs/heads/{branch}"
    known = next((one["id"] for one in refs if one["ref"] == ref), None)
    after = commit.lower() if commit is not None else known
    if after is None:
        raise Invalid(
            f"the position of {branch} is not known: give --commit, or have the repository read with"
            " `pushgate check`"
        )
    if not _COMMIT.fullmatch(after):
        raise Invalid(f"--commit {commit}: give all 40 or 64 hex digits")
    return {"ref": ref, "before": known if known != after else None, "after": after}


def _post(url: str, body: bytes, headers: Mapping[str, str], *, as_json: bool) -> str | None:
    """Post a webhook, show the answer, and return its verdict; exit with 1 if it is refused."""
    started = time.monotonic()
    status, answer = post_webhook(url, body, headers)
    took = (time.monotonic() - started) * 1000
    if as_json:
        print_json({"status": status, **answer})
    else:
        _show(answer, status, took)
    if status >= HTTPStatus.BAD_REQUEST:
        raise typer.Exit(1)
    verdict: str | None = answer.get("verdict")
    return verdict


def secret_of_connection(secret: str | None, file: Path | None) -> str:
    """Return the secret of an option or the environment, or that in a file. Raises `Invalid`."""
    given = text_of(file) if file is not None else secret
    if given is None:
        raise Invalid("give the connection's secret with --secret-file or in WEBHOOK_SECRET")
    return given.rstrip("\r\n")


def imitated_provider(name: str) -> "Provider":
    """Return the provider with this name. Raises `ApiError`."""
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    if name not in PROVIDERS:
        raise ApiError(f"unknown provider {name}: choose {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def signed_headers(
    provider: "Provider", body: bytes, secret: str, *, event: str, delivery: str
) -> dict[str, str]:
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
    """Print a post-receive hook for your own git server (POSIX sh with curl and openssl).

    Example: pushgate hook-script --url WEBHOOK_URL --secret-file /etc/pushgate-secret
    """
    from providers.post_receive import hook_script  # noqa: PLC0415 - the other commands start without it

    sys.stdout.write(hook_script(url=url, secret_file=secret_file))
