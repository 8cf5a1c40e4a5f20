"""The commands about identities: what Pushgate is at providers, shared by connections."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api_client import ApiError, part
from gateway.cli.facts import identity_facts
from gateway.cli.gateways import client_command, client_of
from gateway.cli.options import PROVIDER_NAMES, AsJson, read_secret
from gateway.cli.output import empty_list, err, escape, out, print_facts, print_json, print_list, when
from gateway.errors import Invalid

app = typer.Typer(
    help="Manage what Pushgate is at providers: tokens and Apps that connections share.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The identity's name or id.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with the token, or the client secret; by default, it is read from standard input."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="A file with the App's private key; by default, it is read from standard input."),
]
Expires = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"], help="When the token expires; a date begins in UTC."
    ),
]
CertificateFile = Annotated[
    Path | None,
    typer.Option(help="A PEM file with a certificate of the application in Microsoft Entra, and its key."),
]


@client_command(app)
def add(
    name: Name,
    provider: Annotated[
        str, typer.Option(help=f"One of: {', '.join(name for name in PROVIDER_NAMES if name != 'generic')}.")
    ],
    user: Annotated[
        str | None, typer.Option(help="The user of the token, if the provider wants one.")
    ] = None,
    api_url: Annotated[
        str | None,
        typer.Option(help="The base URL of the API; by default that of the provider's own service."),
    ] = None,
    expires: Expires = None,
    rotate: Annotated[
        bool,
        typer.Option(help="Replace a GitLab token two weeks before it ends, which revokes the old one."),
    ] = True,
    token_file: TokenFile = None,
    app_id: Annotated[
        str | None, typer.Option(help="The App ID, or the client ID: the identity is a GitHub App.")
    ] = None,
    key_file: KeyFile = None,
    tenant: Annotated[
        str | None, typer.Option(help="The tenant in Microsoft Entra: the identity is an application there.")
    ] = None,
    client_id: Annotated[
        str | None, typer.Option(help="The client id of the application, or of a managed identity.")
    ] = None,
    certificate_file: CertificateFile = None,
    workload_identity: Annotated[
        bool,
        typer.Option("--workload-identity", help="Sign in as the workload identity of the worker."),
    ] = False,
    managed_identity: Annotated[
        bool,
        typer.Option("--managed-identity", help="Sign in as a managed identity of the machine."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add an identity. Its secret comes from standard input or a file, and is never shown again.

    Example: pushgate identity add ci --provider gitlab --token-file FILE
    """
    settings = {"app_id": app_id, "tenant": tenant, "client_id": client_id}
    if workload_identity or managed_identity:
        settings["credential"] = "workload-identity" if workload_identity else "managed-identity"
    elif tenant or client_id or certificate_file:
        settings["credential"] = "certificate" if certificate_file else "client-secret"
    kind = "entra" if "credential" in settings else "token" if app_id is None else "github-app"
    body = {
        "name": name,
        "provider": provider,
        "kind": kind,
        "settings": settings,
        "user": user,
        "api_url": api_url,
        "expires_at": _instant(expires),
        "rotates": None if rotate else False,
        **_secret(kind, settings, token_file, key_file or certificate_file),
    }
    made = client_of().send("POST", "/identities", body)
    if as_json:
        print_json(made)
    else:
        out.print(f"Added. Use it with `pushgate connect … --identity {escape(made['name'])}`.")


@client_command(app)
def renew(
    name: Name,
    expires: Expires = None,
    token_file: TokenFile = None,
    key_file: KeyFile = None,
    certificate_file: CertificateFile = None,
    as_json: AsJson = False,
) -> None:
    """Give an identity a new secret, from standard input or a file, before the old one expires.

    Example: pushgate identity renew acme-bot --token-file FILE
    """
    client, path = client_of(), f"/identities/{part(name)}"
    known = client.get(path)
    secret = _secret(known["kind"], known["settings"], token_file, key_file or certificate_file)
    if not secret:
        raise ApiError(f"{name} has no secret to renew: it signs in with a {known['settings']['credential']}")
    changed = client.send("PATCH", path, {**secret, "expires_at": _instant(expires)})
    if as_json:
        print_json(changed)
    else:
        [field] = secret
        noun = field.removeprefix("private_").replace("_", " ")
        out.print(f"The new {noun} is used from now on.")


