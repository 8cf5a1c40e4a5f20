"""The remotes of connections, with their credentials."""

from dataclasses import dataclass

import sqlalchemy

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, RemoteUnavailable, SettingError
from gateway.fetch.credentials import Credentials, Remote, from_json, token_login
from gateway.fetch.mirror import Mirrors
from gateway.fetch.reasons import local_failures
from gateway.fetch.urls import is_ssh
from gateway.store import connections, identities
from gateway.store.connections import Connection
from gateway.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """Builds the remotes of connections with the stored credentials."""

    mirrors: Mirrors
    database: Database
    keyring: Keyring

    async def of(self, connection: Connection) -> Remote:
        """Return a connection's remote with its credentials. Raises `RemoteUnavailable`."""
        try:
            credentials, host_keys = await self.database.read(self._access, connection=connection)
        except (SettingError, NotFound) as error:
            raise RemoteUnavailable(f"the remote cannot be fetched: {error}") from error
        return Remote(url=connection.url, credentials=credentials, host_keys=host_keys)

    def _access(
        self, conn: sqlalchemy.Connection, connection: Connection
    ) -> tuple[Credentials | None, str | None]:
        """Return the connection's own credentials, or else those of its identity; and the host keys."""
        credentials, host_keys = from_json(connections.credentials(conn, self.keyring, connection.id))
        if credentials is None and connection.identity is not None and not is_ssh(connection.url):
            identity = identities.get(conn, connection.identity)
            token = identities.token(conn, self.keyring, identity.id)
            credentials = token_login(identity.user, token, identity.provider)
        return credentials, host_keys

    async def refs(self, connection: Connection) -> dict[str, str]:
        """Return the remote's branches and tags with their ids. Raises `FetchError`."""
        with local_failures():
            return await self.mirrors.remote_refs(await self.of(connection))

    async def default_branch(self, connection: Connection) -> str | None:
        """Return the short name of the remote's default branch, if it has one. Raises `FetchError`."""
        with local_failures():
            return await self.mirrors.default_branch(await self.of(connection))
