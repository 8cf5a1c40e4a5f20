"""The REST API under /api/v1: sources, and their repositories."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.conditions import IfMatch, later
from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.public_url import unreachable_hook
from gateway.api.query import choice, limit, wait_seconds
from gateway.api.schemas import NewSecret, NewSource, SourceChange
from gateway.api.source_place import check_place, default_name, scope_of
from gateway.api.source_views import (
    SourceCreated,
    SourcePage,
    SourceRepositoryPage,
    SourceRepositoryView,
    SourceView,
)
from gateway.api.views import view_of
from gateway.api.webhook_auth import next_secret, read_scheme
from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid
from gateway.intake.connection_cache import ConnectionCache
from gateway.plan.source_rules import Rule, read_rules
from gateway.store import connections, identities, registrations, source_apps, source_repositories, sources
from gateway.store.database import Database
from gateway.store.ids import connection_id as new_source_id
from gateway.store.notify import Notifier
from gateway.store.source_repositories import SourceRepository, State
from gateway.store.sources import Scope, Source
from providers import PROVIDERS

_POLL_SECONDS = 0.1
_NOT_YET = "no worker has done it yet: it goes on, if a worker runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The endpoints for sources. `pushes` wakes the workers; webhook URLs begin with `base_url`."""

    database: Database
    keyring: Keyring
    cache: ConnectionCache
    pushes: Notifier
    base_url: str
    allow_http: bool
    hosts: tuple[str, ...]

    def operations(self) -> list[Operation]:
        """Return the operations on sources."""
        path = "/sources/{id}"
        return [
            Operation(method="GET", path="/sources", endpoint=self.list_sources, query=("limit", "cursor")),
            Operation(
                method="POST",
                path="/sources",
                endpoint=self.create_source,
                status=201,
                body=NewSource,
                errors=(409,),
                location=path,
            ),
            Operation(method="GET", path=path, endpoint=self.get_source),
            Operation(
                method="PATCH",
                path=path,
                endpoint=self.update_source,
                body=SourceChange,
                errors=(409,),
                is_conditional=True,
            ),
            Operation(
                method="DELETE", path=path, endpoint=self.delete_source, status=204, is_conditional=True
            ),
            Operation(
                method="POST",
                path=f"{path}/rotate-secret",
                endpoint=self.rotate_source_secret,
                body=NewSecret,
            ),
            Operation(method="POST", path=f"{path}/list", endpoint=self.list_source, query=("wait",)),
            Operation(
                method="GET",
                path=f"{path}/repositories",
                endpoint=self.list_source_repositories,
                query=("state", "limit", "cursor"),
            ),
            Operation(
                method="POST",
                path=f"{path}/repositories/{{repository}}/decide",
                endpoint=self.decide_source_repository,
            ),
        ]

    async def list_sources(self, request: Request) -> SourcePage:
        """`GET /sources`: list sources by name."""
        query, max_items = request.query_params, limit(request)

        def read_page(conn: sqlalchemy.Connection) -> SourcePage:
            found = sources.page(conn, after=query.get("cursor"), limit=max_items + 1)
            views = self._views(conn, found[:max_items])
            return SourcePage(items=views, next=views[-1].name if len(found) > max_items else None)

        return await self.database.read(read_page)

    async def create_source(self, request: Request) -> SourceCreated:
        """`POST /sources`: add a source. The secret is shown only in this answer.

        With an identity, a worker lists the repositories. Without one, each is found by its first delivery.
        """
        wanted = await read(request, NewSource)
        if wanted.provider not in PROVIDERS:
            raise Invalid(f"provider: unknown provider {wanted.provider!r}; choose {', '.join(PROVIDERS)}")
        scope = wanted.scope or scope_of(wanted.url)
        self._check_place(wanted.provider, wanted.url, scope)
        scheme = read_scheme(wanted.provider, wanted.secret, wanted.auth)
        now = datetime.now(UTC)
        source = Source(
            id=new_source_id(),
            name=wanted.name or default_name(wanted.provider, wanted.url, scope),
            provider=wanted.provider,
            url=wanted.url.rstrip("/"),
            scope=scope,
            rules=_stored(read_rules(wanted.rules)),
            auth=scheme.auth,
            networks=_texts(wanted.networks),
            identity=None,
            created_at=now,
            updated_at=now,
        )
        unreachable = unreachable_hook(self.base_url, source.url)

        def make(conn: sqlalchemy.Connection) -> SourceCreated:
            added = replace(source, identity=identities.named(conn, wanted.identity))
            _check(conn, added)
            sources.add(conn, added)
            for secret in scheme.secrets:
                connections.add_secret(conn, self.keyring, added.id, secret.encode(), now=now)
            made = self._made(conn, added, scheme.secrets[-1])
            return made.model_copy(update={"warnings": [unreachable] if unreachable else []})

        made = await self.database.write(make)
        self.pushes.notify()
        return made

    async def get_source(self, request: Request) -> SourceView:
        """`GET /sources/{id}`: return a source."""
        return await self._read(request.path_params["id"])

    async def update_source(self, request: Request) -> SourceView:
        """`PATCH /sources/{id}`: change the given fields; the rules decide again about all repositories.

        The connections that they have made get the settings of their rule, and stay if no rule matches now.
        """
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)
        given = await read(request, SourceChange)
        wanted = given.model_dump(include={"name"}, exclude_none=True)
        if given.rules is not None:
            wanted["rules"] = _stored(read_rules(given.rules))
        if given.networks is not None:
            wanted["networks"] = _texts(given.networks)
        now = datetime.now(UTC)

        def change(conn: sqlalchemy.Connection) -> SourceView:
            before = sources.get(conn, id_or_name, locked=True)
            condition.check(before.name, before.updated_at)
            changed = replace(before, **wanted, updated_at=later(now, before.updated_at))
            if given.url is not None:
                changed = replace(changed, url=given.url.rstrip("/"))
                self._check_place(changed.provider, changed.url, changed.scope)
            if "identity" in given.model_fields_set:
                changed = replace(changed, identity=identities.named(conn, given.identity))
            _check(conn, changed)
            sources.change(conn, changed)
            return self._view(conn, sources.get(conn, changed.id))

        view = await self.database.write(change)
        self.cache.forget(view.id)
        self.pushes.notify()
        return view

    async def delete_source(self, request: Request) -> Response:
        """`DELETE /sources/{id}`: delete a source, and the webhook that Pushgate has registered for it.

        Its connections stay, without a webhook: reconciliation finds their pushes. Deliveries stay readable.
        """
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)
        now = datetime.now(UTC)

        def remove(conn: sqlalchemy.Connection) -> str:
            source = sources.get(conn, id_or_name, locked=True)
            condition.check(source.name, source.updated_at)
            sources.remove(conn, source.id, now=now)
            registrations.request_removal(conn, source.id, now=now)
            return source.id

        self.cache.forget(await self.database.write(remove))
        self.pushes.notify()
        return Response(status_code=204)

    async def rotate_source_secret(self, request: Request) -> SourceCreated:
        """`POST /sources/{id}/rotate-secret`: set a new secret; the previous one stays valid.

        The previous secret is valid until the next rotation. Sending the newest secret again changes nothing.
        """
        id_or_name = request.path_params["id"]
        given = (await read(request, NewSecret)).secret
        now = datetime.now(UTC)

        def rotate(conn: sqlalchemy.Connection) -> SourceCreated:
            source = sources.get(conn, id_or_name)
            secret = next_secret(conn, self.keyring, source.as_connection, given, now=now)
            return self._made(conn, source, secret)

        made = await self.database.write(rotate)
        self.cache.forget(made.id)
        return made

    async def list_source(self, request: Request) -> SourceView:
        """`POST /sources/{id}/list`: list the repositories at the provider now, and wait.

        A worker does it. If none has done it within `wait` seconds, `reason` says so.
        """
        id_or_name, ends_at = request.path_params["id"], time.monotonic() + wait_seconds(request)
        now = datetime.now(UTC)

        def make_due(conn: sqlalchemy.Connection) -> str:
            source = sources.get(conn, id_or_name)
            if source.identity is None:
                raise Conflict(
                    f"{source.name} has no identity that may list its repositories: add one, and set it on"
                    " the source. Until then, each repository is found by its first delivery"
                )
            sources.request_listing(conn, source.id, now=now)
            return source.id

        source_id = await self.database.write(make_due)
        self.pushes.notify()
        while True:
            view = await self._read(source_id)
            if view.reason is not None or (view.listed_at is not None and view.listed_at >= now):
                return view
            if time.monotonic() >= ends_at:
                return view.model_copy(update={"reason": _NOT_YET})
            await asyncio.sleep(_POLL_SECONDS)

    async def list_source_repositories(self, request: Request) -> SourceRepositoryPage:
        """`GET /sources/{id}/repositories`: list the repositories of a source by their full names."""
        id_or_name, query, max_items = request.path_params["id"], request.query_params, limit(request)
        state = choice(get_args(State), query.get("state"), "state")

        def read_page(conn: sqlalchemy.Connection) -> SourceRepositoryPage:
            source = sources.get(conn, id_or_name)
            found = source_repositories.page(
                conn, source.id, state=state, after=query.get("cursor"), limit=max_items + 1
            )
            views = [_repository(each) for each in found[:max_items]]
            return SourceRepositoryPage(items=views, next=views[-1].id if len(found) > max_items else None)

        return await self.database.read(read_page)

    async def decide_source_repository(self, request: Request) -> SourceRepositoryView:
        """`POST /sources/{id}/repositories/{repository}/decide`: let the rules decide about it again.

        Also about a repository whose connection was deleted, which the rules otherwise leave alone.
        """
        id_or_name, repository = request.path_params["id"], request.path_params["repository"]
        now = datetime.now(UTC)

        def decide(conn: sqlalchemy.Connection) -> SourceRepositoryView:
            source = sources.get(conn, id_or_name)
            return _repository(source_repositories.request(conn, source.id, repository, now=now))

        view = await self.database.write(decide)
        self.pushes.notify()
        return view

    def _check_place(self, provider: str, url: str, scope: Scope) -> None:
        check_place(provider, url, scope, allow_http=self.allow_http, hosts=self.hosts)

    async def _read(self, id_or_name: str) -> SourceView:
        return await self.database.read(lambda conn: self._view(conn, sources.get(conn, id_or_name)))

    def _view(self, conn: sqlalchemy.Connection, source: Source) -> SourceView:
        [view] = self._views(conn, [source])
        return view

    def _views(self, conn: sqlalchemy.Connection, found: Sequence[Source]) -> list[SourceView]:
        """Return the views of sources, by a number of queries that does not depend on theirs."""
        ids = [source.id for source in found]
        dates = connections.secret_dates(conn, ids)
        counts = source_repositories.counts(conn, ids)
        used = identities.of(conn, {source.identity for source in found if source.identity is not None})
        exchanges = source_apps.of(conn, ids)
        return [
            SourceView.of(
                source,
                dates[source.id],
                counts[source.id],
                used.get(source.identity or ""),
                exchanges.get(source.id),
                base_url=self.base_url,
            )
            for source in found
        ]

    def _made(self, conn: sqlalchemy.Connection, source: Source, secret: str) -> SourceCreated:
        return SourceCreated(**self._view(conn, source).model_dump(), secret=secret)


def _check(conn: sqlalchemy.Connection, source: Source) -> None:
    """Raise `Invalid` if the identity does not fit the source, or if a rule needs one and there is none."""
    identities.use(conn, source.as_connection)
    if source.identity is None and any(rule["manifest"] for rule in source.rules):
        raise Invalid(
            "rules: a rule with `manifest` needs an identity, which looks for the file on the default branch:"
            " add one, and set it on the source"
        )


def _stored(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    return [rule.model_dump(mode="json") for rule in rules]


def _texts(networks: Sequence[Any]) -> list[str]:
    return [str(network) for network in networks]


def _repository(found: SourceRepository) -> SourceRepositoryView:
    return view_of(SourceRepositoryView, found, id=found.repository)
