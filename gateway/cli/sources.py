"""The commands about sources: one webhook for many repositories, which rules connect."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, Client, part
from gateway.cli.connect import Identity, Networks, Register, SecretFile, Triggers, parse_triggers
from gateway.cli.facts import repository_counts, source_facts
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import PROVIDER_NAMES, AsJson, text_of
from gateway.cli.output import (
    coloured,
    empty_list,
    err,
    escape,
    out,
    print_facts,
    print_json,
    print_list,
)
from gateway.cli.source_app import guide_to_app, wait_for_app
from gateway.cli.webhooks import registered_webhook, show_steps, show_webhook

app = typer.Typer(
    help="Manage sources: organisations, groups, projects and servers with one webhook, whose repositories"
    " rules connect.",
    no_args_is_help=True,
)

_WAIT_SECONDS = 15
_PROVIDERS = [name for name in PROVIDER_NAMES if name not in {"gogs", "generic"}]

Name = Annotated[str, typer.Argument(help="The source's name or id.")]
NewName = Annotated[
    str | None, typer.Option("--name", help="A name without a slash; by default the owner's.")
]
Url = Annotated[
    str | None, typer.Option(help="The web page of the organisation, group or project, or of the server.")
]


@client_command(app)
def add(
    provider: Annotated[str, typer.Argument(help=f"One of: {', '.join(_PROVIDERS)}.")],
    org: Annotated[
        str | None,
        typer.Option(
            help="The organisation, group or workspace at the provider's own service; for Azure DevOps,"
            " ORGANISATION/PROJECT. For another server, give --url."
        ),
    ] = None,
    url: Url = None,
    name: NewName = None,
    identity: Identity = None,
    match: Annotated[
        list[str] | None,
        typer.Option(help="Connect only repositories that match this glob; with !, all others; repeatable."),
    ] = None,
    manifest: Annotated[
        bool,
        typer.Option("--manifest", help="Connect only those with a valohai.yaml; needs --identity."),
    ] = False,
    trigger: Triggers = None,
    project: Annotated[
        str | None,
        typer.Option(help="The platform's projects, by default {name}: text with {name} and {path}."),
    ] = None,
    secret_file: SecretFile = None,
    network: Networks = None,
    register: Register = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the page that creates a GitHub App.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a source, and print its webhook URL, its secret (shown only once) and the next steps.

    It has one rule, or none if no option of a rule is given. Set several with `pushgate source rules`. For
    GitHub without --identity, a page of the dashboard creates a GitHub App; at a terminal, this command opens
    it and waits until the App is installed.

    Example: pushgate source add github --org acme --identity acme-bot --match 'ml-*' --trigger train@main
    """
    if register and identity is None:
        raise ApiError(
            "--register needs an identity: add one with `pushgate identity add`, and give --identity"
        )
    # Without a condition or a trigger, every repository would be connected to no effect.
    is_rule = bool(match or manifest or trigger or project)
    rule = {
        "match": match or [],
        "manifest": manifest,
        "project": project or "{name}",
        "triggers": parse_triggers(trigger or []),
    }
    optional = {"name": name, "identity": identity, "secret": (text_of(secret_file) or "").strip() or None}
    body = {
        "provider": provider,
        "url": _url(provider, org, url),
        "rules": [rule] if is_rule else [],
        "networks": network or [],
        **{field: value for field, value in optional.items() if value is not None},
    }
    client = client_of()
    made = client.send("POST", "/sources", body)
    webhook = registered_webhook(client, f"/sources/{made['id']}") if register else None
    if as_json:
        print_json({**made, **({"webhook": webhook} if register else {})})
        return
    for warning in made["warnings"]:
        err.print(f"[yellow]Warning:[/yellow] {escape(warning)}\n", soft_wrap=True)
    out.print(f"Added the source [bold]{escape(made['name'])}[/bold], {escape(made['url'])}.\n")
    print_facts({**source_facts(made), "secret": f"{made['secret']}  (shown only once)"})
    has_no_app = made["app"] is not None and made["identity"] is None
    if has_no_app:
        guide_to_app(made)
        show_steps(provider, made["scope"], heading="Or, without an App:")
    elif webhook is None or not show_webhook(made, webhook):
        show_steps(provider, made["scope"])
    if has_no_app and out.is_terminal:
        wait_for_app(client, made, opens_browser=not no_browser)


