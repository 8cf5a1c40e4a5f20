"""RabbitMQ: a message counts as published once the broker has confirmed that it has stored it.

A request that no queue accepts is an error, not a loss; an event that no queue accepts is dropped by the
broker. Nothing here retries: a lost connection fails every waiting publish at once, and `open` makes a new
connection. For this reason aio-pika's robust connection is not used: its publishes wait for a reconnect of
unknown length (https://github.com/mosquito/aio-pika/issues/636).
"""

import asyncio
import time
from functools import partial
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from aio_pika.exceptions import PublishError as Returned

from gateway.errors import (
    Ambiguous,
    BrokerUnavailable,
    Interrupted,
    PublishError,
    Undeliverable,
    Unroutable,
)
from gateway.publish.brokers import CONNECT_SECONDS, Brokers, Tls, close, is_cancelled
from gateway.publish.cloudevents import ContentMode, Stored, content, routing_key
from gateway.publish.execution_spans import record_message
from gateway.publish.properties import EncodedProperties
from gateway.publish.topology import Topology
from gateway.store.executions import StoredRequest
from gateway.tracing import spans

_CONFIRM_SECONDS = 30.0
# https://www.rabbitmq.com/amqp-0-9-1-reference#domain.reply-code
_CONTENT_TOO_LARGE = 311
_DEFAULT_TOPOLOGY = Topology()


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
        connect_within: float = CONNECT_SECONDS,
        confirm_within: float = _CONFIRM_SECONDS,
    ) -> None:
        """Prepare to connect. Raises `SettingError` if a URL or a TLS file cannot be read."""
        self._brokers = Brokers(url, tls or Tls(), within=connect_within)
        self._public_url = public_url
        self._topology = topology
        self._mode: ContentMode = mode
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
            self._link = await self._brokers.open(lambda made: _Link.make(made, self._topology))
        elif link.is_doubtful:
            try:
                async with self._brokers.talking():
                    await link.establish(self._topology)
            except PublishError:
                link.is_open = False
                raise

    async def publish(self, stored: Stored) -> None:
        """Publish, and return when the broker has confirmed.

        Raises `Unroutable` if the broker refused this message for now, `Undeliverable` if it always will,
        `Ambiguous` if it refused this message or another in flight, `Interrupted` if the connection was lost
        meanwhile, and `BrokerUnavailable` if nothing was sent or no answer came.
        """
        if not spans.is_on():
            await self._publish(stored)
            return
        record = partial(record_message, stored, exchange=self._topology.exchange, started_ns=time.time_ns())
        try:
            await self._publish(stored)
        except PublishError as error:
            record(error=error)
            raise
        record(error=None)

    async def _publish(self, stored: Stored) -> None:
        """Publish as `publish` does."""
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
        text = self._brokers.text(error)
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
            await close(connection)
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
            if is_cancelled():
                raise
            raise ConnectionError("closed") from None

    async def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        await close(self._connection)

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
