"""The REST API under /api/v1: identities."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import identity_kinds
from gateway.api.conditions import IfMatch, later
from gateway.api.endpoints import read
from gateway.api.identity_schemas import IdentityChange, NewIdentity
from gateway.api.openapi import Operation
from gateway.api.query import limit, wait_seconds
from gateway.api.schemas import Page, Provider
from gateway.api.views import View, view_of
from gateway.crypto.keyring import Keyring
from gateway.errors import Invalid
from gateway.fetch.urls import check_api_url
from gateway.store import identities, identity_checks, status_tasks
from gateway.store.database import Database
from gateway.store.identities import Identity, Kind
from gateway.store.ids import identity_id
from gateway.store.notify import Notifier

_POLL_SECONDS = 0.1
_NOT_YET = (
    "no worker has checked it yet, or the provider does not answer: the check goes on, if a worker runs"
)
_ALWAYS = frozenset({"name", "settings", "rotates"})


class IdentityView(View):
    """An identity as it is shown: without its secret."""

    id: str = Field(description="the id", examples=["0c4e8f1a2b3d5c6e7f809a1b"])
    name: str = Field(description="the unique name", examples=["acme-bot"])
    provider: Provider = Field(description="the kind of git server that it is for")
    kind: str = Field(
        description="`token`, an access token; `github-app`, a GitHub App; `entra`, an application or a"
        " managed identity in Microsoft Entra",
        json_schema_extra={"enum": list(get_args(Kind))},
    )
    settings: Mapping[str, str] = Field(
        description="the settings of its kind, none of which is secret: `app_id` of a GitHub App;"
        " `credential`, `tenant` and `client_id` in Microsoft Entra"
    )
    user: str | None = Field(description="the user of the token; null if the provider wants none")
    api_url: str | None = Field(
        description="the base URL of the API; null for the provider's own service, such as github.com"
    )
    host: str = Field(description="the host that gets its secret; empty if it has none yet")
    expires_at: datetime | None = Field(description="when the secret expires; null if it never does")
    rotates: bool = Field(description="whether Pushgate replaces its token before that ends")
    rights: list[str] | None = Field(
        description="the rights of the token in the provider's words, by the last check; null if the provider"
        " does not show them"
    )
    reason: str | None = Field(
        description="why the provider refused the identity at the last check; null if it did not"
    )
    checked_at: datetime | None = Field(description="when it was last checked; null before the first time")
    connections: int = Field(description="how many connections and sources use it")
    created_at: datetime = Field(description="when it was added")
    updated_at: datetime = Field(description="when it last changed")


class IdentityPage(Page[IdentityView]):
    """A page of identities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """The endpoints for identities. A changed identity wakes the workers by `pushes`."""

    database: Database
    keyring: Keyring
    pushes: Notifier
    allow_http: bool
    hosts: tuple[str, ...]

    def operations(self) -> list[Operation]:
        """Return the operations on identities."""
        path = "/identities/{id}"
        return [
            Operation(
                method="GET", path="/identities", endpoint=self.list_identities, query=("limit", "cursor")
            ),
            Operation(
                method="POST",
                path="/identities",
                endpoint=self.create_identity,
                status=201,
                body=NewIdentity,
                errors=(409,),
                location=path,
            ),
            Operation(method="GET", path=path, endpoint=self.get_identity),
            Operation(
                method="PATCH",
                path=path,
                endpoint=self.update_identity,
                body=IdentityChange,
                errors=(409,),
                is_conditional=True,
            ),
            Operation(
                method="DELETE",
                path=path,
                endpoint=self.delete_identity,
                status=204,
                errors=(409,),
                is_conditional=True,
            ),
            Operation(method="POST", path=f"{path}/check", endpoint=self.check_identity, query=("wait",)),
        ]

    async def list_identities(self, request: Request) -> IdentityPage:
        """`GET /identities`: list identities by name."""
        max_items = limit(request)
        after = request.query_params.get("cursor")

        def read_page(conn: sqlalchemy.Connection) -> IdentityPage:
            found = identities.page(conn, after=after, limit=max_items + 1)
            views = _views(conn, found[:max_items])
            return IdentityPage(items=views, next=views[-1].name if len(found) > max_items else None)

        return await self.database.read(read_page)

    async def create_identity(self, request: Request) -> IdentityView:
        """`POST /identities`: add an identity. No answer contains its secret."""
        wanted = await read(request, NewIdentity)
        now = datetime.now(UTC)
        given = _fields(wanted)
        secret = identity_kinds.read_secret(wanted.kind, given["settings"], wanted)
        if secret is None:
            secret = identity_kinds.without_secret(wanted.kind, given["settings"])
        self._check(given, now=now)
        given.setdefault("rotates", identity_kinds.can_rotate(wanted.provider, wanted.kind, secret))
        identity = identity_kinds.checked(
            Identity(**given, id=identity_id(), created_at=now, updated_at=now), secret
        )

        def add(conn: sqlalchemy.Connection) -> IdentityView:
            identities.add(conn, self.keyring, identity, secret)
            return _views(conn, [identity])[0]

        return await self.database.write(add)

    async def get_identity(self, request: Request) -> IdentityView:
        """`GET /identities/{id}`: return an identity."""
        id_or_name = request.path_params["id"]
        return await self.database.read(lambda conn: _views(conn, [identities.get(conn, id_or_name)])[0])

    async def update_identity(self, request: Request) -> IdentityView:
        """`PATCH /identities/{id}`: change the given fields."""
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)
        wanted = await read(request, IdentityChange)
        given = _fields(wanted)
        now = datetime.now(UTC)
        self._check(given, now=now)

        def change(conn: sqlalchemy.Connection) -> IdentityView:
            before = identities.get(conn, id_or_name, locked=True)
            condition.check(before.name, before.updated_at)
            identity = replace(before, **given, updated_at=later(now, before.updated_at))
            takes = identity_kinds.takes(identity.kind, identity.settings)
            secret = identity_kinds.read_secret(identity.kind, identity.settings, wanted)
            if secret is None and takes != identity_kinds.takes(before.kind, before.settings):
                secret = identity_kinds.without_secret(identity.kind, identity.settings)
            if secret is None and identities.host(identity) != identities.host(before):
                raise Invalid(f"api_url: the stored {takes} is for another server; give its {takes}, too")
            stored = identities.unseal(conn, self.keyring, identity.id).secret if secret is None else secret
            identity = identity_kinds.checked(identity, stored)
            identities.change(conn, self.keyring, identity, secret=secret)
            status_tasks.retry_refused(conn, identity=identity.id, now=now)
            return _views(conn, [identity])[0]

        view = await self.database.write(change)
        self.pushes.notify()
        return view

    async def delete_identity(self, request: Request) -> Response:
        """`DELETE /identities/{id}`: delete an identity that no connection uses."""
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)

        def remove(conn: sqlalchemy.Connection) -> None:
            identity = identities.get(conn, id_or_name, locked=True)
            condition.check(identity.name, identity.updated_at)
            identities.delete(conn, identity.id)

        await self.database.write(remove)
        return Response(status_code=204)

    async def check_identity(self, request: Request) -> IdentityView:
        """`POST /identities/{id}/check`: check now whether the provider accepts the secret, and wait.

        A worker does it. If none has done it within `wait` seconds, because none runs or the provider does
        not answer, `reason` says so.
        """
        id_or_name, ends_at = request.path_params["id"], time.monotonic() + wait_seconds(request)
        now = datetime.now(UTC)

        def make_due(conn: sqlalchemy.Connection) -> str:
            identity = identities.get(conn, id_or_name)
            identity_checks.request(conn, identity.id, now=now)
            return identity.id

        identity_id = await self.database.write(make_due)
        self.pushes.notify()
        while True:
            view = await self.database.read(lambda conn: _views(conn, [identities.get(conn, identity_id)])[0])
            if view.checked_at is not None and view.checked_at >= now:
                return view
            if time.monotonic() >= ends_at:
                return view.model_copy(update={"reason": _NOT_YET})
            await asyncio.sleep(_POLL_SECONDS)

    def _check(self, given: Mapping[str, Any], *, now: datetime) -> None:
        """Raise `Invalid` for an API's URL that must not get a secret, or for a secret that has expired."""
        if given.get("api_url") is not None:
            check_api_url(given["api_url"], allow_http=self.allow_http, hosts=self.hosts)
        if given.get("expires_at") is not None and given["expires_at"] <= now:
            raise Invalid("expires_at: it must be in the future")


def _views(conn: sqlalchemy.Connection, found: Sequence[Identity]) -> list[IdentityView]:
    used = identities.usage(conn, [identity.id for identity in found])
    return [
        view_of(
            IdentityView,
            identity,
            host=identities.host(identity),
            connections=used.get(identity.id, 0),
        )
        for identity in found
    ]


def _fields(wanted: NewIdentity | IdentityChange) -> dict[str, Any]:
    """Return the fields that a request sets, without secrets."""
    is_new = isinstance(wanted, NewIdentity)
    given = wanted.model_dump(exclude_unset=not is_new, exclude=identity_kinds.SECRETS)
    if wanted.settings is not None:
        given["settings"] = wanted.settings.model_dump(exclude_none=True)
    # These cannot be removed.
    return {name: value for name, value in given.items() if value is not None or name not in _ALWAYS}
