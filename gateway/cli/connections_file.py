"""Connections from a file: what would change, and bringing it into force over the REST API.

    connections:
      - name: digits
        provider: github
        url: https://github.com/acme/digits.git
        project: digits
        secret: {env: DIGITS_SECRET}    # or {file: /run/secrets/digits}; where none is named, one is made
        triggers:
          - {name: train, on: [push], branches: [main], run: {step: train}}

A connection is found again by its name. What the file leaves out has its default; connections that the file
doesn't name stay, unless they are to be pruned.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.api.schemas import Follows, Line, Networks, PackageFormat, Url, YamlPath
from gateway.cli.api_client import Client
from gateway.errors import Invalid, PushgateError
from gateway.fetch.credentials import take_login
from gateway.plan.triggers import read_triggers
from gateway.text.validation import describe

_MAX_BYTES = 16 * 1024 * 1024
_RULES = {"url", "project", "triggers", "yaml_path", "follows", "package_format"}
_BOOLEAN = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """YAML whose only booleans are true and false, as in YAML 1.2: the key `on` of a trigger is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own form
        first: [(tag, form) for tag, form in resolvers if tag != _BOOLEAN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class SecretSource(BaseModel):
    """Where a secret stands: in this variable of the environment, or in this file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "SecretSource":
        if (self.env is None) == (self.file is None):
            raise ValueError("name either a variable, {env: NAME}, or a file, {file: PATH}")
        return self

    def read(self) -> str:
        """Return the secret. Raises `Invalid` where it isn't there."""
        if self.env is not None:
            value = os.environ.get(self.env, "")
            where = f"the variable {self.env}"
        else:
            where = f"the file {self.file}"
            try:
                value = Path(self.file or "").read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"{where} cannot be read: {error}") from error
        if not value:
            raise Invalid(f"{where} holds no secret")
        return value


class WantedConnection(BaseModel):
    """A connection as the file wants it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Line
    provider: str
    url: Url
    project: Line
    secret: SecretSource | None = None
    auth: dict[str, str] = Field(default_factory=dict)
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    yaml_path: YamlPath = "valohai.yaml"
    follows: Follows = Field(default_factory=list)
    networks: Networks = Field(default_factory=list)
    package_format: PackageFormat = "tar.gz"
    force: bool = False

    @field_validator("auth")
    @classmethod
    def _as_shown(cls, value: dict[str, str]) -> dict[str, str]:
        return {**value, "header": value["header"].lower()} if "header" in value else value


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    connections: Annotated[list[WantedConnection], Field(max_length=10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has to be done to one connection. `fields` are old and new values of what differs, by name."""

    action: Literal["create", "change", "delete", "keep"]
    name: str
    id: str | None = None
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    wanted: WantedConnection | None = None
    secret: str | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """The change as JSON; no secret is in it."""
        differing = {name: {"from": old, "to": new} for name, (old, new) in self.fields.items()}
        return {"action": self.action, "name": self.name, "id": self.id, "fields": differing}


def read_file(text: bytes) -> list[WantedConnection]:
    """Read a connections file. Raises `Invalid` with one sentence that says where it is wrong."""
    if len(text) > _MAX_BYTES:
        raise Invalid(f"the file has more than {_MAX_BYTES} bytes")
    try:
        wanted = _File.model_validate(yaml.load(text, _Loader)).connections  # noqa: S506 - a SafeLoader
    except ValidationError as error:
        raise Invalid(describe(error, _File, whole="the file")) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A date that is none is a ValueError.
        raise Invalid(f"the file is not YAML: {error}") from error
    names = Counter(one.name for one in wanted)
    repeated = next((name for name, count in names.items() if count > 1), None)
    if repeated is not None:
        raise Invalid(f"there are two connections of the name {repeated!r}; the name tells them apart")
    for one in wanted:
        try:
            read_triggers(one.triggers)
        except PushgateError as error:
            raise Invalid(f"{one.name}: {error}") from error
    return wanted


