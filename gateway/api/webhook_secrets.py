"""The REST API under /api/v1: the end of a rotation of a webhook secret."""

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.openapi import Operation
from gateway.errors import Conflict
from gateway.intake.connection_cache import ConnectionCache
from gateway.store import connections, sources
from gateway.store.connections import Connection
from gateway.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecrets:
    """The endpoints that revoke previous secrets. `cache` has the secrets of the webhook endpoint."""

    database: Database
    cache: ConnectionCache

    def operations(self) -> list[Operation]:
        """Return the operations on secrets."""
        return [
            Operation(
                method="DELETE",
                path="/connections/{id}/previous-secret",
                endpoint=self.revoke_secret,
                status=204,
                errors=(409,),
            ),
            Operation(
                method="DELETE",
                path="/sources/{id}/previous-secret",
                endpoint=self.revoke_source_secret,
                status=204,
                errors=(409,),
            ),
        ]

    async def revoke_secret(self, request: Request) -> Response:
        """`DELETE /connections/{id}/previous-secret`: revoke the previous secret: only the newest is valid.

        Its view shows when each was last used: deliveries that are signed with the previous one are refused
        from now on. Without a previous secret, nothing changes.
        """
        return await self._revoked(request, connections.get)

    async def revoke_source_secret(self, request: Request) -> Response:
        """`DELETE /sources/{id}/previous-secret`: as for a connection, for the webhook of a source."""
        return await self._revoked(request, _source)

    async def _revoked(
        self, request: Request, find: Callable[[sqlalchemy.Connection, str], Connection]
    ) -> Response:
        id_or_name = request.path_params["id"]

        def revoke(conn: sqlalchemy.Connection) -> str:
            found = find(conn, id_or_name)
            if found.source is not None:
                raise Conflict(
                    f"the deliveries of {found.name} arrive at the webhook of its source: revoke the previous"
                    f" secret of the source {found.source}"
                )
            connections.revoke_old_secrets(conn, found.id)
            return found.id

        self.cache.forget(await self.database.write(revoke))
        return Response(status_code=204)


def _source(conn: sqlalchemy.Connection, id_or_name: str) -> Connection:
    return sources.get(conn, id_or_name).as_connection
