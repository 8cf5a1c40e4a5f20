"""RabbitMQ: a message counts as published once the broker has confirmed that it has stored it.

A request that no queue accepts is an error, not a loss; an event that no queue accepts is dropped by the
broker. Nothing here retries: a lost connection fails every waiting publish at once, and `open` makes a new
connection. For this reason aio-pika's robust connection is not used: its publishes wait for a reconnect of
unknown length (https://github.com/mosquito/aio-pika/issues/636).
"""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    ProbableAuthenticationError,
)
from aio_pika.exceptions import PublishError as Returned

from gateway.errors import (
    Ambiguous,
    BrokerUnavailable,
    Interrupted,
    PublishError,
    SettingError,
    Undeliverable,
    Unroutable,
)
from gateway.publish.cloudevents import ContentMode, Stored, content, routing_key
from gateway.publish.properties import EncodedProperties
from gateway.publish.topology import Topology
from gateway.store.executions import StoredRequest

_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_CONFIRM_SECONDS = 30.0
_HEARTBEAT_SECONDS = 15
_PORTS = {"amqp": 5672, "amqps": 5671}
_MAX_REASON_LENGTH = 300
# https://www.rabbitmq.com/amqp-0-9-1-reference#domain.reply-code
_CONTENT_TOO_LARGE = 311
_DEFAULT_TOPOLOGY = Topology()

# They log every failed attempt; the relay logs each outage once.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM form: the trusted CAs, and a client certificate for brokers that require one."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection. Raises `SettingError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(f"the broker's TLS files cannot be used: {error}") from error
        return context


class _Broker:
    """One address of the broker; `shown` is the part without secrets, for messages."""

    def __init__(self, url: str, tls: Tls) -> None:
        try:
            parts = urlsplit(url)
            self.shown = f"{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"
        except (ValueError, KeyError):
            # Without the cause, which may quote the URL and with it the password.
            raise SettingError(
                "the AMQP URL cannot be read; percent-encode special characters in its password"
            ) from None
        self.url = url
        self.virtual_host = unquote(parts.path[1:]) or "/"
        self.password = unquote(parts.password or "")
        self.context = tls.context() if parts.scheme == "amqps" else None
        self._heartbeat = parse_qs(parts.query).get("heartbeat", [str(_HEARTBEAT_SECONDS)])[0]

    async def connect(self) -> AbstractConnection:
        """Connect. Raises the library's exceptions."""
        url = aio_pika.connection.make_url(self.url, heartbeat=self._heartbeat)
        connection = aio_pika.Connection(
            url, ssl_context=self.context, client_properties={"connection_name": "pushgate"}
        )
        try:
            await connection.connect()
        except BaseException:
            # aio-pika's own `connect` leaves it open, and its finalizer fails on any thread but the loop's.
            await connection.close()
            raise
        return connection


