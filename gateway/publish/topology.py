"""What stands at the broker: where requests are published to, who keeps them, and where dead letters go.

Declared by us, or only checked where an operator owns it. Portable from RabbitMQ 3.10 to 4.x.
"""

from dataclasses import dataclass
from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed

from gateway.errors import PublishError
from gateway.publish.message import LANE_PREFIX, PARTITION_HEADER, ROUTING_PREFIX

_PLUGIN = "rabbitmq_consistent_hash_exchange"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A topic exchange, a quorum queue that takes every request, and the same pair for dead letters.

    Each of `lanes` has a queue of its own for the requests of its priority. With `ordered`, each of these
    queues is replaced by so many partitions, of which each hands its messages to one consumer at a time; a
    consistent-hash exchange sends all requests of a connection to the same one. With `passive` nothing is
    declared: exchanges and queues have to be there. `delivery_limit` is how often a consumer may fail with a
    message before it is a dead letter, `max_length` after how many messages a queue refuses more; None for
    no limit.
    """

    exchange: str = "pushgate"
    queue: str = "pushgate.executions"
    lanes: tuple[str, ...] = ()
    ordered: int = 0
    passive: bool = False
    delivery_limit: int = 10
    max_length: int | None = None

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
        return {self.queue: f"{ROUTING_PREFIX}.#", **lanes}

    @property
    def arguments(self) -> dict[str, Any]:
        """What each of these queues is declared with.

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
        await self._refuse_more_partitions(connection)
        try:
            async with connection.channel() as channel:
                await (self._check(channel) if self.passive else self._declare(channel))
        except ChannelPreconditionFailed as error:
            raise PublishError(
                f"what stands at the broker differs from what Pushgate declares; delete it first ({error})"
            ) from error
        except ChannelNotFoundEntity as error:
            raise PublishError(f"what Pushgate publishes to is not there ({error})") from error
        except ChannelClosed as error:
            raise PublishError(f"the broker does not let Pushgate declare its queues ({error})") from error

    async def _refuse_more_partitions(self, connection: AbstractConnection) -> None:
        """Raise where there are more partitions than wanted: they would go on taking requests."""
        for queue in self.queues:
            surplus = self.partition(queue, self.ordered + 1)
            async with connection.channel() as channel:
                try:
                    await channel.declare_queue(surplus, passive=True)
                except ChannelNotFoundEntity:
                    continue
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

    async def _declare(self, channel: AbstractChannel) -> None:
        dead_exchange = await channel.declare_exchange(self.dead_exchange, ExchangeType.TOPIC, durable=True)
        dead_queue = await channel.declare_queue(self.dead_queue, durable=True, arguments=self.dead_arguments)
        await dead_queue.bind(dead_exchange, "#")
        exchange = await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
        for name, key in self.queues.items():
            if self.ordered:
                await self._declare_ordered(channel, exchange, name, key)
            else:
                queue = await channel.declare_queue(name, durable=True, arguments=self.arguments)
                await queue.bind(exchange, key)

    async def _declare_ordered(
        self,
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
            queue = await channel.declare_queue(partition, durable=True, arguments=self.partition_arguments)
            # The key is a weight here.
            await queue.bind(hashed, "1")
        await hashed.bind(exchange, key)
        # From before requests were ordered: they would go there as well. No error where it is not bound.
        await (await channel.get_underlay_channel()).queue_unbind(name, exchange.name, key)