def compare(
    wanted: Sequence[WantedConnection], present: Sequence[Mapping[str, Any]], *, prune: bool
) -> list[Change]:
    """Say what has to be done so that what is present becomes what is wanted. Raises `Invalid`."""
    changes = [_compare(one, there) for one, there in pairs(wanted, present)]
    named = {one.name for one in wanted}
    left = [one for one in present if one["name"] not in named]
    return changes + [Change(action="delete", name=one["name"], id=one["id"]) for one in left if prune]


def pairs(
    wanted: Sequence[WantedConnection], present: Sequence[Mapping[str, Any]]
) -> list[tuple[WantedConnection, Mapping[str, Any] | None]]:
    """Return each connection of the file with the present one of its name, if any.

    Raises `Invalid` where several have the name, or the present one cannot become the one of the file.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for there in present:
        by_name.setdefault(there["name"], []).append(there)
    for one in wanted:
        if len(same := by_name.get(one.name, [])) > 1:
            ids = ", ".join(there["id"] for there in same)
            raise Invalid(
                f"{one.name}: several connections have this name ({ids}); rename or delete all but one"
            )
        for name in ("provider", "auth"):
            if same and same[0][name] != getattr(one, name):
                raise Invalid(f"{one.name}: {name} can't be changed; delete the connection and make it anew")
    return [(one, by_name[one.name][0] if one.name in by_name else None) for one in wanted]


def rules_of(wanted: WantedConnection) -> dict[str, Any]:
    """Return the part of a connection that planning asks for, as the API takes it."""
    return {name: value for name, value in _plain(wanted).items() if name in _RULES}


def carry_out(client: Client, change: Change) -> Any:
    """Do what a change says; return the connection afterwards, None where there is none any more."""
    if change.action == "delete":
        return client.send("DELETE", f"/connections/{change.id}")
    if change.action == "create" and change.wanted is not None:
        proof = _proof(change.wanted, change.secret)
        return client.send(
            "POST",
            "/connections",
            {**_plain(change.wanted), "url": change.wanted.url, "force": change.wanted.force, **proof},
        )
    path = f"/connections/{change.id}"
    if change.fields:
        fields = {name: new for name, (_, new) in change.fields.items()}
        if change.wanted is not None and "url" in fields:
            fields["url"] = change.wanted.url
        client.send("PATCH", path, fields)
    if change.secret is not None:
        client.send("POST", f"{path}/rotate-secret", {"secret": change.secret})
    return client.get(path)


def _compare(wanted: WantedConnection, one: Mapping[str, Any] | None) -> Change:
    secret = wanted.secret.read() if wanted.secret is not None else None
    if one is None:
        return Change(action="create", name=wanted.name, wanted=wanted, secret=secret)
    differing = {
        name: (one[name], new)
        for name, new in _plain(wanted).items()
        if name not in {"provider", "auth", "name"} and one[name] != new
    }
    action: Literal["change", "keep"] = "change" if differing else "keep"
    return Change(
        action=action, name=wanted.name, id=one["id"], fields=differing, wanted=wanted, secret=secret
    )


def _proof(wanted: WantedConnection, secret: str | None) -> dict[str, Any]:
    """Return the part of a new connection that holds its secret; a custom header has it as its value."""
    if secret is None:
        return {}
    if "header" in wanted.auth:
        return {"auth": {**wanted.auth, "value": secret}}
    return {"secret": secret}


def _plain(wanted: WantedConnection) -> dict[str, Any]:
    """Return what the API takes, in the form in which it shows it: of the URL, without its credentials."""
    return {
        **wanted.model_dump(mode="json", exclude={"secret", "force"}),
        "url": take_login(wanted.url, wanted.provider)[0],
        "triggers": [one.model_dump(mode="json") for one in read_triggers(wanted.triggers)],
    }
