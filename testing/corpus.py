"""The golden deliveries of `tests/corpus/<provider>/<case>/`: how a case is read, and how one is made.

A case is what a provider sends (`headers.json`, `body`) and what it means (`expected.json`: of the event, all
that is not at its default). An optional `case.json` has `secrets` and `auth` where they are not the usual
ones, and which of the `secrets` fits as `secret` (null: sent unsigned). A new case adds no Python: write its
body and, but for usual settings, its case.json, let

    python -m testing.corpus tests/corpus/github/new-case push

sign it and write how it is parsed, and review that with care before you commit it.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from providers import PROVIDERS
from providers.model import Event, Provider, VerifiedRequest

CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
NOW = datetime.fromtimestamp(1_700_000_000, UTC)
SECRET = b"It's a Secret to Everybody"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden delivery. `secret` is the index of the secret that fits, None for an unsigned one."""

    provider_name: str
    name: str
    headers: Mapping[str, str]
    body: bytes
    expected: Any
    secrets: tuple[bytes, ...] = (SECRET,)
    secret: int | None = 0
    auth: Mapping[str, str] = field(default_factory=dict)

    @property
    def provider(self) -> Provider:
        """The provider that sent it."""
        return PROVIDERS[self.provider_name]

    @property
    def event(self) -> str:
        """The name of the event in the delivery's header."""
        return self.verify().event

    def verify(self, **changes: Any) -> VerifiedRequest:
        """Verify the delivery, or a changed one: `headers`, `body`, `secrets`, `auth`, `now`."""
        request: dict[str, Any] = {
            "headers": self.headers,
            "body": self.body,
            "secrets": self.secrets,
            "auth": self.auth,
            "now": NOW,
        }
        return self.provider.verify(**(request | changes))

    def parse(self, body: bytes | None = None) -> Event:
        """Parse the delivery, or the delivery with another body."""
        delivery = self.verify()
        if body is not None:
            delivery = VerifiedRequest(
                event=delivery.event, id=delivery.id, secret=delivery.secret, content=body
            )
        return self.provider.parse(delivery)

    def __str__(self) -> str:
        """Name it as pytest shows it."""
        return f"{self.provider_name}/{self.name}"


def cases() -> list[Case]:
    """Return all cases."""
    return [_read(body.parent) for body in sorted(CORPUS.glob("*/*/body"))]


def as_json(value: Any) -> Any:
    """Return a value as JSON, without the fields of dataclasses that have their defaults."""
    if is_dataclass(value):
        return {
            one.name: as_json(getattr(value, one.name))
            for one in fields(value)
            if one.default is MISSING or getattr(value, one.name) != one.default
        }
    if isinstance(value, datetime):
        return value.isoformat()
    return [as_json(one) for one in value] if isinstance(value, tuple) else value


def _read(folder: Path) -> Case:
    settings = folder / "case.json"
    given = json.loads(settings.read_bytes()) if settings.exists() else {}
    if "secrets" in given:
        given["secrets"] = tuple(secret.encode() for secret in given["secrets"])
    return Case(
        provider_name=folder.parent.name,
        name=folder.name,
        headers=json.loads((folder / "headers.json").read_bytes()),
        body=(folder / "body").read_bytes(),
        expected=json.loads((folder / "expected.json").read_bytes()),
        **given,
    )


def _make(folder: Path, event: str) -> None:
    def write(name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")

    write("headers.json", {})
    write("expected.json", {})
    unsigned = _read(folder)
    headers = unsigned.provider.sign(
        event=event,
        body=unsigned.body,
        secret=unsigned.secrets[unsigned.secret or 0],
        delivery="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        now=NOW,
    )
    write("headers.json", headers)
    write("expected.json", as_json(_read(folder).parse()))


if __name__ == "__main__":
    _make(Path(sys.argv[1]), sys.argv[2])