class RabbitMQ:
    """A publisher. Any number of messages may be in flight; they are sent in the order of the calls.

    `url` may hold several URLs, separated by commas: the nodes of a cluster, tried in turn. `public_url` is
    the source that the messages name; `connect_within` and `confirm_within` are in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        public_url: str,
        topology: Topology = _DEFAULT_TOPOLOGY,
        mode: ContentMode = "binary",
        tls: Tls | None = None,
        connect_within: float = _CONNECT_SECONDS,
        confirm_within: float = _CONFIRM_SECONDS,
    ) -> None:
        """Prepare to connect. Raises `SettingError` if a URL or a TLS file cannot be read."""
        self._brokers = [_Broker(node.strip(), tls or Tls()) for node in url.split(",")]
        self._public_url = public_url
        self._topology = topology
        self._mode: ContentMode = mode
        self._connect_within = connect_within
        self._confirm_within = confirm_within
        self._link: _Link | None = None

    async def open(self) -> None:
        """Connect and establish the topology, unless that is done already.

        Raises `BrokerUnavailable`, or another `PublishError` if the broker refuses the configuration, which
        an operator has to correct.
        """
        link = self._link
        if link is None or not link.is_open:
            await self.close()
            self._link = await self._connected()
        elif link.is_doubtful:
            try:
                with self._translated(self._brokers[0]):
                    async with asyncio.timeout(self._connect_within):
                        await link.establish(self._topology)
            except PublishError:
                link.is_open = False
                raise

    async def _connected(self) -> "_Link":
        """Connect to the first node that accepts: a starting or failing node may refuse what another grants.

        Raises the first refusal, or, if no node can be reached, the last node's error.
        """
        failures: list[PublishError] = []
        for _ in self._brokers:
            try:
                with self._translated(self._brokers[0]):
                    async with asyncio.timeout(self._connect_within):
                        return await _Link.make(await self._brokers[0].connect(), self._topology)
            except PublishError as error:
                failures.append(error)
                # The next attempt, now or after a lost connection, goes to the next node.
                self._brokers.append(self._brokers.pop(0))
        refusals = [error for error in failures if not isinstance(error, BrokerUnavailable)]
        raise (refusals or failures[-1:])[0]

    @contextmanager
    def _translated(self, broker: _Broker) -> Iterator[None]:
        """Translate the library's exceptions into `PublishError`."""
        try:
            yield
        except (ProbableAuthenticationError, AuthenticationError) as error:
            raise PublishError(f"the broker at {broker.shown} refuses the user or the password") from error
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"the broker at {broker.shown} does not answer within {self._connect_within:g} s"
            ) from error
        except CONNECTION_EXCEPTIONS as error:
            if "Connection.Close" in str(error):
                # The answer to our Connection.Open; aiormq passes on no more of it.
                raise PublishError(
                    f"the broker at {broker.shown} does not open the virtual host {broker.virtual_host!r}:"
                    " it does not exist, is down, or this user has no access"
                ) from error
            raise BrokerUnavailable(
                f"the broker at {broker.shown} cannot be reached: {self._text(error)}"
            ) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise BrokerUnavailable(f"the broker at {broker.shown} closed the connection") from None

    async def publish(self, stored: Stored) -> None:
        """Publish, and return when the broker has confirmed.

        Raises `Unroutable` if the broker refused this message for now, `Undeliverable` if it always will,
        `Ambiguous` if it refused this message or another in flight, `Interrupted` if the connection was lost
        meanwhile, and `BrokerUnavailable` if nothing was sent or no answer came.
        """
        link = self._link
        if link is None or not link.is_open:
            raise BrokerUnavailable("there is no connection to the broker")
        exchange, key = self._topology.exchange, routing_key(stored)
        made = content(stored, public_url=self._public_url, mode=self._mode)
        properties = EncodedProperties(stored, made, self._mode)
        try:
            await link.publish(
                made.body,
                properties,
                exchange=exchange,
                key=key,
                mandatory=isinstance(stored, StoredRequest),
                within=self._confirm_within,
            )
        except Returned as error:
            # If the queue is ours and was deleted, the next `open` declares it again.
            link.is_doubtful = not self._topology.passive
            raise Unroutable(f"no queue accepts {key}: bind a queue to the exchange {exchange}") from error
        except DeliveryError as error:
            raise Unroutable("the broker refused the message: a queue for it is full") from error
        except TimeoutError as error:
            link.is_open = False
            why = ": it has raised an alarm, short of memory or disk" if await link.is_blocked() else ""
            raise BrokerUnavailable(
                f"the broker did not confirm within {self._confirm_within:g} s{why}"
            ) from error
        except CONNECTION_EXCEPTIONS as error:
            link.is_open = False
            raise self._ended(error, is_alone=link.is_alone) from error

    def _ended(self, error: BaseException, *, is_alone: bool) -> PublishError:
        """Return the error for a channel or connection that ended while a message was in flight.

        https://www.rabbitmq.com/docs/channels#error-handling
        """
        text = self._text(error)
        refusal = error.__cause__ if isinstance(error.__cause__, ChannelClosed) else error
        # If the exchange is missing, the next `open` declares it.
        if not isinstance(refusal, ChannelClosed) or isinstance(refusal, ChannelNotFoundEntity):
            return Interrupted(f"the connection to the broker was lost: {text}")
        if not is_alone:
            return Ambiguous(f"the broker refuses a message: {text}")
        is_for_good = isinstance(refusal, ChannelPreconditionFailed) or _CONTENT_TOO_LARGE in refusal.args
        return (Undeliverable if is_for_good else Unroutable)(f"the broker refuses the message: {text}")

    async def close(self) -> None:
        """Close the connection; every publish that waits for a confirm fails."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def _text(self, error: BaseException) -> str:
        """Return the broker's or the network's message, on one line and without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        for password in filter(None, (broker.password for broker in self._brokers)):
            text = text.replace(password, "***")
        return text[:_MAX_REASON_LENGTH]


