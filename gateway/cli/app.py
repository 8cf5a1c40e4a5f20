"""The commands of `pushgate`: the service's own, and the client commands of the other modules."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from gateway.cli import (
    changes,
    connect,
    connections,
    dead_letters,
    deliveries,
    dry_run,
    executions,
    identities,
    listen,
    login,
    logs,
    notifications,
    provider,
    redeliver,
    registrations,
    replay,
    show,
    sources,
    status,
    webhooks,
)
from gateway.cli.api_client import ApiError
from gateway.cli.gateways import InContext, Url, Utc, take_options
from gateway.cli.main import COMPLETION, print_version
from gateway.cli.options import AsJson, Data, data_folder, derived_token, path_in
from gateway.cli.output import err, out, print_json
from gateway.errors import Invalid, PushgateError, SettingError

if TYPE_CHECKING:
    from typer._click.core import Command, Context
    from typer._click.formatting import HelpFormatter

    from gateway.settings import Settings

# Options of most commands that are also taken before their names.
_BEFORE = {"data": "--data", "as_json": "--json"}

# Longer than any first sentence of a help text.
_MAX_SENTENCE = 1000


class Commands(TyperGroup):
    """A command with commands of its own: its help has the whole first sentence of each of theirs.

    Its commands take the options that precede the first name as if these followed their own.
    """

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        """Return the command of these arguments, and pass the options before it on as its defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        before = ctx.find_root().params
        given = {option: before[f"_{option}"] for option in _BEFORE if before.get(f"_{option}")}
        if name is not None and command is not None and not isinstance(command, TyperGroup):
            for option in given.keys() - {parameter.name for parameter in command.params}:
                ctx.fail(f"{ctx.command_path} {name} has no option {_BEFORE[option]}")
            ctx.default_map = {name: given}
        return name, command, rest

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write the list of commands; the base class cuts sentences that do not fit on one line."""
        names = self.list_commands(ctx)
        rows = [(name, self.commands[name].get_short_help_str(_MAX_SENTENCE)) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class ClosedPipe(Exception):
    """The reader of standard output has closed it. Of a BrokenPipeError, typer would make the status 1."""


class Pushgate(Commands):
    """The command `pushgate`."""

    def invoke(self, ctx: "Context") -> Any:
        """Run a command. Raises `ClosedPipe`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ClosedPipe from error


app = typer.Typer(
    help="Pushgate: verified webhooks in, execution requests out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Pushgate,
)
keys = typer.Typer(help="Manage the secret key that encrypts all stored secrets.", no_args_is_help=True)

Shell = Literal["bash", "zsh", "fish"]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
SecretsDir = Annotated[
    Path | None, typer.Option("--secrets-dir", help="A folder with one file for each setting.")
]


def _version(is_wanted: bool) -> None:
    if is_wanted:
        print_version()
        raise typer.Exit


@app.callback()
def options(
    *,
    _is_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version),
    ] = False,
    gateway_url: Url = None,
    gateway_context: InContext = None,
    _data: Data = None,
    utc: Utc = False,
    _as_json: AsJson = False,
) -> None:
    """Take the options that precede a command; `Commands` passes on those without a use here."""
    take_options(gateway_url, gateway_context, utc=utc)


