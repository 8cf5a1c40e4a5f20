"""The commands about contexts: sign in at a gateway, list the gateways, choose one, forget one."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.cli.api_client import Client
from gateway.cli.contexts import Context, store, stored_contexts
from gateway.cli.options import AsJson, read_secret
from gateway.cli.output import empty_list, err, escape, out, print_json, print_list

app = typer.Typer()
context = typer.Typer(help="Manage the gateways that `pushgate login` has stored.", no_args_is_help=True)

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

Named = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="The gateway's address, such as https://pushgate.example.")],
    name: Annotated[
        str | None, typer.Option(help="The name of the context; by default the host in the URL.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the admin token; by default, it is asked for, or read from a pipe."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign in at a gateway: check its admin token, and store both as the current context.

    The token is stored in a file that only you can read. It is never an argument, and is not printed.

    Examples: pushgate login https://pushgate.example; pushgate login URL --name production < token
    """
    parts = urlsplit(url)
    token = read_secret(token_file, "admin token", "--token-file").strip()
    client = Client(url, token, origin="the argument")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        err.print(
            f"[yellow]Warning:[/yellow] {escape(client.url)} is not encrypted: others in the network can read"
            " the admin token.",
            soft_wrap=True,
        )
    # Any operation that needs the token and is quick.
    client.get("/connections", limit=1)
    chosen = name or parts.netloc.rpartition("@")[2]
    store(stored_contexts().added(chosen, Context(client.url, token)))
    if as_json:
        print_json({"name": chosen, "url": client.url})
    else:
        out.print(
            f"Signed in: commands use [bold]{escape(chosen)}[/bold], {escape(client.url)}, from now on.",
            soft_wrap=True,
        )


@context.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List the contexts, and which one commands use.

    Examples: pushgate context list; pushgate context list --json
    """
    contexts = stored_contexts()
    items = [
        {"name": name, "url": one.url, "is_current": name == contexts.current}
        for name, one in contexts.known.items()
    ]

    def row(shown: Any) -> list[str]:
        return [escape(shown["name"]), escape(shown["url"]), "yes" if shown["is_current"] else "no"]

    columns = ["name", "url", "current"]
    print_list({"items": items, "next": None}, columns, row, empty=empty_list("contexts"), as_json=as_json)


@context.command()
def use(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The context's name; none for the local gateway.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the context that commands use; without a name, they use the gateway on this machine again.

    Examples: pushgate context use production; pushgate context use
    """
    store(stored_contexts().using(name))
    if as_json:
        print_json({"current": name})
    else:
        gateway = f"[bold]{escape(name)}[/bold]" if name is not None else "the gateway on this machine"
        out.print(f"Commands use {gateway} from now on.")


@context.command()
def delete(name: Named, as_json: AsJson = False) -> None:
    """Forget a context and its admin token. The gateway is not changed.

    Example: pushgate context delete production
    """
    contexts = stored_contexts()
    url = contexts.get(name).url
    store(contexts.without(name))
    if as_json:
        print_json({"name": name, "url": url})
    else:
        out.print(f"Forgotten: {escape(name)}, {escape(url)}.", soft_wrap=True)
