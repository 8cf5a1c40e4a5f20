"""The REST API under /api/v1: where notifications go."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.channel_schemas import ChannelChange, MailSettings, NewChannel
from gateway.api.conditions import IfMatch, later
from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.query import limit, wait_seconds
from gateway.api.schemas import Page
from gateway.api.views import View, view_of
from gateway.crypto.keyring import Keyring
from gateway.errors import Invalid
from gateway.fetch.urls import check_url, is_ssh
from gateway.provider_apis import standard_webhook
from gateway.store import notification_channels, notifications
from gateway.store.database import Database
from gateway.store.ids import identity_id
from gateway.store.notification_channels import Address, Channel
from gateway.store.notify import Notifier
from gateway.worker.notification_texts import of_test

_POLL_SECONDS = 0.1
_RULES = ("name", "happenings", "connections", "projects")


class MailView(View):
    """Where mail goes."""

    host: str = Field(description="the mail server", examples=["smtp.example.com"])
    port: int = Field(description="its port")
    security: str = Field(description="`starttls` or `tls`")
    user: str | None = Field(description="the user there; null if it wants none")
    sender: str = Field(description="the sender's address", examples=["pushgate@example.com"])
    recipients: list[str] = Field(description="the recipients' addresses")


class ChannelView(View):
    """A notification channel as it is shown: without its URL and its secrets."""

    id: str = Field(description="the id", examples=["0c4e8f1a2b3d5c6e7f809a1b"])
    name: str = Field(description="the unique name", examples=["ml-team"])
    kind: str = Field(description="`slack`, `teams`, `smtp` or `webhook`")
    host: str = Field(description="the host that gets the messages", examples=["hooks.slack.com"])
    mail: MailView | None = Field(description="of the kind `smtp`, where mail goes; null otherwise")
    happenings: list[str] = Field(description="what it is notified of")
    connections: list[str] = Field(description="globs of the names of connections; empty for all")
    projects: list[str] = Field(description="globs of the platform's projects; empty for all")
    problem: str | None = Field(description="why the last message could not be sent; null if it was sent")
    tried_at: datetime | None = Field(description="when a message was last tried; null before the first")
    sent_at: datetime | None = Field(description="when a message was last sent; null before the first")
    created_at: datetime = Field(description="when it was added")
    updated_at: datetime = Field(description="when it last changed")


class ChannelCreated(ChannelView):
    """A new notification channel, with the secret that was made for it."""

    secret: str | None = Field(
        description="the new signing secret, which no other answer contains; null unless one was made",
        examples=["whsec_…"],
    )


class ChannelPage(Page[ChannelView]):
    """A page of notification channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationChannels:
    """The endpoints for notification channels. A test wakes the workers by `pushes`."""

    database: Database
    keyring: Keyring
    pushes: Notifier
    base_url: str
    allow_http: bool

    def operations(self) -> list[Operation]:
        """Return the operations on notification channels."""
        path = "/notification-channels/{id}"
        return [
            Operation(
                method="GET",
                path="/notification-channels",
                endpoint=self.list_channels,
                query=("limit", "cursor"),
            ),
            Operation(
                method="POST",
                path="/notification-channels",
                endpoint=self.create_channel,
                status=201,
                body=NewChannel,
                errors=(409,),
                location=path,
            ),
            Operation(method="GET", path=path, endpoint=self.get_channel),
            Operation(
                method="PATCH",
                path=path,
                endpoint=self.update_channel,
                body=ChannelChange,
                errors=(409,),
                is_conditional=True,
            ),
            Operation(
                method="DELETE", path=path, endpoint=self.delete_channel, status=204, is_conditional=True
            ),
            Operation(method="POST", path=f"{path}/test", endpoint=self.test_channel, query=("wait",)),
        ]

    async def list_channels(self, request: Request) -> ChannelPage:
        """`GET /notification-channels`: list notification channels by name."""
        max_items, after = limit(request), request.query_params.get("cursor")
        found = await self.database.read(notification_channels.page, after=after, limit=max_items + 1)
        views = [_view(channel) for channel in found[:max_items]]
        return ChannelPage(items=views, next=views[-1].name if len(found) > max_items else None)

    async def create_channel(self, request: Request) -> ChannelCreated:
        """`POST /notification-channels`: add a notification channel.

        No answer contains its URL or its password.
        """
        wanted = await read(request, NewChannel)
        now = datetime.now(UTC)
        is_new = wanted.kind == "webhook" and wanted.secret is None
        given = _secrets(wanted)
        address = Address(**given | ({"secret": standard_webhook.new_secret()} if is_new else {}))
        channel = Channel(
            id=identity_id(),
            kind=wanted.kind,
            settings=_settings(wanted.mail, address),
            created_at=now,
            updated_at=now,
            **_rules(wanted),
        )
        self._check(channel, address)
        await self.database.write(notification_channels.add, self.keyring, channel, address)
        secret = address.secret if is_new else None
        return ChannelCreated(**_view(channel).model_dump(), secret=secret)

    async def get_channel(self, request: Request) -> ChannelView:
        """`GET /notification-channels/{id}`: return a notification channel."""
        return _view(await self.database.read(notification_channels.get, request.path_params["id"]))

    async def update_channel(self, request: Request) -> ChannelView:
        """`PATCH /notification-channels/{id}`: change the given fields."""
        wanted = await read(request, ChannelChange)
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)
        now = datetime.now(UTC)
        given = _secrets(wanted)

        def change(conn: sqlalchemy.Connection) -> ChannelView:
            before = notification_channels.get(conn, id_or_name, locked=True)
            condition.check(before.name, before.updated_at)
            stored = notification_channels.address(conn, self.keyring, before.id)
            is_elsewhere = wanted.mail is not None and wanted.mail.host != before.settings.get("host")
            if stored.password and is_elsewhere and "password" not in given:
                raise Invalid("mail.host: the stored password is for another server; give the password, too")
            address = replace(stored, **given)
            channel = replace(
                before,
                settings=_settings(wanted.mail, address) if wanted.mail or wanted.url else before.settings,
                updated_at=later(now, before.updated_at),
                **_rules(wanted),
            )
            self._check(channel, address)
            is_other = channel.settings != before.settings or address != stored
            notification_channels.change(conn, self.keyring, channel, address if is_other else None)
            return _view(notification_channels.get(conn, channel.id))

        return await self.database.write(change)

    async def delete_channel(self, request: Request) -> Response:
        """`DELETE /notification-channels/{id}`: delete a channel, and what was still to be sent there."""
        id_or_name, condition = request.path_params["id"], IfMatch.of(request)

        def remove(conn: sqlalchemy.Connection) -> None:
            channel = notification_channels.get(conn, id_or_name, locked=True)
            condition.check(channel.name, channel.updated_at)
            notification_channels.remove(conn, channel.id)

        await self.database.write(remove)
        return Response(status_code=204)

    async def test_channel(self, request: Request) -> ChannelView:
        """`POST /notification-channels/{id}/test`: send a test message now, and what waits.

        The answer has the outcome in `problem` and `sent_at` if a worker has tried within `wait` seconds.
        """
        id_or_name, ends_at = request.path_params["id"], time.monotonic() + wait_seconds(request)
        now = datetime.now(UTC)

        def add(conn: sqlalchemy.Connection) -> str:
            channel = notification_channels.get(conn, id_or_name)
            body = of_test(channel.name, base_url=self.base_url, now=now)
            notifications.add_test(conn, channel.id, body, now=now)
            return channel.id

        channel_id = await self.database.write(add)
        self.pushes.notify()
        while True:
            channel = await self.database.read(notification_channels.get, channel_id)
            if (channel.tried_at is not None and channel.tried_at >= now) or time.monotonic() >= ends_at:
                return _view(channel)
            await asyncio.sleep(_POLL_SECONDS)

    def _check(self, channel: Channel, address: Address) -> None:
        """Raise `Invalid` if a channel lacks what its kind requires, or has what it does not take."""
        is_mail = channel.kind == "smtp"
        if is_mail and "sender" not in channel.settings:
            raise Invalid("mail: it is required for the kind smtp")
        if not is_mail and "sender" in channel.settings:
            raise Invalid(f"mail: a channel of the kind {channel.kind} has none; give its url")
        taken = {"smtp": {"password"}, "webhook": {"url", "secret"}}.get(channel.kind, {"url"})
        for name in {"url", "secret", "password"} - taken:
            if getattr(address, name):
                raise Invalid(f"{name}: a channel of the kind {channel.kind} has none")
        if is_mail:
            if bool(address.password) != (channel.settings["user"] is not None):
                raise Invalid("password: give it together with mail.user, or neither")
            return
        if not address.url:
            raise Invalid(f"url: it is required for the kind {channel.kind}")
        self._check_url(address.url)
        if channel.kind == "webhook":
            standard_webhook.check_secret(address.secret)

    def _check_url(self, url: str) -> None:
        """Raise `Invalid` for a URL to which nothing may be sent."""
        bare = url.partition("#")[0].partition("?")[0]
        if is_ssh(url):
            raise Invalid("url: it must be https://…")
        # Any path, and a query: Teams has the signature there.
        check_url(f"{bare}/any", allow_http=self.allow_http, hosts=())


def _secrets(wanted: NewChannel | ChannelChange) -> dict[str, str]:
    """Return the given fields of the address."""
    given = {"url": wanted.url, "secret": wanted.secret, "password": wanted.password}
    return {name: one.get_secret_value().strip() for name, one in given.items() if one is not None}


def _rules(wanted: NewChannel | ChannelChange) -> dict[str, Any]:
    given = {name: getattr(wanted, name) for name in _RULES}
    return {name: value for name, value in given.items() if value is not None}


def _settings(mail: MailSettings | None, address: Address) -> Mapping[str, Any]:
    """Return the part of a channel's address that is shown."""
    if mail is not None:
        return mail.model_dump()
    try:
        return {"host": urlsplit(address.url).hostname or ""}
    except ValueError:
        return {"host": ""}  # the check of the URL explains it


def _view(channel: Channel) -> ChannelView:
    is_mail = channel.kind == "smtp"
    return view_of(
        ChannelView,
        channel,
        host=channel.settings.get("host", ""),
        mail=MailView(**channel.settings) if is_mail and "sender" in channel.settings else None,
        happenings=list(channel.happenings),
        connections=list(channel.connections),
        projects=list(channel.projects),
    )