@client_command(app, "list")
def list_command(as_json: AsJson = False) -> None:
    """List the sources.

    Example: pushgate source list
    """
    answer = {"items": list(client_of().items("/sources")), "next": None}

    def row(source: Any) -> list[str]:
        failure = f"\n[red]not listed[/red]: {escape(source['reason'])}" if source["reason"] else ""
        texts = [source["name"], source["provider"], source["url"]]
        return [*map(escape, texts), repository_counts(source["repositories"]) + failure]

    columns = ["name", "provider", "url", "repositories"]
    print_list(answer, columns, row, empty=empty_list("sources"), as_json=as_json)


@client_command(app)
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a source: its webhook URL, its rules, and how many repositories they have connected.

    Example: pushgate source show acme
    """
    source = client_of().get(f"/sources/{part(name)}")
    if as_json:
        print_json(source)
    else:
        print_facts(source_facts(source))


@client_command(app)
def repositories(
    name: Name,
    state: Annotated[
        str | None, typer.Option(help="Only this state: due, connected, ignored, gone or removed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the repositories of a source, each with its connection, or with the reason why it has none.

    Examples: pushgate source repositories acme; pushgate source repositories acme --state ignored
    """
    client = client_of()
    answer = {"items": list(client.items(f"/sources/{part(name)}/repositories", state=state)), "next": None}

    def row(repository: Any) -> list[str]:
        outcome = [text for text in (repository["connection"], repository["reason"]) if text]
        return [escape(repository["full_name"]), coloured(repository["state"]), escape("\n".join(outcome))]

    columns = ["repository", "state", "connection or reason"]
    print_list(answer, columns, row, empty=empty_list("repositories", state), as_json=as_json)


@client_command(app)
def decide(
    name: Name,
    repository: Annotated[str, typer.Argument(help="The repository's full name, or the provider's id.")],
    as_json: AsJson = False,
) -> None:
    """Let the rules decide again about a repository, also about one whose connection was deleted.

    Example: pushgate source decide acme acme/digits
    """
    client = client_of()
    path = f"/sources/{part(name)}/repositories"
    names = {repository, repository.lower()}
    ids = [one["id"] for one in client.items(path) if names & {one["id"], one["full_name"].lower()}]
    if not ids:
        raise ApiError(
            f"the source {name} has no repository {repository}: `pushgate source repositories {name}` shows"
            f" those that it has; `pushgate source list-now {name}` looks for new ones"
        )
    if len(ids) > 1:
        raise ApiError(f"several repositories have been {repository}: give the id instead ({', '.join(ids)})")
    decided = client.send("POST", f"{path}/{part(ids[0])}/decide")
    if as_json:
        print_json(decided)
    else:
        out.print(f"The rules decide about {escape(decided['full_name'])} now.", soft_wrap=True)


@client_command(app)
def edit(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="The new name.")] = None,
    url: Url = None,
    identity: Annotated[
        str | None, typer.Option(help="The identity that lists, fetches and registers; empty for none.")
    ] = None,
    network: Networks = None,
    as_json: AsJson = False,
) -> None:
    """Change the given settings of a source; `pushgate source rules` changes its rules.

    Example: pushgate source edit acme --network 192.0.2.0/24
    """
    given = {"name": new_name, "url": url, "networks": network}
    body: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if identity is not None:
        body["identity"] = identity or None
    if not body:
        raise ApiError("give what to change: --name, --url, --identity or --network")
    _changed(client_of(), name, body, as_json=as_json)


