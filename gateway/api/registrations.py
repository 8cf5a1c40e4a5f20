"""The REST API under /api/v1: the webhooks that Pushgate registers at providers. A worker does the work."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
from pydantic import Field
from starlette.requests import Request

from gateway.api.openapi import Operation
from gateway.api.query import moment, wait_seconds
from gateway.api.views import View, view_of
from gateway.errors import Conflict, NotFound
from gateway.provider_apis.apis import APIS, LOGS
from gateway.store import connections, deliveries, redeliveries, registrations, sources
from gateway.store.connection_facts import last
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.registrations import Registration, Task

_POLL_SECONDS = 0.1
_NOT_YET = "no worker has done it yet: it goes on, if a worker runs"
_UNDER_WAY = "the search has not ended yet: it goes on, if a worker runs"


class RedeliveriesView(View):
    """The deliveries to a connection that failed, as the provider's log has them.

    The numbers are those of the last 8 days, or since a user last requested a search.
    """

    requested: int = Field(description="how many the provider was requested to send again")
    given_up: int = Field(description="how many of these failed again each time")
    requested_at: datetime | None = Field(description="when the last was requested")
    checked_at: datetime | None = Field(description="when the log was last searched to its end")
    reason: str | None = Field(description="why the last search failed; null if it succeeded")


class RegistrationView(View):
    """The webhook of a connection or a source at its provider, as the last check found it."""

    webhook: str | None = Field(description="the provider's id of the webhook; null if there is none of ours")
    url: str | None = Field(description="the URL that the provider sends to")
    differences: Sequence[str] = Field(
        description="what differs from the webhook that is needed: `missing`, `switched off`, `wrong URL`,"
        " `no secret`, `wrong secret`, `missing events`, `missing permissions` of a GitHub App,"
        " `branch filter`, `doubled`; empty if none was found"
    )
    advice: str | None = Field(
        description="what only a person can correct at the provider, such as the events of a GitHub App, as a"
        " sentence without a full stop; null if nothing is known"
    )
    problem: str | None = Field(
        description="the result of the provider's last delivery, if it failed and the provider shows it"
    )
    reason: str | None = Field(description="why the last check failed; null if it succeeded")
    checked_at: datetime | None = Field(description="when it was last checked; null before the first time")
    registered_at: datetime | None = Field(
        description="when the last registration or repair began; null if there was none"
    )
    is_tested: bool | None = Field(
        description="whether the provider was then requested to send a test delivery, which some providers do"
        " not have; null if there was no registration"
    )
    arrived_at: datetime | None = Field(
        description="when the last webhook of the connection arrived; null if none has yet"
    )
    redeliveries: RedeliveriesView | None = Field(
        description="the deliveries that failed and were requested again; null without a log of deliveries"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrations:
    """The endpoints for webhooks at providers. `pushes` wakes the workers."""

    database: Database
    pushes: Notifier

    def operations(self) -> list[Operation]:
        """Return the operations on webhooks."""
        path, of_source = "/connections/{id}/webhook", "/sources/{id}/webhook"
        wait = ("wait",)
        return [
            Operation(method="GET", path=path, endpoint=self.get_webhook),
            Operation(method="POST", path=path, endpoint=self.register_webhook, query=wait),
            Operation(method="DELETE", path=path, endpoint=self.remove_webhook, query=wait, errors=(409,)),
            Operation(method="POST", path=f"{path}/check", endpoint=self.check_webhook, query=wait),
            Operation(
                method="POST", path=f"{path}/redeliver", endpoint=self.redeliver, query=("since", "wait")
            ),
            Operation(method="GET", path=of_source, endpoint=self.get_source_webhook),
            Operation(method="POST", path=of_source, endpoint=self.register_source_webhook, query=wait),
            Operation(
                method="DELETE",
                path=of_source,
                endpoint=self.remove_source_webhook,
                query=wait,
                errors=(409,),
            ),
            Operation(
                method="POST", path=f"{of_source}/check", endpoint=self.check_source_webhook, query=wait
            ),
            Operation(
                method="POST",
                path=f"{of_source}/redeliver",
                endpoint=self.redeliver_to_source,
                query=("since", "wait"),
            ),
        ]

    async def get_webhook(self, request: Request) -> RegistrationView:
        """`GET /connections/{id}/webhook`: return what the last check of the webhook found."""
        return await self._known(request, _connection)

    async def register_webhook(self, request: Request) -> RegistrationView:
        """`POST /connections/{id}/webhook`: register the webhook at the provider, or repair it, and wait.

        The connection needs an identity. The newest secret is set. Webhooks of others are left alone. If
        no worker has done it within `wait` seconds, `reason` says so.
        """
        return await self._requested(request, _connection, "register")

    async def check_webhook(self, request: Request) -> RegistrationView:
        """`POST /connections/{id}/webhook/check`: compare the provider's webhook with what is needed."""
        return await self._requested(request, _connection, "check")

    async def redeliver(self, request: Request) -> RedeliveriesView:
        """`POST /connections/{id}/webhook/redeliver`: request failed deliveries of the provider again.

        The log is searched from `since` on, or from where the last search ended, and what was given up is
        requested again. If no worker has done it within `wait` seconds, `reason` says so.
        """
        return await self._redelivered(request, _connection)

    async def redeliver_to_source(self, request: Request) -> RedeliveriesView:
        """`POST /sources/{id}/webhook/redeliver`: as for a connection, for all repositories of a source."""
        return await self._redelivered(request, _source)

    async def remove_webhook(self, request: Request) -> RegistrationView:
        """`DELETE /connections/{id}/webhook`: remove the webhook at the provider; later checks end."""
        return await self._requested(request, _connection, "remove")

    async def get_source_webhook(self, request: Request) -> RegistrationView:
        """`GET /sources/{id}/webhook`: return what the last check of the webhook found."""
        return await self._known(request, _source)

    async def register_source_webhook(self, request: Request) -> RegistrationView:
        """`POST /sources/{id}/webhook`: register the webhook at the provider, or repair it, and wait.

        The source needs an identity with the right to it. As for the webhook of a connection, the newest
        secret is set, and webhooks of others are left alone. With a GitHub App, the webhook is the App's own.
        """
        return await self._requested(request, _source, "register")

    async def check_source_webhook(self, request: Request) -> RegistrationView:
        """`POST /sources/{id}/webhook/check`: compare the provider's webhook with what is needed."""
        return await self._requested(request, _source, "check")

    async def remove_source_webhook(self, request: Request) -> RegistrationView:
        """`DELETE /sources/{id}/webhook`: remove the webhook at the provider; later checks end.

        The webhook of a GitHub App stays, because an App cannot be without one.
        """
        return await self._requested(request, _source, "remove")

    async def _requested(self, request: Request, find: "_Find", task: Task) -> RegistrationView:
        """Request a task, and return the state once it has ended, or after the seconds of `wait`."""
        id_or_name, ends_at = request.path_params["id"], time.monotonic() + wait_seconds(request)
        now = datetime.now(UTC)

        def make_due(conn: sqlalchemy.Connection) -> str:
            connection = find(conn, id_or_name)
            if connection.provider not in APIS:
                raise Conflict(f"{connection.provider} has no API for webhooks: register it by hand")
            if connection.source is not None:
                raise Conflict(
                    f"the deliveries of {connection.name} arrive at the webhook of its source: register or"
                    f" check that of the source {connection.source}"
                )
            if connection.identity is None:
                what = "source" if connection.kind == "source" else "connection"
                raise Conflict(f"{connection.name} has no identity: add one, and set it on the {what}")
            registrations.request(conn, connection.id, task, now=now)
            return connection.id

        connection_id = await self.database.write(make_due)
        self.pushes.notify()
        while True:
            view = await self.database.read(_view, connection_id)
            if view is None:
                return _NOTHING
            if view.checked_at is not None and view.checked_at >= now:
                return view
            if time.monotonic() >= ends_at:
                return view.model_copy(update={"reason": _NOT_YET})
            await asyncio.sleep(_POLL_SECONDS)

    async def _redelivered(self, request: Request, find: "_Find") -> RedeliveriesView:
        """Request a search of the log, and return its result, or the state after the seconds of `wait`."""
        id_or_name, ends_at = request.path_params["id"], time.monotonic() + wait_seconds(request)
        since, now = moment(request.query_params.get("since"), "since"), datetime.now(UTC)

        def make_due(conn: sqlalchemy.Connection) -> str:
            connection = find(conn, id_or_name)
            if connection.provider not in LOGS:
                raise Conflict(f"{connection.provider} cannot be requested to send deliveries again")
            if not redeliveries.request(conn, connection.id, since=since, now=now):
                raise Conflict(
                    f"no log of deliveries is known for {connection.name}: register its webhook first; the"
                    " system hook of a GitLab server has none"
                )
            return connection.id

        connection_id = await self.database.write(make_due)
        self.pushes.notify()
        while True:
            found = await self.database.read(redeliveries.summary, connection_id)
            if found is None:
                raise NotFound("the webhook was removed meanwhile")
            is_done = found.reason is not None or (found.checked_at is not None and found.checked_at >= now)
            if is_done or time.monotonic() >= ends_at:
                return view_of(RedeliveriesView, found, reason=found.reason if is_done else _UNDER_WAY)
            await asyncio.sleep(_POLL_SECONDS)

    async def _known(self, request: Request, find: "_Find") -> RegistrationView:
        id_or_name = request.path_params["id"]
        view = await self.database.read(lambda conn: _view(conn, find(conn, id_or_name).id))
        if view is None:
            raise NotFound(f"no webhook was registered for {id_or_name}")
        return view


_Find = Callable[[sqlalchemy.Connection, str], Connection]
"""Returns the connection, or the source as one, that a path names. Raises `NotFound`."""


def _connection(conn: sqlalchemy.Connection, connection_id: str) -> Connection:
    return connections.get(conn, connection_id)


def _source(conn: sqlalchemy.Connection, id_or_name: str) -> Connection:
    return sources.get(conn, id_or_name).as_connection


def _view(conn: sqlalchemy.Connection, connection_id: str) -> RegistrationView | None:
    found = registrations.of(conn, [connection_id]).get(connection_id)
    # Most deliveries of a source are those of its connections.
    used = (secret.last_used_at for secret in connections.secret_dates(conn, [connection_id])[connection_id])
    arrived_at = last(*used, deliveries.arrivals(conn, [connection_id]).get(connection_id))
    again = redeliveries.summary(conn, connection_id)
    shown = None if again is None else view_of(RedeliveriesView, again)
    return (
        None if found is None else view_of(RegistrationView, found, arrived_at=arrived_at, redeliveries=shown)
    )


_NOTHING = view_of(RegistrationView, Registration(), arrived_at=None, redeliveries=None)
