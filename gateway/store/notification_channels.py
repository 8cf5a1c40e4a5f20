"""Notification channels: where notifications go, and which. Their URLs, secrets and passwords are sealed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Select, delete, insert, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, NotFound
from gateway.store import envelopes
from gateway.store.connections import lock_names
from gateway.store.notification_tables import notification_channels as channels
from gateway.store.rows import from_row

ChannelKind = Literal["slack", "teams", "smtp", "webhook"]

Happening = Literal["run-failed", "run-recovered", "webhook-silent", "remote-refuses", "dead-letters"]

_OF_THE_OUTBOX = {"sealed", "due_at", "attempts", "batch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where notifications go, without secrets.

    `settings` are those of its kind: of mail, the server, the sender and the recipients; of others, the host.
    It gets the `happenings` of the connections whose names and projects match these globs; without globs, of
    all. `problem` is why the last message could not be sent, at `tried_at`.
    """

    id: str
    name: str
    kind: ChannelKind
    settings: Mapping[str, Any]
    happenings: Sequence[Happening]
    created_at: datetime
    updated_at: datetime
    connections: Sequence[str] = ()
    projects: Sequence[str] = ()
    tried_at: datetime | None = None
    sent_at: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The secret part of a channel: a URL and, of signed webhooks, the secret; or the password for mail."""

    url: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


def add(conn: sqlalchemy.Connection, keyring: Keyring, channel: Channel, address: Address) -> None:
    """Store a new channel. Raise `Conflict` if its name is taken."""
    _check_name(conn, channel)
    conn.execute(insert(channels).values(**_values(channel), sealed=_sealed(keyring, channel.id, address)))


def get(conn: sqlalchemy.Connection, id_or_name: str, *, locked: bool = False) -> Channel:
    """Return the channel with this id, or else with this name. Raise `NotFound`.

    If it is `locked`, nobody else can change it until the transaction ends.
    """
    query = _select().where(or_(channels.c.id == id_or_name, channels.c.name == id_or_name))
    query = query.order_by(channels.c.id != id_or_name).limit(1)
    if locked:
        query = query.with_for_update(key_share=True)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"no notification channel has the id or the name {id_or_name}")
    return from_row(Channel, row)


def page(conn: sqlalchemy.Connection, *, after: str | None = None, limit: int | None = None) -> list[Channel]:
    """Return up to `limit` channels by name, those behind the name `after`; by default all."""
    query = _select().order_by(channels.c.name).limit(limit)
    if after is not None:
        query = query.where(channels.c.name > after)
    return [from_row(Channel, row) for row in conn.execute(query)]


def change(
    conn: sqlalchemy.Connection, keyring: Keyring, channel: Channel, address: Address | None = None
) -> None:
    """Store the changes of a channel. Without `address`, the stored one stays. Raise `Conflict`."""
    if get(conn, channel.id).name != channel.name:
        _check_name(conn, channel)
    values = _values(channel)
    if address is not None:
        values |= {"sealed": _sealed(keyring, channel.id, address), "problem": None, "attempts": 0}
    conn.execute(update(channels).where(channels.c.id == channel.id).values(**values))


def remove(conn: sqlalchemy.Connection, channel_id: str) -> None:
    """Delete a channel with what was still to be sent there."""
    conn.execute(delete(channels).where(channels.c.id == channel_id))


def address(conn: sqlalchemy.Connection, keyring: Keyring, channel_id: str) -> Address:
    """Return the secret part of a channel. Raise `NotFound`, or `SettingError` for another secret key."""
    sealed = conn.execute(select(channels.c.sealed).where(channels.c.id == channel_id)).scalar()
    if sealed is None:
        raise NotFound(f"no notification channel has the id {channel_id}")
    return Address(**json.loads(keyring.open(sealed, context=_context(channel_id))))


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all channels under the current wrapping key; return the number of channels."""
    return envelopes.rewrap(conn, keyring, channels.c.sealed, key=channels.c.id, context=_context)


def _select() -> Select[Any]:
    return select(*(column for column in channels.c if column.name not in _OF_THE_OUTBOX))


def _values(channel: Channel) -> dict[str, Any]:
    values = asdict(channel)
    for outcome in ("tried_at", "sent_at", "problem"):
        del values[outcome]
    return values | {name: list(values[name]) for name in ("happenings", "connections", "projects")}


def _check_name(conn: sqlalchemy.Connection, channel: Channel) -> None:
    lock_names(conn)
    taken = select(channels.c.id).where(channels.c.name == channel.name, channels.c.id != channel.id)
    if conn.execute(taken).first() is not None:
        raise Conflict(f"the name {channel.name} is taken by another notification channel")


def _sealed(keyring: Keyring, channel_id: str, address: Address) -> bytes:
    return keyring.seal(json.dumps(asdict(address)).encode(), context=_context(channel_id))


def _context(channel_id: str) -> str:
    return f"notification channel {channel_id}"
