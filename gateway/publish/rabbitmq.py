"""RabbitMQ: the topology, and messages that are in its safe keeping once they are confirmed.

Portable from RabbitMQ 3.10 to 4.x. A message that no queue takes is an error that is seen, not a loss.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPError, ChannelClosed, DeliveryError
from aio_pika.exceptions import PublishError as Returned

from gateway.errors import BrokerUnavailable, PublishError, Unroutable
from gateway.publish.message import ROUTING_PREFIX, message, routing_key
from gateway.store.executions import StoredRequest

log = structlog.get_logger()

_CONNECT_SECONDS = 10.0
_CONFIRM_SECONDS = 30.0
_HEARTBEAT_SECONDS = 20
# Measured: 64 messages under way at once is the best window of aio-pika.
_WINDOW = 64
# How often a consumer may fail with a message before it goes to the dead letters.
_DELIVERY_LIMIT = 10


class RabbitMQ:
    """Publishes to the topic exchange `exchange`, where the quorum queue `queue` takes all requests.

    `public_url` is what the messages name as their source.
    """

    def __init__(
        self, url: str, *, public_url: str, exchange: str = "pushgate", queue: str = "pushgate.executions"
    ) -> None:
        """Connect at the first publish."""
        self._url = url
        self._public_url = public_url
        self._exchange_name = exchange
        self._queue_name = queue
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    async def publish(self, requests: Sequence[StoredRequest]) -> list[PublishError | None]:
        """Publish, in order, and wait for the confirms: None for each request that the broker keeps.

        After a request that was refused, those of the same connection are held back, to keep their order.
        Raises `BrokerUnavailable` where there is no broker to talk to.
        """
        exchange = await self._connected()
        window = asyncio.Semaphore(_WINDOW)
        refused: set[str] = set()

        async def one(request: StoredRequest) -> PublishError | None:
            async with window:
                if request.connection in refused:
                    return PublishError("held back behind an earlier request of its connection")
                try:
                    await self._one(exchange, request)
                except PublishError as error:
                    refused.add(request.connection)
                    return error
            return None

        outcomes = await asyncio.gather(*(one(request) for request in requests))
        if any(isinstance(outcome, BrokerUnavailable) for outcome in outcomes):
            await self.close()
        return outcomes

    async def open(self) -> None:
        """Connect and declare the topology, unless that is done. Raises `BrokerUnavailable`."""
        await self._connected()

    async def close(self) -> None:
        """Close the connection; the next publish opens another."""
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.close()
            except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
                log.debug("broker connection did not close in order", reason=_said(error))

    async def _one(self, exchange: AbstractExchange, request: StoredRequest) -> None:
        try:
            await exchange.publish(
                message(request, public_url=self._public_url),
                routing_key(request),
                mandatory=True,
                timeout=_CONFIRM_SECONDS,
            )
        except Returned as error:
            raise Unroutable(
                f"no queue takes {routing_key(request)}: bind one to {self._exchange_name}"
            ) from error
        except DeliveryError as error:
            raise Unroutable(f"the broker refused the message: is queue {self._queue_name} full?") from error
        except TimeoutError as error:
            raise BrokerUnavailable(f"the broker did not confirm within {_CONFIRM_SECONDS:.0f} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise BrokerUnavailable(f"the connection to the broker was lost: {_said(error)}") from error

    async def _connected(self) -> AbstractExchange:
        if self._exchange is not None and self._connection is not None and not self._connection.is_closed:
            return self._exchange
        await self.close()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._connection = await aio_pika.connect(
                    self._url,
                    timeout=_CONNECT_SECONDS,
                    client_properties={"connection_name": "pushgate"},
                    heartbeat=_HEARTBEAT_SECONDS,
                )
                self._exchange = await self._declare(self._connection)
        except TimeoutError as error:
            raise BrokerUnavailable(f"the broker did not answer within {_CONNECT_SECONDS:.0f} s") from error
        except ChannelClosed as error:
            raise BrokerUnavailable(f"the broker refuses the topology: {_said(error)}") from error
        except CONNECTION_EXCEPTIONS as error:
            raise BrokerUnavailable(f"the broker cannot be reached: {_said(error)}") from error
        return self._exchange

    async def _declare(self, connection: AbstractConnection) -> AbstractExchange:
        """Declare what is missing: exchange, quorum queue, dead letters at least once."""
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        dead_name = f"{self._queue_name}.dead"
        dead = await channel.declare_exchange(
            f"{self._exchange_name}.dead", aio_pika.ExchangeType.TOPIC, durable=True
        )
        dead_queue = await channel.declare_queue(
            dead_name, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await dead_queue.bind(dead, "#")
        exchange = await channel.declare_exchange(
            self._exchange_name, aio_pika.ExchangeType.TOPIC, durable=True
        )
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": _DELIVERY_LIMIT,
            "x-dead-letter-exchange": dead.name,
            # At least once asks for reject-publish: https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        queue = await channel.declare_queue(self._queue_name, durable=True, arguments=arguments)
        await queue.bind(exchange, f"{ROUTING_PREFIX}.#")
        return exchange


def _said(error: BaseException) -> str:
    """Return what the broker said, on one line; the URL with its password is never part of it."""
    if isinstance(error, AMQPError) and error.args:
        return " ".join(str(part) for part in error.args if not isinstance(part, bytes))[:300]
    return " ".join(str(error).split())[:300] or type(error).__name__