class _Link:
    """A connection with its single channel, and the publishes that wait for a confirm."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, inner: Any) -> None:
        self.is_open = True
        self.is_doubtful = False
        self.is_alone = True
        """Whether the last message was in flight without any other."""
        self._connection = connection
        # aio-pika's own publish waits until each message has left the process, which takes a quarter longer.
        self._inner = inner
        # A reference, because aio-pika closes a channel without references.
        self._channel = channel
        # With the time at which each ends, the earliest first: one timer costs less than one for each.
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._reason: BaseException | None = None
        connection.close_callbacks.add(self._on_close)
        channel.close_callbacks.add(self._on_close)

    @classmethod
    async def make(cls, connection: AbstractConnection, topology: Topology) -> "_Link":
        """Establish the topology and open the channel; close the connection if that fails."""
        try:
            await topology.establish(connection)
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return cls(connection, channel, await channel.get_underlay_channel())
        except BaseException:
            await _close(connection)
            raise

    async def establish(self, topology: Topology) -> None:
        """Establish the topology again."""
        await topology.establish(self._connection)
        self.is_doubtful = False

    async def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection for now."""
        try:
            async with asyncio.timeout(0):
                await self._inner.connection.ready()
        except TimeoutError:
            return True
        return False

    async def publish(
        self,
        body: bytes,
        properties: EncodedProperties,
        *,
        exchange: str,
        key: str,
        mandatory: bool,
        within: float,
    ) -> None:
        """Publish and wait for the confirm. Raises the library's exceptions, but no stray cancellation."""
        self.is_alone = not self._waiting
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting[limit] = asyncio.get_running_loop().time() + within
                if self._timer is None:
                    self._end_overdue()
                try:
                    await self._inner.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        properties=properties,
                        mandatory=mandatory,
                        wait=False,
                    )
                finally:
                    del self._waiting[limit]
        except TimeoutError:
            if self._reason is None:
                raise
            raise ConnectionError(str(self._reason)) from self._reason
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise ConnectionError("closed") from None

    async def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        await _close(self._connection)

    def _end_overdue(self) -> None:
        """End the waits whose time is over, and look again when that of the next is."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for limit, until in self._waiting.items():
            if until > now:
                self._timer = loop.call_at(until, self._end_overdue)
                return
            if not limit.expired():
                limit.reschedule(now)

    def _on_close(self, _closed: object, error: BaseException | None) -> None:
        """End every wait: a publish that is still in our buffers would otherwise never end."""
        self.is_open = False
        self._reason = self._reason or error or ConnectionError("closed")
        if self._timer is not None:
            self._timer.cancel()
        now = asyncio.get_running_loop().time()
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(now)


async def _close(connection: AbstractConnection) -> None:
    """Close a connection; ignore errors, because the broker may be gone."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError):
        return


def _is_cancelled() -> bool:
    """Return whether this task was cancelled; the library also cancels waits on what it closes."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
