"""The command `pushgate`: the service's own commands here, those of its clients from `gateway.commands`."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import connections, dry_run, provider, records
from gateway.cli.options import AsJson, Data, derived_token, path_in
from gateway.cli.output import err, escape, out, print_json
from gateway.errors import PushgateError, SettingError

if TYPE_CHECKING:
    from gateway.settings import Settings

app = typer.Typer(
    help="Pushgate: verified webhooks in, execution requests out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys = typer.Typer(help="The secret key under which all secrets are sealed.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
SecretsDir = Annotated[Path | None, typer.Option("--secrets-dir", help="A folder with one file per setting.")]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        sys.stdout.write(f"pushgate {version('pushgate')}\n")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 for any free one.")] = None,
    role: Annotated[
        str | None, typer.Option(help="all; web: door and API; worker: what is behind it.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Door processes that share the port; more than one need PostgreSQL.")
    ] = None,
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Run the gateway: door, workers and relay, until SIGTERM or Ctrl-C."""
    named = {"host": host, "port": port, "data_dir": data, "role": role, "workers": workers}
    settings = _settings(named, config, secrets_dir)
    from gateway import logs  # noqa: PLC0415 - the client commands start without it

    logs.configure(settings.log_format)
    if settings.workers > 1:
        from gateway.server.supervisor import supervise  # noqa: PLC0415 - the client commands start without it

        sys.exit(supervise(settings))
    from gateway.data_dir import open_data  # noqa: PLC0415 - the same
    from gateway.server.server import serve  # noqa: PLC0415 - the client commands start without the service

    opened = open_data(settings)
    # A start without a terminal writes into a log, where no secret belongs.
    if opened.fresh_token is not None and err.is_terminal:
        err.print(
            f"Admin token, for the dashboard and the API, shown this once: [bold]{opened.fresh_token}[/bold]",
            soft_wrap=True,
        )
        err.print("On this machine the commands find it by themselves, with the same --data.")
    serve(settings, opened)


@app.command()
def migrate(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Bring the database up to date, and end: for those who do that before a new version starts."""
    from gateway.data_dir import open_data  # noqa: PLC0415 - the client commands start without the service

    open_data(_settings({"data_dir": data}, config, secrets_dir)).database.close()
    out.print("The database is up to date.")


@app.command()
def restore(
    learn: Annotated[
        bool,
        typer.Option("--learn", help="Take the present refs of every remote as known; run nothing for them."),
    ] = False,
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
    as_json: AsJson = False,
) -> None:
    """Prepare a database that was restored from a back-up, before the gateway starts on it."""
    if not learn:
        raise SettingError(
            "restore needs --learn: then what was pushed since the back-up is not run a second time. Without"
            " this command it is, under new ids; docs/restore.md tells when to want which"
        )
    from gateway.data_dir import learn_anew  # noqa: PLC0415 - the client commands start without the service

    count = learn_anew(_settings({"data_dir": data}, config, secrets_dir))
    if as_json:
        print_json({"connections": count})
    else:
        out.print(
            f"{count} connections learn where their refs are when the gateway starts; nothing is run for it."
        )


@keys.command("rotate")
def rotate_command(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
    as_json: AsJson = False,
) -> None:
    """Change the secret key. Stop a gateway that runs on this data folder before, and start it after."""
    from gateway.data_dir import rotate_key  # noqa: PLC0415 - the client commands start without the service

    count = rotate_key(_settings({"data_dir": data}, config, secrets_dir))
    if as_json:
        print_json({"secrets": count})
    else:
        out.print(f"{count} secrets are sealed under the new key. Start the gateway again; an admin token")
        out.print("that was made of the key is another one now.")


@keys.command("token")
def token_command(data: Data = None) -> None:
    """Print the admin token that belongs to the key in the data folder, for clients on other machines."""
    sys.stdout.write(f"{derived_token(data)}\n")


for commands in (connections, dry_run, records, provider):
    app.add_typer(commands.app)
app.add_typer(keys, name="keys")


def main() -> None:
    """Run the command; what goes wrong is one sentence on standard error, and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        # Not every locale has the characters of our trees and names.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except PushgateError as error:
        err.print(f"[red]pushgate:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A full disk, a file that nobody may read: it is this machine's.
        err.print(f"[red]pushgate:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def _settings(named: Mapping[str, Any], config: Path | None, secrets_dir: Path | None) -> "Settings":
    """Return the settings of the service; of `named`, what the command line has named."""
    from gateway.settings import read_settings  # noqa: PLC0415 - the client commands start without them

    return read_settings(
        given={name: value for name, value in named.items() if value is not None},
        config=config or path_in("PUSHGATE_CONFIG"),
        secrets_dir=secrets_dir or path_in("PUSHGATE_SECRETS_DIR"),
    )
