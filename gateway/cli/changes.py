"""The commands that change a connection: edit, rename, delete, rotate and revoke its secrets."""

import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, Unreachable, part
from gateway.cli.connect import (
    Follows,
    HostKeys,
    Identity,
    Networks,
    PasswordFile,
    PrivateKey,
    SecretFile,
    Triggers,
    User,
    credentials_of,
    parse_triggers,
    show_deploy_key,
)
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, connection_id, text_of
from gateway.cli.output import change_line, err, escape, out, print_facts, print_json, when
from gateway.errors import Invalid
from gateway.text.deletions import losses_of_connection
from gateway.text.escape import printable

app = typer.Typer()

# The fields of the answer that `edit` can change.
_SHOWN = (
    "name",
    "url",
    "project",
    "triggers",
    "yaml_path",
    "follows",
    "networks",
    "access",
    "identity",
    "statuses",
    "has_status_webhook",
    "package_format",
)
# Fields of the request that no answer shows.
_HIDDEN = ("credentials", "status_webhook")
# How many secrets are valid after a rotation.
_WITH_PREVIOUS = 2
_OF_THE_REMOTE = {"url", "credentials", "identity"}

Named = Annotated[str, typer.Argument(metavar="CONNECTION", help="The connection's id or name.")]


@client_command(app)
def edit(
    connection: Named,
    name: Annotated[str | None, typer.Option(help="A new, unique name.")] = None,
    url: Annotated[str | None, typer.Option(help="The new clone URL.")] = None,
    project: Annotated[str | None, typer.Option(help="The platform's project.")] = None,
    trigger: Triggers = None,
    no_trigger: Annotated[bool, typer.Option("--no-trigger", help="Remove all triggers.")] = False,
    yaml_path: Annotated[str | None, typer.Option(help="The path of valohai.yaml in the repository.")] = None,
    follow: Follows = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Follow all branches.")] = False,
    network: Networks = None,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="Accept webhooks from all networks.")
    ] = False,
    deploy_key: Annotated[
        bool, typer.Option("--deploy-key", help="Generate a new deploy key, and print its public half.")
    ] = False,
    private_key: PrivateKey = None,
    user: User = None,
    password_file: PasswordFile = None,
    host_keys: HostKeys = None,
    no_credentials: Annotated[
        bool, typer.Option("--no-credentials", help="Delete the credentials and the host keys.")
    ] = False,
    identity: Identity = None,
    no_identity: Annotated[bool, typer.Option("--no-identity", help="Remove the identity.")] = False,
    statuses: Annotated[
        bool | None,
        typer.Option("--statuses/--no-statuses", help="Show the verdicts on commits at the provider."),
    ] = None,
    status_webhook: Annotated[
        str | None,
        typer.Option(help="An https URL that receives the verdicts on commits in place of the provider."),
    ] = None,
    status_webhook_secret_file: Annotated[
        Path | None, typer.Option(help="A file with the secret that signs them, which begins with whsec_.")
    ] = None,
    no_status_webhook: Annotated[
        bool, typer.Option("--no-status-webhook", help="Send the verdicts to the provider again.")
    ] = False,
    package_format: Annotated[
        str | None, typer.Option(help="The format of packages: tar.gz or tar.zst.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change settings of a connection; what no option names stays as it is.

    Repeatable options replace all previous values. Pushes that wait are tried again at once.

    Examples: pushgate edit acme/digits --trigger train@main; pushgate edit acme/digits --no-follow
    """
    credentials = credentials_of(
        user=user, private_key=private_key, password_file=password_file, host_keys=host_keys
    )
    if deploy_key:
        credentials["deploy_key"] = True
    plain = {
        "name": name,
        "url": url,
        "project": project,
        "yaml_path": yaml_path,
        "statuses": statuses,
        "package_format": package_format,
    }
    receiver = _status_webhook(status_webhook, status_webhook_secret_file)
    body = {
        **{field: value for field, value in plain.items() if value is not None},
        **_field("triggers", parse_triggers(trigger or []), "--no-trigger", is_removed=no_trigger, empty=[]),
        **_field("follows", follow, "--no-follow", is_removed=no_follow, empty=[]),
        **_field("networks", network, "--no-network", is_removed=no_network, empty=[]),
        **_field("credentials", credentials, "--no-credentials", is_removed=no_credentials),
        **_field("identity", identity, "--no-identity", is_removed=no_identity),
        **_field("status_webhook", receiver, "--no-status-webhook", is_removed=no_status_webhook),
    }
    if not body:
        raise Invalid("give at least one option: `pushgate edit --help` lists them")
    client = client_of()
    path = _path(client, connection)
    before = client.get(path)
    after = client.send("PATCH", path, body)
    if as_json:
        print_json(after)
    else:
        _show_changes(before, after, body)


def _path(client: Client, connection: str) -> str:
    return f"/connections/{part(connection_id(client, connection))}"


def _field(name: str, value: Any, option: str, *, is_removed: bool, empty: Any = None) -> dict[str, Any]:
    """Return a field of the request that one option sets and `option` removes; {} if neither is given."""
    if is_removed and value:
        raise Invalid(f"{option} contradicts another option: give one of them")
    if is_removed:
        return {name: empty}
    return {name: value} if value else {}


def _status_webhook(url: str | None, secret_file: Path | None) -> dict[str, str] | None:
    if url is None and secret_file is None:
        return None
    if url is None or secret_file is None:
        raise Invalid("give --status-webhook and --status-webhook-secret-file together")
    return {"url": url, "secret": (text_of(secret_file) or "").strip()}


def _show_changes(before: Mapping[str, Any], after: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Print the old and new values of the fields that differ, and what to do next."""
    differing = {field: {"from": before[field], "to": after[field]} for field in _SHOWN}
    differing = {field: sides for field, sides in differing.items() if sides["from"] != sides["to"]}
    replaced = [field for field in _HIDDEN if body.get(field)]
    action = "change" if differing or replaced else "keep"
    out.print(
        change_line({"kind": "connection", "action": action, "name": after["name"], "fields": differing})
    )
    for field in replaced:
        out.print(f"    {field}: replaced")
    if after["deploy_key"] is not None and after["deploy_key"] != before["deploy_key"]:
        show_deploy_key(after["deploy_key"])
    if _OF_THE_REMOTE & set(body):
        check = f"pushgate check {after['id']}"
        out.print(f"Check that the repository can be read: `{check}`", soft_wrap=True)


@client_command(app)
def rename(
    connection: Named,
    name: Annotated[str, typer.Argument(help="The new name, which must be unique.")],
    as_json: AsJson = False,
) -> None:
    """Rename a connection. Its id, its webhook URL and its secret stay.

    Example: pushgate rename acme/digits digits-in-production
    """
    client = client_of()
    path = _path(client, connection)
    before = client.get(path)
    after = client.send("PATCH", path, {"name": name})
    if as_json:
        print_json(after)
    else:
        out.print(f"Renamed {escape(before['name'])} to [bold]{escape(after['name'])}[/bold].")


@client_command(app)
def delete(
    connection: Named,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a connection, and the webhook that Pushgate has registered at the provider.

    Its deliveries and executions remain readable. On a terminal, the command shows what it deletes and asks;
    elsewhere it requires --yes. With --json, it prints the connection as it was.

    Examples: pushgate delete acme/digits; pushgate delete acme/digits --yes
    """
    client = client_of()
    path = _path(client, connection)
    shown = client.get(path)
    is_registered = _has_webhook(client, path)
    err.print(_consequences(shown, is_registered=is_registered), soft_wrap=True)
    if not yes:
        _confirm(f"Delete {shown['name']}?")
    client.send("DELETE", path)
    if as_json:
        print_json(shown)
    else:
        out.print(f"Deleted {escape(shown['name'])} ({shown['id']}).")


def _confirm(question: str) -> None:
    """Return if a person at the terminal says yes; exit with 1 if not. Raises `Invalid`."""
    if not sys.stdin.isatty():
        raise Invalid("nothing was deleted: without a terminal to ask at, give --yes")
    if not typer.confirm(printable(question), err=True):
        err.print("Nothing was deleted.")
        raise typer.Exit(1)


def _has_webhook(client: Client, path: str) -> bool:
    """Return whether Pushgate has registered a webhook at the provider."""
    try:
        return client.get(f"{path}/webhook")["webhook"] is not None
    except Unreachable:
        raise
    except ApiError:
        return False


def _consequences(shown: Any, *, is_registered: bool) -> str:
    """Return what a deletion removes and what stays, as lines."""
    losses = losses_of_connection(
        url=shown["url"],
        triggers=[trigger["name"] for trigger in shown["triggers"]],
        source=None if shown["source"] is None else shown["source"]["name"],
        is_registered=is_registered,
    )
    title = f"[bold]{escape(shown['name'])}[/bold] ({shown['id']}) in project {escape(shown['project'])}:"
    return "\n".join([title, *(f"  {escape(loss)}" for loss in losses)])


@client_command(app, "rotate-secret")
def rotate_secret(
    connection: Named,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Set a new webhook secret, and print it, and when the previous one was last used.

    By default, a secret is generated. The previous one stays valid until the next rotation, so that no
    delivery is refused until the provider has the new one.

    Examples: pushgate rotate-secret acme/digits; pushgate rotate-secret acme/digits --secret-file FILE
    """
    secret = (text_of(secret_file) or "").rstrip("\r\n") or None
    client = client_of()
    path = _path(client, connection)
    before = client.get(path)["secrets"]
    made = client.send("POST", f"{path}/rotate-secret", {"secret": secret})
    if as_json:
        print_json(made)
        return
    # A secret from a file is known already.
    fresh = {"secret": f"{made['secret']}  (shown only once)"} if secret is None else {}
    print_facts({"connection": f"{made['name']} ({made['id']})", "webhook URL": made["hook_url"], **fresh})
    out.print(_previous(before, made["secrets"]), soft_wrap=True)
    if made["identity"] is not None and _has_webhook(client, path):
        out.print(f"Set the new secret at the provider: `pushgate doctor {made['id']} --fix`", soft_wrap=True)
    else:
        out.print("Enter the new secret in the webhook's settings at the provider.")


@client_command(app, "revoke-secret")
def revoke_secret(connection: Named, as_json: AsJson = False) -> None:
    """Revoke the previous webhook secret, once the provider uses the new one.

    Deliveries that are signed with it are refused from then on. `rotate-secret` shows when it was last used.

    Examples: pushgate revoke-secret acme/digits
    """
    client = client_of()
    path = _path(client, connection)
    secrets = client.get(path)["secrets"]
    client.send("DELETE", f"{path}/previous-secret")
    if as_json:
        print_json(client.get(path))
        return
    if len(secrets) < _WITH_PREVIOUS:
        out.print("There is no previous secret: nothing has changed.")
        return
    last = _last_use(secrets[1])
    out.print(f"The previous secret, {last}, is not valid any more.", soft_wrap=True)


def _previous(before: list[Any], after: list[Any]) -> str:
    """Return when the secret before the newest was last used, and whether one in use is no longer valid."""
    valid = {secret["created_at"] for secret in after}
    used = [secret for secret in before if secret["last_used_at"] is not None]
    latest = max(used, key=lambda secret: datetime.fromisoformat(secret["last_used_at"]), default=None)
    lines = []
    if len(after) > 1:
        lines.append(f"The previous secret, {_last_use(after[1])}, stays valid until the next rotation.")
    if latest is not None and latest["created_at"] not in valid:
        lines.append(
            "[yellow]Warning:[/yellow] the provider last used an older secret, which is no longer valid: its"
            " deliveries are refused until it has the new one."
        )
    return "\n".join(lines)


def _last_use(secret: Any) -> str:
    used_at = secret["last_used_at"]
    return f"last used {when(used_at)}" if used_at is not None else "never used"
