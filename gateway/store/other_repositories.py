"""Repositories that have taken the place of a connection's own: deleted and made again, as it seems.

The provider's id of a connection's repository is learned once. What a delivery says of another id at the
same address is recorded here, and adopted only if the remote confirms it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy
from sqlalchemy import select, update

from gateway.errors import NotFound
from gateway.store.tables import connections


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRepository:
    """A repository at a connection's address whose id differs from the known id.

    The repository was probably deleted and created again. `refs` are the positions in the delivery that
    reported it.
    """

    id: str
    name: str | None
    delivery: str
    refs: Mapping[str, str | None]


def claim(conn: sqlalchemy.Connection, connection_id: str, other: OtherRepository) -> None:
    """Record the other repository that a delivery names at the connection's address. It is only displayed."""
    conn.execute(
        update(connections).where(connections.c.id == connection_id).values(other_repository=asdict(other))
    )


def relearn(conn: sqlalchemy.Connection, connection_id: str, shown: Mapping[str, str | None]) -> None:
    """Adopt the id of the repository that has taken this one's place, if the remote confirms it.

    `shown` are the refs of the remote. Only if it has all refs that the delivery reported, at the
    connection's own address, is the delivery proven to be about it.
    """
    query = select(connections.c.other_repository).where(connections.c.id == connection_id)
    stored = conn.execute(query).scalar()
    if stored is None:
        return
    other = OtherRepository(**stored)
    if other.refs and all(ref in shown and shown[ref] == after for ref, after in other.refs.items()):
        conn.execute(
            update(connections)
            .where(connections.c.id == connection_id)
            .values(repository_id=other.id, other_repository=None)
        )


def forget(conn: sqlalchemy.Connection, connection_id: str) -> None:
    """Clear the provider's id of the repository. The next delivery that names the address sets it.

    Raise `NotFound`, also for a deleted connection.
    """
    mine = connections.c.id == connection_id, connections.c.deleted_at.is_(None)
    cleared = conn.execute(update(connections).where(*mine).values(repository_id=None, other_repository=None))
    if not cleared.rowcount:
        raise NotFound(f"no connection has the id {connection_id}")
