"""The command `pushgate`: the service itself, and a client of its REST API for people and for scripts."""

import os
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from gateway import telemetry
from gateway.client import ApiError, Client, part, post_webhook
from gateway.errors import PushgateError
from gateway.guides import GUIDES
from gateway.plan.triggers import parse_trigger
from gateway.printing import (
    DELIVERY_COLUMNS,
    change_line,
    coloured,
    delivery_row,
    execution_line,
    local_time,
    names_of,
    out,
    print_facts,
    print_json,
    print_list,
    short,
)
from gateway.settings import Settings, data_home, read_settings
from gateway.store.vault import Vault
from providers import PROVIDERS
from providers.post_receive import hook_script

app = typer.Typer(
    help="Pushgate: verified webhooks in, execution requests out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print what the API answers, for machines.")]
Data = Annotated[Path | None, typer.Option("--data", help="The data folder.", show_default=False)]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
SecretsDir = Annotated[Path | None, typer.Option("--secrets-dir", help="A folder with one file per setting.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="How many at most.")]
OfConnection = Annotated[str | None, typer.Option("--connection", help="Only those of this connection.")]

_POLL_SECONDS = 0.1


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
    telemetry.configure(settings.log_format)
    if settings.workers > 1:
        from gateway.supervisor import supervise  # noqa: PLC0415 - the client commands start without it

        sys.exit(supervise(settings))
    from gateway.app import serve  # noqa: PLC0415 - the client commands start without the service
    from gateway.data import open_data  # noqa: PLC0415 - the same

    opened = open_data(settings)
    # A start without a terminal writes into a log, where no secret belongs.
    if opened.fresh_token is not None and _err.is_terminal:
        _err.print(f"Admin token, shown this once: [bold]{opened.fresh_token}[/bold]", soft_wrap=True)
        _err.print("On this machine the commands find it by themselves, with the same --data.")
    serve(settings, opened)


@app.command()
def migrate(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Bring the database up to date, and end: for those who do that before a new version starts."""
    from gateway.data import open_data  # noqa: PLC0415 - the client commands start without the service

    open_data(_settings({"data_dir": data}, config, secrets_dir)).database.close()
    out.print("The database is up to date.")


@app.command()
def connect(
    url: Annotated[str, typer.Argument(help="The repository's clone URL.")],
    provider: Annotated[str, typer.Option(help=f"One of: {', '.join(PROVIDERS)}.")],
    project: Annotated[str, typer.Option(help="The platform's project.")],
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(help="STEP, STEP@BRANCHES or STEP@tag:TAGS; may be given several times."),
    ] = None,
    yaml_path: Annotated[str, typer.Option(help="Where valohai.yaml is in the repository.")] = "valohai.yaml",
    secret: Annotated[
        str | None,
        typer.Option(help="The webhook's secret; one is made if you name none.", envvar="WEBHOOK_SECRET"),
    ] = None,
    private_key: Annotated[
        Path | None,
        typer.Option(help="A file with the private key, without a passphrase."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="The user name for https, if one is needed.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="A file with the password or token for https.")
    ] = None,
    host_keys: Annotated[
        Path | None, typer.Option(help="A file like known_hosts: the only keys that the ssh host may have.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Take its webhooks only from this network, such as 192.0.2.0/24; several times."),
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Connect a repository; prints its webhook URL, its secret (this once), and what to do next."""
    body: dict[str, Any] = {
        "url": url,
        "provider": provider,
        "project": project,
        "yaml_path": yaml_path,
        "networks": network or [],
        "triggers": [parse_trigger(text).model_dump(mode="json") for text in trigger or []],
        **({"name": name} if name is not None else {}),
        **({"secret": secret} if secret is not None else {}),
    }
    credentials = {
        "user": user,
        "private_key": _text(private_key),
        "password": (_text(password_file) or "").rstrip("\r\n") or None,
        "host_keys": _text(host_keys),
    }
    if any(credentials.values()):
        body["credentials"] = {key: value for key, value in credentials.items() if value is not None}
    made = _client(data).send("POST", "/connections", body)
    if as_json:
        print_json(made)
        return
    out.print(
        f"Connected [bold]{escape(made['name'])}[/bold] to project [bold]{escape(made['project'])}[/bold].\n"
    )
    print_facts(
        {
            "connection": made["id"],
            "webhook URL": made["hook_url"],
            "secret": f"{made['secret']}  (shown this once)",
            "triggers": ", ".join(trigger["name"] for trigger in made["triggers"])
            or "none: pushes are only fetched",
        }
    )
    if made["deploy_key"] is not None:
        out.print("\nDeploy key, to be added to the repository (read access is enough):")
        out.print(escape(made["deploy_key"]), soft_wrap=True)
    out.print("\nNext:")
    for line in GUIDES[provider].lines():
        out.print(f"  {line}", soft_wrap=True)


@app.command()
def connections(data: Data = None, as_json: AsJson = False) -> None:
    """List the connections."""
    answer = _client(data).get("/connections")

    def row(one: Any) -> list[str]:
        texts = [one["name"], one["provider"], one["project"], names_of(one["triggers"]) or "-", one["url"]]
        return [one["id"], *map(escape, texts)]

    print_list(answer, ["id", "name", "provider", "project", "triggers", "url"], row, as_json=as_json)


@app.command("apply")
def apply_command(
    file: Annotated[typer.FileText, typer.Option("--file", "-f", help="The file; - for standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what the file doesn't name.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Bring connections into the form that a file describes; says first what changes."""
    from gateway.apply import carry_out, compare, read_file  # noqa: PLC0415 - the others start without it

    wanted = read_file(file.read())
    client = _client(data)
    changes = compare(wanted, client.get("/connections")["items"], prune=prune)
    if not as_json:
        for change in changes:
            out.print(change_line(change.shown))
    results = []
    for change in changes:
        done = None if dry_run else carry_out(client, change)
        results.append({**change.shown, "connection": done})
        if done is not None and change.action == "create" and not as_json:
            # A secret that the file named is known to whom it concerns, and the output may be a log.
            made = {} if change.secret else {"secret": f"{done['secret']}  (shown this once)"}
            print_facts({"webhook URL": done["hook_url"], **made})
    if as_json:
        print_json({"dry_run": dry_run, "changes": results})
    elif dry_run:
        out.print("Nothing was changed: this was a dry run.")


@app.command()
def fetch(
    connection: Annotated[str, typer.Argument(help="The connection's id.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a repository now: compare all its refs with the remote's, and take what no webhook has told."""
    client = _client(data)
    path = f"/connections/{part(connection)}"
    before = client.get(path)["sweep"]
    client.send("POST", f"{path}/fetch", {})
    with _err.status("asking the remote for its refs"):
        while (sweep := client.get(path)["sweep"])["swept_at"] == before["swept_at"] and not sweep["reason"]:
            time.sleep(_POLL_SECONDS)
    found = client.get(f"/deliveries/{sweep['delivery']}") if sweep["delivery"] else None
    if as_json:
        print_json({"sweep": sweep, "delivery": found})
    elif sweep["reason"]:
        raise ApiError(sweep["reason"])
    elif found is None:
        out.print("Nothing has moved since the last delivery or fetch.")
    else:
        print_list({"items": [found], "next": None}, DELIVERY_COLUMNS, delivery_row, as_json=False)


@app.command()
def deliveries(
    delivery: Annotated[str | None, typer.Argument(help="Show this one, whole.")] = None,
    connection: OfConnection = None,
    verdict: Annotated[str | None, typer.Option(help="accepted, duplicate, ignored or unreadable.")] = None,
    limit: Limit = 20,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest first, or show one."""
    client = _client(data)
    if delivery is not None:
        one = client.get(f"/deliveries/{part(delivery)}")
        if as_json:
            print_json(one)
            return
        answer = {"items": [one], "next": None}
    else:
        answer = client.get("/deliveries", connection=connection, verdict=verdict, limit=limit)

    print_list(answer, DELIVERY_COLUMNS, delivery_row, as_json=as_json)


@app.command()
def explain(
    what: Annotated[
        str, typer.Argument(help="A delivery's id, a commit's id or its beginning, or its page.")
    ],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Say why a push did, or did not, run: the whole way, from the webhook to the broker."""
    from gateway.explain import found, told  # noqa: PLC0415 - the others start without it

    deliveries = found(_client(data), what)
    if as_json:
        print_json({"items": deliveries})
    else:
        out.print(*map(told, deliveries), sep="\n")


@app.command()
def executions(
    execution: Annotated[str | None, typer.Argument(help="Show this one, whole.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new ones as they come.")] = False,
    connection: OfConnection = None,
    delivery: Annotated[str | None, typer.Option("--delivery", help="Only those of this delivery.")] = None,
    state: Annotated[str | None, typer.Option(help="pending, published or superseded.")] = None,
    limit: Limit = 20,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List execution requests, the newest first; show one; or follow them."""
    client = _client(data)
    if execution is not None:
        print_json(client.get(f"/executions/{part(execution)}"))
        return
    if follow:
        for one in client.executions():
            if as_json:
                print_json(one, indent=None)
            else:
                out.print(execution_line(one))
        return
    answer = client.get("/executions", connection=connection, delivery=delivery, state=state, limit=limit)

    def row(one: Any) -> list[str]:
        message = one["message"]
        what = f"{message['execution']['name']} at {message['ref']['name']} {short(message['commit']['id'])}"
        state_ = coloured(one["state"]) + (f": {escape(one['reason'])}" if one["reason"] else "")
        return [one["id"], local_time(one["planned_at"]), escape(message["project"]), escape(what), state_]

    print_list(answer, ["id", "planned", "project", "what", "state"], row, as_json=as_json)


@app.command()
def send(
    url: Annotated[str, typer.Argument(help="The connection's webhook URL.")],
    payload: Annotated[
        typer.FileBinaryRead, typer.Argument(help="The payload: a file, or - for standard input.")
    ],
    provider: Annotated[str, typer.Option(help=f"Whom to play: {', '.join(PROVIDERS)}.")],
    secret: Annotated[str, typer.Option(help="The connection's secret.", envvar="WEBHOOK_SECRET")],
    event: Annotated[str, typer.Option(help="The provider's name of the event.")] = "push",
    delivery: Annotated[str | None, typer.Option(help="The delivery's id, if not a new one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play the provider: sign a payload and post it."""
    if provider not in PROVIDERS:
        raise ApiError(f"{provider} is none of {', '.join(PROVIDERS)}")
    body = payload.read()
    headers = PROVIDERS[provider].sign(
        event=event,
        body=body,
        secret=secret.encode(),
        delivery=delivery or str(uuid.uuid4()),
        now=datetime.now(UTC),
    )
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
    if status >= 400:  # noqa: PLR2004 - the error statuses of HTTP
        raise typer.Exit(1)


keys = typer.Typer(help="The secret key under which all secrets are sealed.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command("rotate")
def rotate_command(
    data: Data = None,
    config: Config = None,
    secrets_dir: SecretsDir = None,
    as_json: AsJson = False,
) -> None:
    """Change the secret key. Stop a gateway that runs on this data folder before, and start it after."""
    from gateway.data import rotate_key  # noqa: PLC0415 - the client commands start without the service

    count = rotate_key(_settings({"data_dir": data}, config, secrets_dir))
    if as_json:
        print_json({"secrets": count})
    else:
        out.print(f"{count} secrets are sealed under the new key. Start the gateway again; an admin token")
        out.print("that was made of the key is another one now.")


@keys.command("token")
def token_command(data: Data = None) -> None:
    """Print the admin token that belongs to the key in the data folder, for clients on other machines."""
    sys.stdout.write(f"{_derived_token(data)}\n")


@app.command("hook-script")
def hook_script_command(
    url: Annotated[str, typer.Option(help="The connection's webhook URL.")],
    secret_file: Annotated[str, typer.Option(help="Where the secret will be, on the git server; mode 0600.")],
) -> None:
    """Print a post-receive hook for a git server of your own: POSIX sh with curl and openssl."""
    sys.stdout.write(hook_script(url=url, secret_file=secret_file))


def main() -> None:
    """Run the command; what goes wrong is one sentence on standard error, and exit status 1."""
    try:
        app()
    except PushgateError as error:
        _err.print(f"[red]pushgate:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _settings(named: Mapping[str, Any], config: Path | None, secrets_dir: Path | None) -> Settings:
    """Return the settings of the service; of `named`, what the command line has named."""
    return read_settings(
        given={name: value for name, value in named.items() if value is not None},
        config=config or _path("PUSHGATE_CONFIG"),
        secrets_dir=secrets_dir or _path("PUSHGATE_SECRETS_DIR"),
    )


def _client(data: Path | None) -> Client:
    """Return a client of the gateway at PUSHGATE_URL; its token is the environment's or the data folder's."""
    url = os.environ.get("PUSHGATE_URL", "http://127.0.0.1:8080")
    return Client(url, os.environ.get("PUSHGATE_ADMIN_TOKEN") or _derived_token(data))


def _derived_token(data: Path | None) -> str:
    folder = data or _path("PUSHGATE_DATA_DIR") or data_home()
    try:
        return Vault((folder / "secret.key").read_text().strip()).admin_token()
    except OSError:
        raise ApiError(
            f"there is no admin token: set PUSHGATE_ADMIN_TOKEN, or name the gateway's data folder with"
            f" --data (there is no key in {folder})"
        ) from None


def _text(path: Path | None) -> str | None:
    try:
        return path.read_text() if path is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"{path} cannot be read: {error}") from error


def _path(variable: str) -> Path | None:
    return Path(os.environ[variable]).expanduser() if os.environ.get(variable) else None
