"""The exchanges and queues at the broker: for requests, for lanes, for dead letters, and for reports.

Pushgate declares them, or only checks them if an operator owns them. Works with RabbitMQ 3.10 to 4.x.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from gateway.errors import PublishError
from gateway.messages.names import EXECUTION_REQUESTED, EXECUTION_STATUS, LANE_PREFIX
from gateway.publish.cloudevents import PARTITION_HEADER
from gateway.settings import Settings

_PLUGIN = "rabbitmq_consistent_hash_exchange"
_ACCESS_REFUSED = "ACCESS_REFUSED"
_TIMEOUT_ARGUMENT = "x-consumer-timeout"
# A week, for runners that acknowledge after the run: RabbitMQ's default of half an hour is shorter than many
# executions. Runners that acknowledge before the run need no more than the default.
_CONSUMER_TIMEOUT_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A topic exchange and a quorum queue for requests, and the same pair for dead letters.

    Each lane of `lanes` has a queue of its own. If `ordered` is not 0, it is the number of partitions that
    replace each of these queues: a partition serves one consumer at a time, and a consistent-hash exchange
    routes all requests of a connection to the same partition. With `passive`, nothing is declared: exchanges
    and queues must exist. A message whose delivery fails more often than `delivery_limit` becomes a dead
    letter. `max_length` is the number of messages at which a queue refuses more; None means no limit.
    `consumer_timeout` is the time, in milliseconds, that a consumer may hold a message unacknowledged.
    """

    exchange: str = "pushgate"
    queue: str = "pushgate.executions"
    lanes: tuple[str, ...] = ()
    ordered: int = 0
    passive: bool = False
    delivery_limit: int = 10
    max_length: int | None = None
    consumer_timeout: int = _CONSUMER_TIMEOUT_MS

    @classmethod
    def of(cls, settings: Settings) -> "Topology":
        """Return the topology that the settings name."""
        return cls(
            exchange=settings.amqp_exchange,
            queue=settings.amqp_queue,
            lanes=settings.amqp_lanes,
            ordered=settings.amqp_ordered,
            passive=not settings.amqp_declare,
        )

    @property
    def dead_exchange(self) -> str:
        """The exchange to which the queues publish dead letters."""
        return f"{self.exchange}.dead"

    @property
    def dead_queue(self) -> str:
        """The queue that keeps the dead letters."""
        return f"{self.queue}.dead"

    @property
    def report_queue(self) -> str:
        """The queue of the runners' reports."""
        return f"{self.exchange}.results"

    @property
    def report_arguments(self) -> dict[str, Any]:
        """The arguments of the queue of reports: what Pushgate cannot read becomes a dead letter."""
        return {name: value for name, value in self.arguments.items() if name != "x-max-length"}

    @property
    def queues(self) -> dict[str, str]:
        """The queues for requests without ordering, with the routing keys that bind them."""
        lanes = {f"{self.queue}.{lane}": f"{LANE_PREFIX}.{lane}.#" for lane in self.lanes}
        return {self.queue: f"{EXECUTION_REQUESTED}.#", **lanes}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of each queue, except the consumer time-out, which `_declare_queue` adds.

        At-least-once dead-lettering needs the first four: https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
        """
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": self.dead_exchange,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": self.delivery_limit,
        }
        return arguments if self.max_length is None else {**arguments, "x-max-length": self.max_length}

    @property
    def partition_arguments(self) -> dict[str, Any]:
        """The arguments of a partition.

        https://www.rabbitmq.com/docs/consumers#single-active-consumer
        """
        return {**self.arguments, "x-single-active-consumer": True}

    @property
    def dead_arguments(self) -> dict[str, Any]:
        """The arguments of the queue of dead letters."""
        return {"x-queue-type": "quorum"}

    def hash_exchange(self, queue: str) -> str:
        """Return the exchange that replaces a queue if requests are ordered, bound by the same key."""
        return f"{queue}.ordered"

    def partition(self, queue: str, number: int) -> str:
        """Return the name of a queue's partition; numbers start at 1."""
        return f"{queue}.ordered.{number}"

    def partitions(self, queue: str) -> list[str]:
        """Return the names of all partitions of a queue."""
        return [self.partition(queue, number) for number in range(1, self.ordered + 1)]

    async def establish(self, connection: AbstractConnection) -> None:
        """Declare or check all exchanges and queues for requests. Raises `PublishError`."""
        async with self._translated():
            await self._refuse_more_partitions(connection)
            async with connection.channel() as channel:
                await (self._check(channel) if self.passive else self._declare(connection, channel))

    async def establish_reports(self, connection: AbstractConnection) -> None:
        """Declare or check the queue of reports. Raises `PublishError`.

        It is not part of `establish`: an operator's topology of an earlier version lacks it.
        """
        async with self._translated(), connection.channel() as channel:
            if self.passive:
                await channel.declare_queue(self.report_queue, passive=True)
                return
            await self._declare_dead_letters(channel)
            exchange = await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(
                self.report_queue, durable=True, arguments=self.report_arguments
            )
            await queue.bind(exchange, f"{EXECUTION_STATUS}.#")

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Translate what the broker refuses in the block into `PublishError`."""
        try:
            yield
        except ChannelPreconditionFailed as error:
            raise PublishError(
                f"a queue or exchange differs from what Pushgate declares; delete it first ({error})"
            ) from error
        except ChannelNotFoundEntity as error:
            raise PublishError(f"a queue or exchange that Pushgate uses does not exist ({error})") from error
        except ChannelClosed as error:
            what = "check its exchanges and queues" if self.passive else "declare its queues"
            raise PublishError(f"the broker does not let Pushgate {what} ({error})") from error

    async def _refuse_more_partitions(self, connection: AbstractConnection) -> None:
        """Raise `PublishError` if the broker has surplus partitions: they would still receive requests."""
        for queue in self.queues:
            surplus = self.partition(queue, self.ordered + 1)
            async with connection.channel() as channel:
                try:
                    await channel.declare_queue(surplus, passive=True)
                except ChannelNotFoundEntity:
                    continue
                except ChannelClosed as error:
                    # RabbitMQ 4.3 checks the permission first. A user without it did not declare it either.
                    if _ACCESS_REFUSED in str(error):
                        continue
                    raise
            raise PublishError(
                f"the broker has more partitions than PUSHGATE_AMQP_ORDERED={self.ordered} asks for: let the "
                f"runners empty {surplus} and those after it, then delete these queues"
            )

    async def _check(self, channel: AbstractChannel) -> None:
        await channel.declare_exchange(self.exchange, passive=True)
        for name in self.queues:
            if self.ordered:
                await channel.declare_exchange(self.hash_exchange(name), passive=True)
            for queue in self.partitions(name) or [name]:
                await channel.declare_queue(queue, passive=True)

    async def _declare_queue(
        self, connection: AbstractConnection, name: str, arguments: dict[str, Any]
    ) -> None:
        """Declare a queue for requests, with the consumer time-out if the queue is new.

        The arguments of an existing queue cannot be changed: an earlier version declared it without a
        time-out, another version perhaps with another one. Both are accepted, and a policy may set the
        time-out. RabbitMQ before 3.12 stores the argument, and applies it after an upgrade.
        """
        wanted = ({**arguments, _TIMEOUT_ARGUMENT: self.consumer_timeout}, arguments)
        for given in wanted:
            try:
                async with connection.channel() as channel:
                    await channel.declare_queue(name, durable=True, arguments=given)
            except ChannelPreconditionFailed as error:
                if _TIMEOUT_ARGUMENT not in str(error):
                    raise
            else:
                return
        # According to the broker, the existing queue differs in the time-out only.

    async def _declare(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        await self._declare_dead_letters(channel)
        exchange = await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
        for name, key in self.queues.items():
            if self.ordered:
                await self._declare_ordered(connection, channel, exchange, name, key)
            else:
                await self._declare_queue(connection, name, self.arguments)
                queue = await channel.get_queue(name, ensure=False)
                await queue.bind(exchange, key)

    async def _declare_dead_letters(self, channel: AbstractChannel) -> None:
        exchange = await channel.declare_exchange(self.dead_exchange, ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(self.dead_queue, durable=True, arguments=self.dead_arguments)
        await queue.bind(exchange, "#")

    async def _declare_hash_exchange(self, channel: AbstractChannel, name: str) -> AbstractExchange:
        try:
            # The connection's id is hashed, so that the routing key can describe the message.
            return await channel.declare_exchange(
                self.hash_exchange(name),
                ExchangeType.X_CONSISTENT_HASH,
                durable=True,
                arguments={"hash-header": PARTITION_HEADER},
            )
        except AMQPError as error:
            if "exchange type" not in str(error):
                raise
            raise PublishError(
                f"PUSHGATE_AMQP_ORDERED needs RabbitMQ's plugin {_PLUGIN}, which this broker has not "
                f"enabled: run `rabbitmq-plugins enable {_PLUGIN}` there"
            ) from error

    async def _declare_ordered(
        self,
        connection: AbstractConnection,
        channel: AbstractChannel,
        exchange: AbstractExchange,
        name: str,
        key: str,
    ) -> None:
        hashed = await self._declare_hash_exchange(channel, name)
        for partition in self.partitions(name):
            await self._declare_queue(connection, partition, self.partition_arguments)
            queue = await channel.get_queue(partition, ensure=False)
            # For this type of exchange, the key is a weight.
            await queue.bind(hashed, "1")
        await hashed.bind(exchange, key)
        # Remove a binding from before requests were ordered, or the queue would receive them as well. This is
        # not an error if the queue is not bound.
        await (await channel.get_underlay_channel()).queue_unbind(name, exchange.name, key)
