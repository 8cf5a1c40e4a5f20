"""Options that several commands share, and the client of the REST API."""

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.api_client import ApiError, Client
from gateway.errors import Invalid

_AGO = re.compile(r"(\d{1,4})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

# As in providers.PROVIDERS, which takes half a second to import.
PROVIDER_NAMES = (
    "github",
    "gitlab",
    "bitbucket",
    "bitbucket-server",
    "azure-devops",
    "gitea",
    "forgejo",
    "gogs",
    "generic",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]
Data = Annotated[Path | None, typer.Option("--data", help="The gateway's data folder.", show_default=False)]
File = Annotated[
    typer.FileBinaryRead, typer.Option("--file", "-f", help="The connections file; - for standard input.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="The maximum number of items.")]
OfConnection = Annotated[
    str | None, typer.Option("--connection", help="Only those of this connection, by id or name.")
]
OfBranch = Annotated[str | None, typer.Option("--branch", help="Only those of this ref, such as main.")]
OfAuthor = Annotated[
    str | None,
    typer.Option("--author", help="Only those of this person: who pushed, or the commit's author."),
]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Only those since 2026-11-23, 2026-11-23T09:00, 2d or 3h ago."),
]
Until = Annotated[str | None, typer.Option("--until", help="Only those before then.")]
Search = Annotated[
    str | None,
    typer.Option("--search", help="Only those in which a connection, ref, person or commit is so named."),
]


def connection_id(client: Client, text: str) -> str:
    """Return the id of the connection with this id or name. Raises `ApiError`."""
    named = [found["id"] for found in client.items("/connections", name=text) if found["name"] == text]
    if len(named) > 1:
        raise ApiError(f"several connections have the name {text}: give the id instead ({', '.join(named)})")
    return named[0] if named else text


def moment(option: str, text: str | None) -> str | None:
    """Return the instant of an option as the API takes it; None if the option was not given.

    It is a duration before now, or a date, which is local unless it names a zone. Raises `Invalid`.
    """
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return (datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
    try:
        return datetime.fromisoformat(text.strip()).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise Invalid(
            f"{option} {text}: give a date such as 2026-11-23, or a duration such as 7d or 12h"
        ) from None


def push_filters(
    *,
    connection: str | None,
    branch: str | None,
    author: str | None,
    since: str | None,
    until: str | None,
    search: str | None,
) -> dict[str, str | None]:
    """Return the query parameters of the options that deliveries and executions share. Raises `Invalid`."""
    return {
        "connection": connection,
        "branch": branch,
        "author": author,
        "since": moment("--since", since),
        "until": moment("--until", until),
        "q": search,
    }


def text_of(path: Path | None) -> str | None:
    """Return the text of a file that an option names. Raises `ApiError`."""
    try:
        text = path.read_text(encoding="utf-8") if path is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"{path} cannot be read: {error}") from error
    if text is not None and not text.strip():
        raise ApiError(f"{path} is empty")
    return text


def read_secret(path: Path | None, noun: str, option: str, *, has_lines: bool = False) -> str:
    """Return the secret in a file that an option names, or else from standard input. Raises `ApiError`."""
    if path is not None:
        return text_of(path) or ""
    # A secret with lines, such as a key, cannot be entered at a prompt.
    if sys.stdin.isatty() and not has_lines:
        return getpass(f"{noun[:1].upper()}{noun[1:]}: ")
    secret = "" if sys.stdin.isatty() else sys.stdin.read()
    if not secret.strip():
        raise ApiError(f"no {noun}: write it to standard input, or pass {option}")
    return secret


def data_folder(data: Path | None) -> Path:
    """Return the data folder: that of the option, of the environment, or the default."""
    from gateway.settings import data_home  # noqa: PLC0415 - commands with a token start without it

    return data or path_in("PUSHGATE_DATA_DIR") or data_home()


def derived_token(folder: Path) -> str:
    """Return the admin token that is derived from the key in the data folder. Raises `OSError`."""
    from gateway.crypto.keyring import Keyring, read_key  # noqa: PLC0415 - the same

    return Keyring(read_key(folder / "secret.key")).admin_token()


def path_in(variable: str) -> Path | None:
    """Return the path in an environment variable, or None if it is not set."""
    from gateway.settings import expanded  # noqa: PLC0415 - the same

    return expanded(Path(os.environ[variable])) if os.environ.get(variable) else None
