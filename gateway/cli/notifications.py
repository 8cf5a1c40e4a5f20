"""The commands about notifications: where they go, and which."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, part
from gateway.cli.facts import channel_facts
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import AsJson, read_secret
from gateway.cli.output import empty_list, escape, out, print_facts, print_json, print_list, when
from gateway.errors import Invalid

# As in gateway.store.notification_channels, which takes long to import.
_KINDS = ("slack", "teams", "webhook", "smtp")
_HAPPENINGS = ("run-failed", "run-recovered", "webhook-silent", "remote-refuses", "dead-letters")
_WAIT = 15

app = typer.Typer(
    help="Tell people when a run fails or recovers, a webhook is silent, a remote refuses Pushgate, or dead"
    " letters arrive.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The channel's name or id.")]


Happenings = Annotated[
    list[str] | None,
    typer.Option("--on", help=f"What to notify of, by default all: {', '.join(_HAPPENINGS)}; repeatable."),
]
Connections = Annotated[
    list[str] | None,
    typer.Option("--connection", help="A glob of connections' names, such as acme/*; repeatable."),
]
Projects = Annotated[
    list[str] | None, typer.Option("--project", help="A glob of the platform's projects; repeatable.")
]


@client_command(app)
def add(
    name: Name,
    kind: Annotated[
        str,
        typer.Option(
            help="slack, an incoming webhook of Slack or Mattermost; teams, a workflow of Microsoft Teams;"
            " webhook, a signed webhook; smtp, mail."
        ),
    ],
    url_file: Annotated[
        Path | None,
        typer.Option(help="A file with the URL; by default, it is read from standard input."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="For mail: the server.")] = None,
    port: Annotated[int | None, typer.Option(help="For mail: its port; by default 587.")] = None,
    security: Annotated[
        str | None, typer.Option(help="For mail: starttls, the default, or tls, usually on port 465.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="For mail: the user, whose password is read from standard input.")
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="For mail: a file with the password.")] = None,
    sender: Annotated[str | None, typer.Option("--from", help="For mail: the sender's address.")] = None,
    recipients: Annotated[
        list[str] | None, typer.Option("--to", help="For mail: a recipient's address; repeatable.")
    ] = None,
    happenings: Happenings = None,
    connections: Connections = None,
    projects: Projects = None,
    as_json: AsJson = False,
) -> None:
    """Add a channel. Its URL comes from standard input or a file, and is never shown again.

    Example: pushgate notify add ml-team --kind slack --url-file FILE
    """
    if kind not in _KINDS:
        raise ApiError(f"--kind must be one of {', '.join(_KINDS)}")
    body: dict[str, Any] = {"name": name, "kind": kind}
    if kind == "smtp":
        mail = {"host": host, "port": port, "security": security, "user": user, "sender": sender}
        body["mail"] = {key: value for key, value in mail.items() if value is not None}
        body["mail"]["recipients"] = recipients or []
        if user is not None:
            body["password"] = read_secret(password_file, "password", "--password-file").strip()
    else:
        body["url"] = read_secret(url_file, "URL", "--url-file").strip()
    rules = {"happenings": happenings, "connections": connections, "projects": projects}
    body |= {key: value for key, value in rules.items() if value}
    made = client_of().send("POST", "/notification-channels", body)
    if as_json:
        print_json(made)
        return
    out.print(f"Added. Try it with `pushgate notify test {escape(name)}`.", soft_wrap=True)
    if made["secret"]:
        out.print("The secret for the receiver, which is shown only now:")
        out.print(f"  {made['secret']}", soft_wrap=True)


@client_command(app)
def edit(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="The new name.")] = None,
    happenings: Happenings = None,
    connections: Connections = None,
    projects: Projects = None,
    url_file: Annotated[
        Path | None, typer.Option(help="A file with the new URL; - for standard input.", allow_dash=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the given settings of a channel; given values replace all previous ones.

    Example: pushgate notify edit ml-team --on run-failed --connection 'acme/*'
    """
    rules = {"name": new_name, "happenings": happenings, "connections": connections, "projects": projects}
    body: dict[str, Any] = {key: value for key, value in rules.items() if value}
    if url_file is not None:
        source = None if str(url_file) == "-" else url_file
        body["url"] = read_secret(source, "URL", "--url-file").strip()
    if not body:
        raise Invalid("give what to change: --name, --on, --connection, --project or --url-file")
    changed = client_of().send("PATCH", f"/notification-channels/{part(name)}", body)
    print_json(changed) if as_json else print_facts(channel_facts(changed))


@client_command(app, "list")
def list_command(as_json: AsJson = False) -> None:
    """List the channels, without their URLs and passwords, and why messages could not be sent.

    Example: pushgate notify list
    """
    answer = {"items": list(client_of().items("/notification-channels")), "next": None}

    def row(channel: Any) -> list[str]:
        last = when(channel["sent_at"]) if channel["sent_at"] else "-"
        problem = f"[red]{escape(channel['problem'])}[/red]" if channel["problem"] else "-"
        texts = [channel["name"], channel["kind"], _target(channel), ", ".join(channel["happenings"])]
        globs = ", ".join([*channel["connections"], *channel["projects"]]) or "all"
        return [*map(escape, texts), escape(globs), last, problem]

    columns = ["name", "kind", "to", "on", "connections", "last sent", "problem"]
    print_list(answer, columns, row, empty=empty_list("notification channels"), as_json=as_json)


@client_command(app, "test")
def send_test(name: Name, as_json: AsJson = False) -> None:
    """Send a test message now. The exit status is 1 if it could not be sent.

    Example: pushgate notify test ml-team
    """
    client, path = client_of(), f"/notification-channels/{part(name)}"
    before = client.get(path)
    channel = client.send("POST", f"{path}/test", wait=_WAIT)
    if as_json:
        print_json(channel)
    if channel["tried_at"] == before["tried_at"]:
        raise ApiError(f"no worker has sent the message within {_WAIT} s: is one running?")
    if channel["problem"]:
        raise ApiError(f"the message could not be sent: {channel['problem']}")
    if not as_json:
        out.print("Sent.")


@client_command(app)
def remove(name: Name, as_json: AsJson = False) -> None:
    """Delete a channel, and what was still to be sent there. With --json, print it as it was.

    Example: pushgate notify remove ml-team
    """
    client, path = client_of(), f"/notification-channels/{part(name)}"
    shown = client.get(path)
    client.send("DELETE", path)
    print_json(shown) if as_json else out.print("Deleted.")


def _target(channel: Any) -> str:
    mail = channel["mail"]
    return channel["host"] if mail is None else ", ".join(mail["recipients"])
