"""What files for `pushgate apply` consist of: YAML, places of secrets, and changes."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from gateway.errors import Invalid

_MAX_BYTES = 16 * 1024 * 1024
_BOOLEAN = "tag:yaml.org,2002:bool"

Wanted = TypeVar("Wanted")


class _Loader(yaml.SafeLoader):
    """YAML whose only booleans are true and false, as in YAML 1.2: the key `on` of a trigger is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own form
        first: [(tag, form) for tag, form in resolvers if tag != _BOOLEAN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_yaml(text: bytes) -> Any:
    """Return the value of a YAML file, which may be JSON. Raises `Invalid`."""
    if len(text) > _MAX_BYTES:
        raise Invalid(f"the file has more than {_MAX_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # An impossible date is a ValueError.
        raise Invalid(f"the file is not valid YAML: {error}") from error


class SecretSource(BaseModel):
    """Where a secret is stored: in an environment variable, or in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "SecretSource":
        if (self.env is None) == (self.file is None):
            raise ValueError("give either {env: NAME} or {file: PATH}")
        return self

    def read(self) -> str:
        """Return the secret. Raises `Invalid` where it is missing."""
        if self.env is not None:
            value = os.environ.get(self.env, "")
            where = f"the variable {self.env}"
        else:
            where = f"the file {self.file}"
            try:
                value = Path(self.file or "").read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"cannot read {where}: {error}") from error
        if not value:
            raise Invalid(f"{where} contains no secret")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[Wanted]):
    """A change to one connection or source. `fields` maps changed fields to old and new values."""

    action: Literal["create", "change", "delete", "keep"]
    name: str
    kind: Literal["connection", "source"] = "connection"
    id: str | None = None
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    wanted: Wanted | None = None
    secret: str | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """The change as JSON, without secrets."""
        differing = {name: {"from": old, "to": new} for name, (old, new) in self.fields.items()}
        named = {"kind": self.kind, "name": self.name, "id": self.id}
        return {"action": self.action, **named, "fields": differing}


def proof(auth: Mapping[str, str], secret: str | None) -> dict[str, Any]:
    """Return the fields of a request that have the secret; a custom header has it as its value."""
    if secret is None:
        return {}
    if "header" in auth:
        return {"auth": {**auth, "value": secret}}
    return {"secret": secret}


def as_shown(auth: Mapping[str, str]) -> dict[str, str]:
    """Return `auth` in the form in which the API shows it."""
    return {**auth, "header": auth["header"].lower()} if "header" in auth else dict(auth)