@app.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 for any free port.")] = None,
    role: Annotated[
        str | None,
        typer.Option(help="web (webhooks, API, dashboard), worker (fetch, plan, publish), or all."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes of this role on one port; more than 1 require PostgreSQL.")
    ] = None,
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C.

    Example: pushgate serve --data .pushgate
    """
    named = {"host": host, "port": port, "data_dir": data, "role": role, "workers": workers}
    settings = _settings(named, config, secrets_dir)
    from gateway import logs  # noqa: PLC0415 - client commands start without it

    logs.configure(settings.log_format, role=settings.role)
    if settings.workers > 1:
        from gateway.server.supervisor import supervise  # noqa: PLC0415 - client commands start without it

        sys.exit(supervise(settings))
    from gateway.data_dir import open_data  # noqa: PLC0415 - the same
    from gateway.server.server import serve  # noqa: PLC0415 - client commands start without the service

    opened = open_data(settings)
    _show_token(opened.fresh_token)
    serve(settings, opened)


def _show_token(fresh: str | None) -> None:
    # Without a terminal, standard error is usually a log, where no secret belongs.
    if fresh is not None and err.is_terminal:
        err.print(
            f"Admin token for the dashboard and the API (shown only once): [bold]{fresh}[/bold]",
            soft_wrap=True,
        )
        err.print("Commands on this machine find it automatically, given the same --data.")


@app.command()
def migrate(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Upgrade the database schema and exit.

    Example: pushgate migrate --data .pushgate
    """
    from gateway.data_dir import open_data  # noqa: PLC0415 - client commands start without the service

    open_data(_settings({"data_dir": data}, config, secrets_dir)).database.close()
    out.print("The database is up to date.")


@app.command()
def restore(
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Record the current refs of every remote as known; execute nothing.",
        ),
    ] = False,
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
    as_json: AsJson = False,
) -> None:
    """Prepare a database that was restored from a backup, before the gateway starts on it.

    Example: pushgate restore --learn --data .pushgate
    """
    if not learn:
        raise SettingError(
            "restore requires --learn: pushes since the backup are then not executed a second time. If you"
            " start the gateway without this command, they are, with new ids; see docs/restore.md"
        )
    from gateway.data_dir import learn_refs  # noqa: PLC0415 - client commands start without the service

    count = learn_refs(_settings({"data_dir": data}, config, secrets_dir))
    if as_json:
        print_json({"connections": count})
    else:
        out.print(
            f"{count} connections record their current refs when the gateway starts; nothing is executed."
        )


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell: bash, zsh or fish.")],
) -> None:
    """Print a script that completes commands and options in a shell.

    Examples: pushgate completion bash >> ~/.bashrc; pushgate completion zsh >> ~/.zshrc;
    pushgate completion fish > ~/.config/fish/completions/pushgate.fish
    """
    from typer._completion_shared import get_completion_script  # noqa: PLC0415 - only here

    script = get_completion_script(prog_name="pushgate", complete_var=COMPLETION, shell=shell)
    sys.stdout.write(f"{script}\n")


@keys.command("rotate")
def rotate_command(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
    as_json: AsJson = False,
) -> None:
    """Change the secret key. Stop the gateway of this data folder first, and start it afterwards.

    Example: pushgate keys rotate --data .pushgate
    """
    from gateway.data_dir import rotate_key  # noqa: PLC0415 - client commands start without the service

    count = rotate_key(_settings({"data_dir": data}, config, secrets_dir))
    if as_json:
        print_json({"secrets": count})
    else:
        out.print(
            f"{count} secrets are encrypted under the new key. Start the gateway again. If the admin token"
        )
        out.print("was derived from the key, it has changed: run `pushgate keys token`.")


@keys.command("token")
def token_command(data: Data = None) -> None:
    """Print the admin token derived from the key in the data folder, for clients on other machines.

    Example: pushgate keys token --data .pushgate
    """
    folder = data_folder(data)
    try:
        token = derived_token(folder)
    except OSError as error:
        raise PushgateError(
            f"the key of the gateway cannot be read: {error}. Give its data folder with --data"
        ) from error
    sys.stdout.write(f"{token}\n")


for commands in (
    login,
    status,
    show,
    connect,
    connections,
    changes,
    webhooks,
    redeliver,
    replay,
    dry_run,
    deliveries,
    logs,
    listen,
    executions,
    dead_letters,
    provider,
):
    app.add_typer(commands.app)
app.add_typer(provider.trigger, name="trigger", cls=Commands)
app.add_typer(identities.app, name="identity", cls=Commands)
app.add_typer(sources.app, name="source", cls=Commands)
app.add_typer(notifications.app, name="notify", cls=Commands)
app.add_typer(login.context, name="context", cls=Commands)
app.add_typer(registrations.app, name="webhook", cls=Commands)
app.add_typer(keys, name="keys", cls=Commands)


def sentence(error: PushgateError) -> str:
    """Return an error, with the gateway that has answered."""
    if isinstance(error, Invalid) and error.faults:
        return "\n  ".join(fault.detail for fault in error.faults)
    gateway = error.gateway if isinstance(error, ApiError) else None
    return f"{error} [gateway {gateway}]" if gateway is not None else str(error)


def _settings(named: Mapping[str, Any], config: Path | None, secrets_dir: Path | None) -> "Settings":
    """Return the settings of the service; options of the command line that are None were not given."""
    from gateway.settings import read_settings  # noqa: PLC0415 - client commands start without them

    return read_settings(
        given={name: value for name, value in named.items() if value is not None},
        config=config or path_in("PUSHGATE_CONFIG"),
        secrets_dir=secrets_dir or path_in("PUSHGATE_SECRETS_DIR"),
    )
