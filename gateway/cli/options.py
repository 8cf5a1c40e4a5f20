"""What several commands take: options, and the client that they ask with."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.api_client import ApiError, Client

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

AsJson = Annotated[bool, typer.Option("--json", help="Print what the API answers, for machines.")]
Data = Annotated[Path | None, typer.Option("--data", help="The data folder.", show_default=False)]
File = Annotated[
    typer.FileBinaryRead, typer.Option("--file", "-f", help="A file of connections; - for standard input.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="How many at most.")]
OfConnection = Annotated[
    str | None, typer.Option("--connection", help="Only those of this connection: its id or its name.")
]


def client_of(data: Path | None) -> Client:
    """Return a client of the gateway at PUSHGATE_URL; its token is the environment's or the data folder's."""
    url = os.environ.get("PUSHGATE_URL", "http://127.0.0.1:8080")
    return Client(url, os.environ.get("PUSHGATE_ADMIN_TOKEN") or derived_token(data))


def connection_id(client: Client, text: str) -> str:
    """Return the id of the connection with this id or name. Raises `ApiError`."""
    named = [one["id"] for one in client.items("/connections", name=text) if one["name"] == text]
    if len(named) > 1:
        raise ApiError(f"several connections have the name {text}: name one by its id ({', '.join(named)})")
    return named[0] if named else text


def derived_token(data: Path | None) -> str:
    """Return the admin token that is made of the key in the data folder. Raises `ApiError`."""
    from gateway.crypto.keyring import Keyring, read_key  # noqa: PLC0415 - the same
    from gateway.settings import data_home  # noqa: PLC0415 - whoever brings a token starts without it

    folder = data or path_in("PUSHGATE_DATA_DIR") or data_home()
    try:
        return Keyring(read_key(folder / "secret.key")).admin_token()
    except OSError:
        raise ApiError(
            f"there is no admin token: set PUSHGATE_ADMIN_TOKEN, or name the gateway's data folder with"
            f" --data (there is no key in {folder})"
        ) from None


def path_in(variable: str) -> Path | None:
    """Return the path that a variable of the environment names, if it does."""
    from gateway.settings import expanded  # noqa: PLC0415 - whoever brings a token starts without it

    return expanded(Path(os.environ[variable])) if os.environ.get(variable) else None
