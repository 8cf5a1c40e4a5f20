"""The REST API under /api/v1: identities."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from pydantic import Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.query import limit
from gateway.api.schemas import IdentityChange, NewIdentity, Page, Provider
from gateway.api.views import View, view_of
from gateway.crypto.keyring import Keyring
from gateway.errors import Invalid
from gateway.fetch.urls import check_api_url
from gateway.store import identities
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.ids import identity_id
from gateway.store.notify import Notifier
from providers import PROVIDERS

_API_PROVIDERS = tuple(name for name in PROVIDERS if name != "generic")
# Bitbucket Cloud's API takes these with the mail address of the account.
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
_WITH_MAIL_ADDRESS = "ATATT"


class IdentityView(View):
    """An identity as it is shown: without its token."""

    id: str = Field(description="the id", examples=["0c4e8f1a2b3d5c6e7f809a1b"])
    name: str = Field(description="the unique name", examples=["acme-bot"])
    provider: Provider = Field(description="the kind of git server that has issued the token")
    kind: str = Field(description="the kind of the identity", json_schema_extra={"enum": ["token"]})
    user: str | None = Field(description="the user of the token; null if the provider wants none")
    api_url: str | None = Field(
        description="the base URL of the API; null for the provider's own service, such as github.com"
    )
    expires_at: datetime | None = Field(description="when the token expires; null if it never does")
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
            ),
            Operation(method="GET", path=path, endpoint=self.get_identity),
            Operation(
                method="PATCH",
                path=path,
                endpoint=self.update_identity,
                body=IdentityChange,
                errors=(409,),
            ),
            Operation(method="DELETE", path=path, endpoint=self.delete_identity, status=204, errors=(409,)),
        ]

    async def list_identities(self, request: Request) -> IdentityPage:
        """`GET /identities`: list identities by name."""
        max_items = limit(request)
        found = await self.database.read(
            identities.page, after=request.query_params.get("cursor"), limit=max_items + 1
        )
        views = [view_of(IdentityView, identity) for identity in found[:max_items]]
        return IdentityPage(items=views, next=views[-1].name if len(found) > max_items else None)

    async def create_identity(self, request: Request) -> IdentityView:
        """`POST /identities`: add an identity. No answer contains its token."""
        wanted = await read(request, NewIdentity)
        if wanted.provider not in _API_PROVIDERS:
            raise Invalid(f"provider: it has no API; choose {', '.join(_API_PROVIDERS)}")
        now = datetime.now(UTC)
        given = wanted.model_dump(exclude={"token"})
        identity = Identity(**given, id=identity_id(), kind="token", created_at=now, updated_at=now)
        token = _token(wanted.token)
        self._check(given, now=now)
        _check_whole(identity, token)
        await self.database.write(identities.add, keyring=self.keyring, identity=identity, token=token)
        return view_of(IdentityView, identity)

    async def get_identity(self, request: Request) -> IdentityView:
        """`GET /identities/{id}`: return an identity."""
        identity = await self.database.read(identities.get, id_or_name=request.path_params["id"])
        return view_of(IdentityView, identity)

    async def update_identity(self, request: Request) -> IdentityView:
        """`PATCH /identities/{id}`: change the given fields."""
        id_or_name = request.path_params["id"]
        wanted = await read(request, IdentityChange)
        token = None if wanted.token is None else _token(wanted.token)
        given = wanted.model_dump(exclude_unset=True, exclude={"token"})
        if given.get("name", "") is None:
            del given["name"]
        now = datetime.now(UTC)
        self._check(given, now=now)

        def change(conn: sqlalchemy.Connection) -> IdentityView:
            before = identities.get(conn, id_or_name)
            identity = replace(before, **given, updated_at=now)
            if token is None and identities.host(identity) != identities.host(before):
                raise Invalid("api_url: the stored token is for another server; give its token, too")
            _check_whole(identity, token or identities.token(conn, self.keyring, identity.id))
            identities.change(conn, self.keyring, identity, token=token)
            return view_of(IdentityView, identity)

        view = await self.database.write(change)
        self.pushes.notify()
        return view

    async def delete_identity(self, request: Request) -> Response:
        """`DELETE /identities/{id}`: delete an identity that no connection uses."""
        id_or_name = request.path_params["id"]
        await self.database.write(lambda conn: identities.delete(conn, identities.get(conn, id_or_name).id))
        return Response(status_code=204)

    def _check(self, given: Mapping[str, Any], *, now: datetime) -> None:
        """Raise `Invalid` for an API's URL that must not get a token, or for a token that has expired."""
        if given.get("api_url") is not None:
            check_api_url(given["api_url"], allow_http=self.allow_http, hosts=self.hosts)
        if given.get("expires_at") is not None and given["expires_at"] <= now:
            raise Invalid("expires_at: it must be in the future")


def _token(given: SecretStr) -> str:
    """Return a pasted token without the white space around it. Raises `Invalid`."""
    token = given.get_secret_value().strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("token: it must be one word of ASCII characters")
    return token


def _check_whole(identity: Identity, token: str) -> None:
    """Raise `Invalid` if an identity lacks what its token requires."""
    if not identities.host(identity):
        raise Invalid(f"api_url: {identity.provider} runs on many servers; give the URL of your server's API")
    is_api_token = identity.provider == "bitbucket" and token.startswith(_WITH_MAIL_ADDRESS)
    if is_api_token and identity.user is None:
        raise Invalid("user: an API token of Bitbucket Cloud requires the mail address of its account")
