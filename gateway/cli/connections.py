"""The commands about connections: make, list, bring into the form of a file, fetch now."""

import time
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.cli.api_client import ApiError, Client, part
from gateway.cli.options import PROVIDER_NAMES, AsJson, Data, client_of, connection_id
from gateway.cli.output import (
    DELIVERY_COLUMNS,
    change_line,
    delivery_row,
    err,
    escape,
    names_of,
    nothing,
    out,
    print_facts,
    print_json,
    print_list,
)

app = typer.Typer()

_POLL_SECONDS = 0.1
# A comparison of refs that has begun takes no longer than its lease: see gateway/worker/reconciler.py.
_MAX_LOOK_SECONDS = 900.0


@app.command()
def connect(
    url: Annotated[str, typer.Argument(help="The repository's clone URL.")],
    provider: Annotated[str, typer.Option(help=f"One of: {', '.join(PROVIDER_NAMES)}.")],
    project: Annotated[str, typer.Option(help="The platform's project.")],
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            help="STEP, STEP@BRANCHES or STEP@tag:TAGS, also pipeline:NAME or task:NAME; several times."
        ),
    ] = None,
    yaml_path: Annotated[str, typer.Option(help="Where valohai.yaml is in the repository.")] = "valohai.yaml",
    follow: Annotated[
        list[str] | None,
        typer.Option(
            help="Run nothing but for this branch, a glob, whatever the triggers say; several times."
        ),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(help="The webhook's secret; one is made if you name none. --secret-file hides it."),
    ] = None,
    secret_file: Annotated[Path | None, typer.Option(help="A file with the webhook's secret.")] = None,
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
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the first look at the repository.")
    ] = 15.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Connect it even if the project has it already: pushes run twice."),
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Connect a repository; prints its webhook URL, its secret (this once), and what to do next."""
    from gateway.plan.triggers import parse_trigger  # noqa: PLC0415 - the other commands start without it

    if secret_file is not None:
        if secret is not None:
            raise ApiError("give the secret once, by --secret or by --secret-file")
        secret = (_text(secret_file) or "").rstrip("\r\n")
    body: dict[str, Any] = {
        "url": url,
        "provider": provider,
        "project": project,
        "yaml_path": yaml_path,
        "follows": follow or [],
        "networks": network or [],
        "triggers": [parse_trigger(text).model_dump(mode="json") for text in trigger or []],
        **({"name": name} if name is not None else {}),
        **({"force": True} if force else {}),
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
    client = client_of(data)
    made = client.send("POST", "/connections", body)
    if as_json:
        print_json(made)
        return
    out.print(_made(client, made, wait) + "\n")
    if (unreachable := _unreachable(made)) is not None:
        err.print(f"[yellow]Warning:[/yellow] {escape(unreachable)}\n", soft_wrap=True)
    print_facts(
        {
            "connection": made["id"],
            "webhook URL": made["hook_url"],
            "secret": f"{made['secret']}  (shown this once)",
            "triggers": ", ".join(trigger["name"] for trigger in made["triggers"])
            or "none: pushes are only fetched",
        }
    )
    for warning in made["warnings"]:
        out.print(f"Warning: {escape(warning)}", soft_wrap=True)
    if made["deploy_key"] is not None:
        out.print("\nDeploy key, to be added to the repository (read access is enough):")
        out.print(escape(made["deploy_key"]), soft_wrap=True)
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    out.print("\nNext:")
    for line in PROVIDERS[provider].SETUP.lines():
        out.print(f"  {line}", soft_wrap=True)


def _made(client: Client, made: Any, wait: float) -> str:
    """Return what the first look at the repository of a new connection found, after some seconds at most."""
    name, project = f"[bold]{escape(made['name'])}[/bold]", f"[bold]{escape(made['project'])}[/bold]"
    with err.status("looking at the repository"):
        reconciliation = _tried(client, made["id"], made["reconciliation"]["due_at"], wait)
    if reconciliation is None:
        told = f"The repository has not been looked at yet: `pushgate fetch {made['id']}` says how that goes."
    elif reconciliation["reason"] is None:
        refs = client.get(f"/connections/{made['id']}/refs")["items"]
        told = f"Its repository can be read: it has {len(refs)} branches and tags."
    else:
        told = (
            f"[yellow]Warning:[/yellow] its repository cannot be read: {escape(reconciliation['reason'])}\n"
        )
        if made["deploy_key"] is not None:
            told += "Add the deploy key below to it; "
        told += f"`pushgate fetch {made['id']}` looks again. Until it can be read, pushes wait."
    return f"Made a connection from {name} to project {project}. {told}"


def _unreachable(made: Any) -> str | None:
    """Return why webhooks cannot reach the gateway at the URL that it gives out, if that is plain to see."""
    from providers.clone_urls import repository_key  # noqa: PLC0415 - the other commands start without it

    host = urlsplit(made["hook_url"]).hostname or ""
    repository = repository_key(made["url"]).partition("/")[0]
    if not _is_loopback(host) or _is_loopback(repository.partition(":")[0]):
        return None
    return (
        f"{repository} cannot reach {host}, which the webhook URL names: set PUSHGATE_PUBLIC_URL to an"
        " address of the gateway that it can reach, and start the gateway again."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@app.command()
def connections(data: Data = None, as_json: AsJson = False) -> None:
    """List the connections."""
    answer = {"items": list(client_of(data).items("/connections")), "next": None}

    def row(one: Any) -> list[str]:
        texts = [one["name"], one["provider"], one["project"], names_of(one["triggers"]) or "-", one["url"]]
        return [one["id"], *map(escape, texts)]

    columns = ["id", "name", "provider", "project", "triggers", "url"]
    print_list(answer, columns, row, empty=nothing("connections"), as_json=as_json)


@app.command("apply")
def apply_command(
    file: Annotated[
        typer.FileBinaryRead, typer.Option("--file", "-f", help="The file; - for standard input.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what the file doesn't name.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Bring connections into the form that a file describes; says first what changes."""
    from gateway.cli.connections_file import carry_out, compare, read_file  # noqa: PLC0415 - the others start without it

    wanted = read_file(file.read())
    client = client_of(data)
    changes = compare(wanted, list(client.items("/connections")), prune=prune)
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
    connection: Annotated[str, typer.Argument(help="The connection's id or name.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a worker to begin.")] = 60.0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a repository now: compare all its refs with the remote's, and take what no webhook has told."""
    client = client_of(data)
    which = connection_id(client, connection)
    asked = client.send("POST", f"/connections/{part(which)}/fetch", {})["reconciliation"]
    with err.status("asking the remote for its refs"):
        reconciliation = _tried(client, which, asked["due_at"], wait)
    if reconciliation is None:
        raise ApiError(
            f"no worker has looked at the remote within {wait:g} s: is a process with the role all or worker"
            " running, and does it have time? The look is still asked for"
        )
    found = client.get(f"/deliveries/{reconciliation['delivery']}") if reconciliation["delivery"] else None
    if as_json:
        print_json({"reconciliation": reconciliation, "delivery": found})
        if reconciliation["reason"]:
            raise typer.Exit(1)
    elif reconciliation["reason"]:
        raise ApiError(reconciliation["reason"])
    elif found is None:
        out.print("Nothing has moved since the last delivery or fetch.")
    else:
        page = {"items": [found], "next": None}
        print_list(page, DELIVERY_COLUMNS, delivery_row, empty="", as_json=False)