@client_command(app)
def edit(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="The new name.")] = None,
    user: Annotated[str | None, typer.Option(help="The user of the token.")] = None,
    api_url: Annotated[str | None, typer.Option(help="The base URL of the API.")] = None,
    rotate: Annotated[
        bool | None,
        typer.Option(
            "--rotate/--no-rotate", help="Replace a GitLab token two weeks before it ends, or do not."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the given settings of an identity; `pushgate identity renew` gives it a new secret.

    Example: pushgate identity edit ci --no-rotate
    """
    given = {"name": new_name, "user": user, "api_url": api_url, "rotates": rotate}
    body = {field: value for field, value in given.items() if value is not None}
    if not body:
        raise Invalid("give what to change: --name, --user, --api-url or --no-rotate")
    changed = client_of().send("PATCH", f"/identities/{part(name)}", body)
    print_json(changed) if as_json else print_facts(identity_facts(changed))


@client_command(app, "list")
def list_command(as_json: AsJson = False) -> None:
    """List the identities, without their secrets.

    Example: pushgate identity list
    """
    answer = {"items": list(client_of().items("/identities")), "next": None}

    def row(identity: Any) -> list[str]:
        who = identity["user"] or ", ".join(identity["settings"].values()) or "-"
        texts = [identity["name"], identity["provider"], identity["kind"], who, identity["api_url"] or "-"]
        return [*map(escape, texts), _expiry(identity["expires_at"]), str(identity["connections"])]

    columns = ["name", "provider", "kind", "user or App", "API", "expires", "used by"]
    print_list(answer, columns, row, empty=empty_list("identities"), as_json=as_json)


@client_command(app)
def check(name: Name, as_json: AsJson = False) -> None:
    """Check whether the provider accepts the secret of an identity; exit with 1 if not.

    Examples: pushgate identity check acme-bot
    """
    client = client_of()
    with err.status(f"checking {escape(name)}"):
        checked = client.send("POST", f"/identities/{part(name)}/check", wait=15)
    if as_json:
        print_json(checked)
    elif checked["reason"] is None:
        rights = "not known" if checked["rights"] is None else ", ".join(checked["rights"]) or "none"
        out.print(f"[green]✓[/green] {escape(checked['host'])} accepts it. Rights: {escape(rights)}")
    else:
        out.print(f"[yellow]Warning:[/yellow] {escape(checked['reason'])}", soft_wrap=True)
    if checked["reason"] is not None:
        raise typer.Exit(1)


@client_command(app)
def delete(name: Name, as_json: AsJson = False) -> None:
    """Delete an identity and its secret, if no connection uses it. With --json, print it as it was.

    Example: pushgate identity delete ci
    """
    client, path = client_of(), f"/identities/{part(name)}"
    shown = client.get(path)
    client.send("DELETE", path)
    print_json(shown) if as_json else out.print("Deleted. Revoke its secret at the provider, too.")


def _secret(
    kind: str, settings: Mapping[str, Any], token_file: Path | None, key_file: Path | None
) -> dict[str, str]:
    """Return the field of requests with the secret of an identity, from a file or from standard input."""
    match kind, settings.get("credential"):
        case "github-app", _:
            return {"private_key": read_secret(key_file, "private key", "--key-file", has_lines=True)}
        case "entra", "certificate":
            return {"certificate": read_secret(key_file, "certificate", "--certificate-file", has_lines=True)}
        case "entra", "client-secret":
            return {"client_secret": read_secret(token_file, "client secret", "--token-file")}
        case "entra", _:
            return {}
    return {"token": read_secret(token_file, "token", "--token-file")}


def _instant(expires: datetime | None) -> str | None:
    if expires is None:
        return None
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).isoformat()


def _expiry(expires_at: str | None) -> str:
    if expires_at is None:
        return "never"
    has_expired = datetime.fromisoformat(expires_at) <= datetime.now(UTC)
    return f"[red]{when(expires_at)} (expired)[/red]" if has_expired else when(expires_at)