@client_command(app)
def rules(
    name: Name,
    file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            "--file", "-f", help="A YAML or JSON file with the list of new rules; - for standard input."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the rules of a source as YAML, or replace them by those of a file; they decide again.

    Examples: pushgate source rules acme; pushgate source rules acme --file rules.yaml
    """
    client = client_of()
    if file is not None:
        from gateway.cli.sources_file import read_rules_file  # noqa: PLC0415 - the others start without it

        _changed(client, name, {"rules": read_rules_file(file.read())}, as_json=as_json)
        return
    present = client.get(f"/sources/{part(name)}")["rules"]
    if as_json:
        print_json(present)
        return
    import yaml  # noqa: PLC0415 - the others start without it

    out.print(escape(yaml.safe_dump(present, sort_keys=False, allow_unicode=True)), end="", soft_wrap=True)


@client_command(app, "list-now")
def list_now(name: Name, as_json: AsJson = False) -> None:
    """List the repositories at the provider now; exit with 1 if that fails.

    Example: pushgate source list-now acme
    """
    client = client_of()
    with err.status("listing the repositories"):
        listed = client.send("POST", f"/sources/{part(name)}/list", wait=_WAIT_SECONDS)
    if as_json:
        print_json(listed)
    elif listed["reason"]:
        out.print(f"[yellow]Warning:[/yellow] not listed: {escape(listed['reason'])}", soft_wrap=True)
    else:
        out.print(f"Listed: {repository_counts(listed['repositories'])}.", soft_wrap=True)
    if listed["reason"]:
        raise typer.Exit(1)


@client_command(app, "rotate-secret")
def rotate_secret(name: Name, secret_file: SecretFile = None, as_json: AsJson = False) -> None:
    """Set a new webhook secret of a source, and print it; the previous one stays valid until the next.

    Examples: pushgate source rotate-secret acme; pushgate source rotate-secret acme --secret-file FILE
    """
    secret = (text_of(secret_file) or "").rstrip("\r\n") or None
    made = client_of().send("POST", f"/sources/{part(name)}/rotate-secret", {"secret": secret})
    if as_json:
        print_json(made)
        return
    # A secret from a file is known already.
    fresh = {"secret": f"{made['secret']}  (shown only once)"} if secret is None else {}
    print_facts({**source_facts(made), **fresh})
    out.print(f"Enter it at the provider, or: `pushgate doctor {escape(made['name'])} --fix`", soft_wrap=True)


@client_command(app, "revoke-secret")
def revoke_secret(name: Name, as_json: AsJson = False) -> None:
    """Revoke the previous webhook secret of a source, once the provider uses the new one.

    Example: pushgate source revoke-secret acme
    """
    client, path = client_of(), f"/sources/{part(name)}"
    client.send("DELETE", f"{path}/previous-secret")
    shown = client.get(path)
    print_json(shown) if as_json else print_facts(source_facts(shown))


@client_command(app)
def delete(name: Name, as_json: AsJson = False) -> None:
    """Delete a source and its webhook. Its connections stay, without a webhook.

    With --json, print the source as it was.

    Example: pushgate source delete acme
    """
    client, path = client_of(), f"/sources/{part(name)}"
    shown = client.get(path)
    client.send("DELETE", path)
    if as_json:
        print_json(shown)
        return
    out.print(
        "Deleted. Its connections stay: reconciliation finds their pushes. If you have entered the webhook by"
        " hand, delete it at the provider.",
        soft_wrap=True,
    )


def _changed(client: Client, name: str, body: Mapping[str, Any], *, as_json: bool) -> None:
    """Change a source, and print it."""
    changed = client.send("PATCH", f"/sources/{part(name)}", body)
    if as_json:
        print_json(changed)
    else:
        out.print("Changed: the rules decide again about all repositories.\n", soft_wrap=True)
        print_facts(source_facts(changed))


def _url(provider: str, org: str | None, url: str | None) -> str:
    if (org is None) == (url is None):
        raise ApiError("give either --org NAME, at the provider's own service, or --url URL")
    if url is not None:
        return url
    from providers import PROVIDERS  # noqa: PLC0415 - the other commands start without them

    host = PROVIDERS[provider].PUBLIC_HOST if provider in PROVIDERS else None
    if host is None:
        raise ApiError(f"--org needs a provider with a service of its own, not {provider}: give --url")
    return f"https://{host}/{org}"