def _tried(client: Client, which: str, asked_at: str, wait: float) -> Any:
    """Return how the look at a remote went that was asked for at a time of the gateway's clock.

    A look that began before that tells nothing of what was changed since. None where no worker has begun one
    after `wait` seconds, or where one takes for ever.
    """
    asked, started = datetime.fromisoformat(asked_at), time.monotonic()
    while True:
        reconciliation = client.get(f"/connections/{part(which)}")["reconciliation"]
        if (
            reconciliation["tried_at"] is not None
            and datetime.fromisoformat(reconciliation["tried_at"]) >= asked
        ):
            return reconciliation
        has_begun = datetime.fromisoformat(reconciliation["due_at"]) > asked
        if time.monotonic() - started > (_MAX_LOOK_SECONDS if has_begun else wait):
            return None
        time.sleep(_POLL_SECONDS)


@app.command("forget-repository")
def forget_repository(
    connection: Annotated[str, typer.Argument(help="The connection's id or name.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Forget the repository's id, after it was deleted and made again; the next delivery teaches it anew."""
    client = client_of(data)
    which = connection_id(client, connection)
    view = client.send("POST", f"/connections/{part(which)}/forget-repository", {})
    if as_json:
        print_json(view)
    else:
        out.print("Forgotten: the next delivery that names this repository's address teaches its id.")


def _text(path: Path | None) -> str | None:
    try:
        text = path.read_text(encoding="utf-8") if path is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"{path} cannot be read: {error}") from error
    if text is not None and not text.strip():
        raise ApiError(f"{path} is empty")
    return text
