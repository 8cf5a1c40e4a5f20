"""What stands at the broker: where requests are published to, who keeps them, and where dead letters go.

Declared by us, or only checked where an operator owns it. Portable from RabbitMQ 3.10 to 4.x.
"""

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
from gateway.messages.names import EXECUTION_REQUESTED, LANE_PREFIX
from gateway.publish.cloudevents import PARTITION_HEADER

_PLUGIN = "rabbitmq_consistent_hash_exchange"
_ACCESS_REFUSED = "ACCESS_REFUSED"
_TIMEOUT_ARGUMENT = "x-consumer-timeout"
# A week. RabbitMQ's own half an hour is shorter than many executions.
_CONSUMER_TIMEOUT_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A topic exchange, a quorum queue that takes every request, and the same pair for dead letters.

    Each of `lanes` has a queue of its own for the requests of its priority. With `ordered`, each of these
    queues is replaced by so many partitions, of which each hands its messages to one consumer at a time; a
    consistent-hash exchange sends all requests of a connection to the same one. With `passive` nothing is
    declared: exchanges and queues have to be there. `delivery_limit` is how often a consumer may fail with a
    message before it is a dead letter, `max_length` after how many messages a queue refuses more; None for
    no limit. `consumer_timeout` is for how many milliseconds a consumer may hold a message unacknowledged.
    """

    exchange: str = "pushgate"
    queue: str = "pushgate.executions"
    lanes: tuple[str, ...] = ()
    ordered: int = 0
    passive: bool = False
    delivery_limit: int = 10
    max_length: int | None = None
    consumer_timeout: int = _CONSUMER_TIMEOUT_MS

    @property
    def dead_exchange(self) -> str:
        """Where the queue's dead letters are published to."""
        return f"{self.exchange}.dead"

    @property
    def dead_queue(self) -> str:
        """Where they are kept."""
        return f"{self.queue}.dead"

    @property
    def queues(self) -> dict[str, str]:
        """The queues that take requests where these are not ordered, and the keys by which they are bound."""
        lanes = {f"{self.queue}.{lane}": f"{LANE_PREFIX}.{lane}.#" for lane in self.lanes}
        return {self.queue: f"{EXECUTION_REQUESTED}.#", **lanes}

    @property
    def arguments(self) -> dict[str, Any]:
        """What each of these queues has, but for the time-out of consumers: see `_declare_queue`.

        Dead letters at least once need the first four: https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
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
        """What a partition of such a queue is declared with.

        https://www.rabbitmq.com/docs/consumers#single-active-consumer
        """
        return {**self.arguments, "x-single-active-consumer": True}

    @property
    def dead_arguments(self) -> dict[str, Any]:
        """What the queue of dead letters is declared with."""
        return {"x-queue-type": "quorum"}

    def hash_exchange(self, queue: str) -> str:
        """Return what takes the place of a queue where requests are ordered: it is bound by the same key."""
        return f"{queue}.ordered"

    def partition(self, queue: str, number: int) -> str:
        """Return the name of one of a queue's partitions, which are counted from 1."""
        return f"{queue}.ordered.{number}"

    def partitions(self, queue: str) -> list[str]:
        """Return the names of all of them."""
        return [self.partition(queue, number) for number in range(1, self.ordered + 1)]

    async def establish(self, connection: AbstractConnection) -> None:
        """Declare or check everything. Raises `PublishError` with what is wrong."""
        try:
            await self._refuse_more_partitions(connection)
            async with connection.channel() as channel:
                await (self._check(channel) if self.passive else self._declare(connection, channel))
        except ChannelPreconditionFailed as error:
            raise PublishError(
                f"what stands at the broker differs from what Pushgate declares; delete it first ({error})"
            ) from error
        except ChannelNotFoundEntity as error:
            raise PublishError(f"what Pushgate publishes to is not there ({error})") from error
        except ChannelClosed as error:
            what = "look for what it publishes to" if self.passive else "declare its queues"
            raise PublishError(f"the broker does not let Pushgate {what} ({error})") from error

    async def _refuse_more_partitions(self, connection: AbstractConnection) -> None:
        """Raise where there are more partitions than wanted: they would go on taking requests."""
        for queue in self.queues:
            surplus = self.partition(queue, self.ordered + 1)
            async with connection.channel() as channel:
                try:
                    await channel.declare_queue(surplus, passive=True)
                except ChannelNotFoundEntity:
                    continue
                except ChannelClosed as error:
                    # RabbitMQ 4.3 asks for a right first. Without one this user did not declare it either.
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
        """Declare a queue that takes requests, with the time-out where it is new.

        The arguments of a queue that is there cannot be changed: one that an earlier version has declared has
        no time-out, and another version's may have another one. Both are taken as they are, and a policy may
        set it. RabbitMQ before 3.12 keeps the argument, and heeds it after its upgrade.
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
        # By all that the broker says, what is there differs in the time-out alone.

    async def _declare(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        dead_exchange = await channel.declare_exchange(self.dead_exchange, ExchangeType.TOPIC, durable=True)
        dead_queue = await channel.declare_queue(self.dead_queue, durable=True, arguments=self.dead_arguments)
        await dead_queue.bind(dead_exchange, "#")
        exchange = await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
        for name, key in self.queues.items():
            if self.ordered:
                await self._declare_ordered(connection, channel, exchange, name, key)
            else:
                await self._declare_queue(connection, name, self.arguments)
                queue = await channel.get_queue(name, ensure=False)
                await queue.bind(exchange, key)

    async def _declare_ordered(
        self,
        connection: AbstractConnection,
        channel: AbstractChannel,
        exchange: AbstractExchange,
        name: str,
        key: str,
    ) -> None:
        try:
            # The connection's id is hashed, so the routing key stays free to say what the message is about.
            hashed = await channel.declare_exchange(
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
        for partition in self.partitions(name):
            await self._declare_queue(connection, partition, self.partition_arguments)
            queue = await channel.get_queue(partition, ensure=False)
            # The key is a weight here.
            await queue.bind(hashed, "1")
        await hashed.bind(exchange, key)
        # From before requests were ordered: they would go there as well. No error where it is not bound.
        await (await channel.get_underlay_channel()).queue_unbind(name, exchange.name, key)
