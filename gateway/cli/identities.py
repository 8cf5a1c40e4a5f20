"""The commands about identities: tokens of providers that connections share."""

import sys
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, part
from gateway.cli.options import PROVIDER_NAMES, AsJson, Data, client_of, text_of
from gateway.cli.output import empty_list, escape, local_time, out, print_json, print_list

app = typer.Typer(help="Manage the tokens of providers that connections share.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The identity's name.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="A file with the token; by default, it is read from standard input.")
]
Expires = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"], help="When the token expires; a date begins in UTC."
    ),
]


@app.command()
def add(
    name: Name,
    provider: Annotated[
        str, typer.Option(help=f"One of: {', '.join(name for name in PROVIDER_NAMES if name != 'generic')}.")
    ],
    user: Annotated[
        str | None, typer.Option(help="The user of the token, if the provider wants one.")
    ] = None,
    api_url: Annotated[
        str | None,
        typer.Option(help="The base URL of the API; by default that of the provider's own service."),
    ] = None,
    expires: Expires = None,
    rotate: Annotated[
        bool,
        typer.Option(help="Replace a GitLab token two weeks before it ends, which revokes the old one."),
    ] = True,
    token_file: TokenFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Add an identity. Its token comes from standard input or a file, and is never shown again."""
    body = {
        "name": name,
        "provider": provider,
        "token": _token(token_file),
        "user": user,
        "api_url": api_url,
        "expires_at": _instant(expires),
        "rotates": None if rotate else False,
    }
    made = client_of(data).send("POST", "/identities", body)
    if as_json:
        print_json(made)
    else:
        out.print(f"Added. Use it with `pushgate connect … --identity {escape(made['name'])}`.")


@app.command()
def renew(
    name: Name,
    expires: Expires = None,
    token_file: TokenFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Give an identity a new token, from standard input or a file, before the old one expires."""
    body = {"token": _token(token_file), "expires_at": _instant(expires)}
    changed = client_of(data).send("PATCH", f"/identities/{part(name)}", body)
    if as_json:
        print_json(changed)
    else:
        out.print("The new token is used from now on.")


@app.command("list")
def list_command(data: Data = None, as_json: AsJson = False) -> None:
    """List the identities, without their tokens."""
    answer = {"items": list(client_of(data).items("/identities")), "next": None}

    def row(identity: Any) -> list[str]:
        texts = [identity["name"], identity["provider"], identity["user"] or "-", identity["api_url"] or "-"]
        return [*map(escape, texts), _expiry(identity["expires_at"])]

    columns = ["name", "provider", "user", "API", "expires"]
    print_list(answer, columns, row, empty=empty_list("identities"), as_json=as_json)


@app.command()
def delete(name: Name, data: Data = None) -> None:
    """Delete an identity and its token, if no connection uses it."""
    client_of(data).send("DELETE", f"/identities/{part(name)}")
    out.print("Deleted. Revoke the token at the provider, too.")


def _token(file: Path | None) -> str:
    if file is not None:
        return text_of(file) or ""
    if sys.stdin.isatty():
        return getpass("Token: ")
    token = sys.stdin.read()
    if not token.strip():
        raise ApiError("no token: write it to standard input, or pass --token-file")
    return token


def _instant(expires: datetime | None) -> str | None:
    if expires is None:
        return None
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).isoformat()


def _expiry(expires_at: str | None) -> str:
    if expires_at is None:
        return "never"
    has_expired = datetime.fromisoformat(expires_at) <= datetime.now(UTC)
    return f"[red]{local_time(expires_at)} (expired)[/red]" if has_expired else local_time(expires_at)
