"""The REST API under /api/v1: connections."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.conditions import IfMatch, later
from gateway.api.connection_views import (
    ConnectionCreated,
    ConnectionPage,
    ConnectionView,
    RefPage,
    RefView,
)
from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.public_url import unreachable_hook
from gateway.api.query import limit, wait_seconds
from gateway.api.receivers import name_platform, status_receiver
from gateway.api.remote_access import changed_access, remote_access
from gateway.api.schemas import (
    ConnectionChange,
    NewConnection,
    NewSecret,
)
from gateway.api.valohai import ValohaiUrls
from gateway.api.webhook_auth import next_secret, read_scheme
from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid
from gateway.fetch.credentials import take_login
from gateway.fetch.urls import check_url
from gateway.intake.connection_cache import ConnectionCache
from gateway.plan.triggers import read_triggers
from gateway.store import (
    connections,
    identities,
    other_repositories,
    reconciliations,
    registrations,
    status_tasks,
    status_webhooks,
    work_queue,
)
from gateway.store.connection_facts import facts
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.ids import connection_id as new_connection_id
from gateway.store.notify import Notifier
from gateway.threads import API
from providers import PROVIDERS
from providers.clone_urls import repository_key

_POLL_SECONDS = 0.1
# What is stored by functions of its own.
_APART = {"credentials", "identity", "platform", "status_webhook"}
_SHOWN_REFS = ("refs/heads/", "refs/tags/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The endpoints for connections.

    `pushes` wakes the workers; webhook URLs begin with `base_url`.
    """

    database: Database
    keyring: Keyring
    cache: ConnectionCache
    pushes: Notifier
    base_url: str
    allow_http: bool
    hosts: tuple[str, ...]

    def operations(self) -> list[Operation]:
        """Return the operations on connections."""
        path = "/connections/{id}"
        return [
            Operation(
                method="GET",
                path="/connections",
                endpoint=self.list_connections,
                query=("name", "q", "limit", "cursor"),
            ),
            Operation(
                method="POST",
                path="/connections",
                endpoint=self.create_connection,
                status=201,
                body=NewConnection,
                query=("wait",),
                errors=(409,),
                location=path,
            ),
            Operation(method="GET", path=path, endpoint=self.get_connection),
            Operation(
                method="PATCH",
                path=path,
                endpoint=self.update_connection,
                body=ConnectionChange,
                errors=(409,),
                is_conditional=True,
            ),
            Operation(
                method="DELETE",
                path=path,
                endpoint=self.delete_connection,
                status=204,
                is_conditional=True,
            ),
            Operation(
                method="POST", path=f"{path}/rotate-secret", endpoint=self.rotate_secret, body=NewSecret
            ),
            Operation(
                method="POST",
                path=f"{path}/fetch",
                endpoint=self.fetch_connection,
                status=202,
                location=path,
            ),
            Operation(method="POST", path=f"{path}/check", endpoint=self.check_connection, query=("wait",)),
            Operation(method="POST", path=f"{path}/forget-repository", endpoint=self.forget_repository),
            Operation(method="GET", path=f"{path}/refs", endpoint=self.list_refs, query=("limit", "cursor")),
        ]

    async def list_connections(self, request: Request) -> ConnectionPage:
        """`GET /connections`: list connections, oldest first."""
        query, max_items = request.query_params, limit(request)

        def read_page(conn: sqlalchemy.Connection) -> ConnectionPage:
            found = connections.page(
                conn,
                after=query.get("cursor"),
                limit=max_items + 1,
                name=query.get("name"),
                search=query.get("q"),
            )
            views = self._views(conn, found[:max_items])
            return ConnectionPage(items=views, next=views[-1].id if len(found) > max_items else None)

        return await self.database.read(read_page)

    async def create_connection(self, request: Request) -> ConnectionCreated:
        """`POST /connections`: connect a repository. The secret is shown only in this answer.

        The remote need not be reachable: `remote` has the result of reading it, if that ends within `wait`
        seconds.
        """
        wait = wait_seconds(request)
        wanted = await read(request, NewConnection)
        if wanted.provider not in PROVIDERS:
            raise Invalid(f"provider: unknown provider {wanted.provider!r}; choose {', '.join(PROVIDERS)}")
        scheme = read_scheme(wanted.provider, wanted.secret, wanted.auth)
        name = wanted.name or repository_key(wanted.url).partition("/")[2]
        url = self._checked(take_login(wanted.url, wanted.provider)[0])
        access = await API.run(remote_access, wanted, name=name)
        unreachable = unreachable_hook(self.base_url, url)
        warnings = [*access.warnings, *([unreachable] if unreachable else [])]
        receiver = status_receiver(wanted.status_webhook, allow_http=self.allow_http)
        now = datetime.now(UTC)
        connection = _new_connection(
            wanted, name=name, url=url, auth=scheme.auth, deploy_key=access.deploy_key, now=now
        )

        def make(conn: sqlalchemy.Connection) -> ConnectionCreated:
            added = replace(connection, identity=identities.named(conn, wanted.identity))
            identities.use(conn, added)
            connections.add_another(conn, added, is_named=wanted.name is not None, is_forced=wanted.force)
            connections.keep_credentials(conn, self.keyring, connection.id, access.sealable)
            if wanted.platform is not None:
                name_platform(conn, self.keyring, connection.id, wanted.platform, allow_http=self.allow_http)
            if receiver is not None:
                status_webhooks.name(conn, self.keyring, connection.id, receiver)
            for secret in scheme.secrets:
                connections.add_secret(conn, self.keyring, connection.id, secret.encode(), now=now)
            kept = connections.get(conn, connection.id)
            made = self._made(conn, kept, scheme.secrets[-1])
            return made.model_copy(update={"warnings": warnings})

        made = await self.database.write(make)
        self.pushes.notify()
        shown = await self._after_look(made.id, since=now, seconds=wait)
        timed = {"remote": shown.remote, "reconciliation": shown.reconciliation, "health": shown.health}
        return made.model_copy(update=timed)

    async def get_connection(self, request: Request) -> ConnectionView:
        """`GET /connections/{id}`: return a connection."""
        connection_id = request.path_params["id"]
        return await self.database.read(lambda conn: self._view(conn, connections.get(conn, connection_id)))

    async def update_connection(self, request: Request) -> ConnectionView:
        """`PATCH /connections/{id}`: change the given fields; postponed work is retried now."""
        connection_id, condition = request.path_params["id"], IfMatch.of(request)
        given = await read(request, ConnectionChange)
        wanted = self._changes(given)
        now = datetime.now(UTC)
        old = await self.database.read(connections.get, connection_id=connection_id)
        kept = await self.database.read(
            connections.credentials, keyring=self.keyring, connection_id=connection_id
        )
        access = await API.run(changed_access, old, kept, given)
        if access is not None:
            wanted["deploy_key"] = access.deploy_key
        receiver = status_receiver(given.status_webhook, allow_http=self.allow_http)
        is_identity_given = "identity" in given.model_fields_set

        def change(conn: sqlalchemy.Connection) -> ConnectionView:
            before = connections.get(conn, connection_id, locked=True)
            condition.check(before.name, before.updated_at)
            changed = replace(before, **wanted, updated_at=later(now, before.updated_at))
            if is_identity_given:
                changed = replace(changed, identity=identities.named(conn, given.identity))
            identities.use(conn, changed)
            connections.change(conn, changed)
            if access is not None:
                connections.keep_credentials(conn, self.keyring, connection_id, access.sealable)
            if "platform" in given.model_fields_set:
                name_platform(conn, self.keyring, connection_id, given.platform, allow_http=self.allow_http)
            if "status_webhook" in given.model_fields_set:
                status_webhooks.name(conn, self.keyring, connection_id, receiver)
            work_queue.make_due(conn, connection_id, now=now)
            status_tasks.retry_refused(conn, connection=connection_id, now=now)
            if "url" in wanted:
                reconciliations.start_over(conn, connection_id, now=now)
            elif access is not None or is_identity_given:
                reconciliations.request(conn, connection_id, now=now)
            return self._view(conn, connections.get(conn, connection_id))

        view = await self.database.write(change)
        self.cache.forget(connection_id)
        self.pushes.notify()
        return view

    def _changes(self, given: ConnectionChange) -> dict[str, Any]:
        """Return the new values of a connection's fields. Raises `Invalid`."""
        wanted = given.model_dump(exclude_none=True, exclude=_APART)
        if "url" in wanted:
            # Another repository has another id; the next delivery sets it.
            wanted |= {"url": self._checked(take_login(wanted["url"], "")[0]), "repository_id": None}
        if "networks" in wanted:
            wanted["networks"] = _texts(wanted["networks"])
        if "triggers" in wanted:
            wanted["triggers"] = _checked_triggers(wanted["triggers"])
        return wanted

    async def delete_connection(self, request: Request) -> Response:
        """`DELETE /connections/{id}`: delete a connection, and the webhook that Pushgate has registered.

        Its deliveries stay readable.
        """
        connection_id, condition = request.path_params["id"], IfMatch.of(request)
        now = datetime.now(UTC)

        def remove(conn: sqlalchemy.Connection) -> None:
            before = connections.get(conn, connection_id, locked=True)
            condition.check(before.name, before.updated_at)
            connections.remove(conn, connection_id, now=now)
            registrations.request_removal(conn, connection_id, now=now)

        await self.database.write(remove)
        self.cache.forget(connection_id)
        self.pushes.notify()
        return Response(status_code=204)

    async def rotate_secret(self, request: Request) -> ConnectionCreated:
        """`POST /connections/{id}/rotate-secret`: set a new secret; the previous one stays valid.

        The previous secret is valid until the next rotation. Sending the newest secret again changes nothing.
        """
        connection_id = request.path_params["id"]
        given = (await read(request, NewSecret)).secret
        now = datetime.now(UTC)

        def rotate(conn: sqlalchemy.Connection) -> ConnectionCreated:
            connection = connections.get(conn, connection_id)
            if connection.source is not None:
                raise Conflict(
                    f"the deliveries of {connection.name} arrive at the webhook of its source: rotate the"
                    f" secret of the source {connection.source}"
                )
            secret = next_secret(conn, self.keyring, connection, given, now=now)
            return self._made(conn, connection, secret)

        made = await self.database.write(rotate)
        self.cache.forget(connection_id)
        return made

    async def fetch_connection(self, request: Request) -> ConnectionView:
        """`POST /connections/{id}/fetch`: reconcile now; `reconciliation` has the result."""
        connection_id = request.path_params["id"]
        now = datetime.now(UTC)

        def request_fetch(conn: sqlalchemy.Connection) -> ConnectionView:
            connection = connections.get(conn, connection_id)
            reconciliations.request(conn, connection_id, now=now)
            work_queue.make_due(conn, connection_id, now=now)
            return self._view(conn, connection)

        view = await self.database.write(request_fetch)
        self.pushes.notify()
        return view

    async def check_connection(self, request: Request) -> ConnectionView:
        """`POST /connections/{id}/check`: reconcile now, and wait: `remote` has the result.

        A worker reads the remote: another process may have neither a way to it nor the pinned host keys.
        """
        wait = wait_seconds(request)
        requested = (await self.fetch_connection(request)).reconciliation
        return await self._after_look(request.path_params["id"], since=requested.due_at, seconds=wait)

    async def _after_look(self, connection_id: str, *, since: datetime, seconds: float) -> ConnectionView:
        """Return a connection once a look that began at `since` or later has ended, or so many seconds on."""
        ends_at = time.monotonic() + seconds
        while True:
            view = await self.database.read(
                lambda conn: self._view(conn, connections.get(conn, connection_id), since=since)
            )
            if view.remote.readable is not None or time.monotonic() >= ends_at:
                return view
            await asyncio.sleep(_POLL_SECONDS)

    async def forget_repository(self, request: Request) -> ConnectionView:
        """`POST /connections/{id}/forget-repository`: forget the repository's id; the next delivery sets it.

        For a repository that was deleted and created again at the same URL.
        """
        connection_id = request.path_params["id"]
        now = datetime.now(UTC)

        def forget(conn: sqlalchemy.Connection) -> ConnectionView:
            other_repositories.forget(conn, connection_id)
            reconciliations.request(conn, connection_id, now=now)
            return self._view(conn, connections.get(conn, connection_id))

        view = await self.database.write(forget)
        self.cache.forget(connection_id)
        self.pushes.notify()
        return view

    async def list_refs(self, request: Request) -> RefPage:
        """`GET /connections/{id}/refs`: list the known position of each branch and tag, by name.

        Without `limit`, the answer has all of them.
        """
        connection_id, query = request.path_params["id"], request.query_params
        max_items = limit(request) if "limit" in query else None

        def look(conn: sqlalchemy.Connection) -> dict[str, str | None]:
            connections.get(conn, connection_id)
            return reconciliations.known_refs(conn, connection_id)

        known = await self.database.read(look)
        refs = [ref for ref in sorted(known) if ref.startswith(_SHOWN_REFS) and ref > query.get("cursor", "")]
        views = [RefView(ref=ref, id=known[ref]) for ref in refs[:max_items]]
        return RefPage(items=views, next=views[-1].ref if len(views) < len(refs) else None)

    def _checked(self, url: str) -> str:
        check_url(url, allow_http=self.allow_http, hosts=self.hosts)
        return url

    def _view(
        self, conn: sqlalchemy.Connection, connection: Connection, *, since: datetime | None = None
    ) -> ConnectionView:
        [view] = self._views(conn, [connection], since=since)
        return view

    def _views(
        self, conn: sqlalchemy.Connection, found: Sequence[Connection], *, since: datetime | None = None
    ) -> list[ConnectionView]:
        """Return the views of connections, by a number of queries that does not depend on theirs."""
        now = datetime.now(UTC)
        known = facts(conn, found, now=now)
        urls = ValohaiUrls(keyring=self.keyring, base_url=self.base_url)
        return [
            ConnectionView.of(
                connection,
                known[connection.id],
                base_url=self.base_url,
                valohai_url=urls.of(connection),
                now=now,
                since=since,
            )
            for connection in found
        ]

    def _made(self, conn: sqlalchemy.Connection, connection: Connection, secret: str) -> ConnectionCreated:
        return ConnectionCreated(**self._view(conn, connection).model_dump(), secret=secret)


def _new_connection(
    wanted: NewConnection,
    *,
    name: str,
    url: str,
    auth: Mapping[str, str],
    deploy_key: str | None,
    now: datetime,
) -> Connection:
    given = wanted.model_dump(exclude={"secret", "force", *_APART})
    given |= {"name": name, "url": url, "auth": auth, "networks": _texts(wanted.networks)}
    given["triggers"] = _checked_triggers(wanted.triggers)
    return Connection(
        **given,
        id=new_connection_id(),
        repository_id=None,
        created_at=now,
        updated_at=now,
        deploy_key=deploy_key,
    )


def _texts(networks: Sequence[Any]) -> list[str]:
    return [str(network) for network in networks]


def _checked_triggers(wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [trigger.model_dump(mode="json") for trigger in read_triggers(wanted)]
