"""What stands at the broker: where requests are published to, who keeps them, and where dead letters go.

Declared by us, or only checked where an operator owns it. Portable from RabbitMQ 3.10 to 4.x.
"""

from dataclasses import dataclass
from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed

from gateway.errors import PublishError
from gateway.publish.message import LANE_PREFIX, ROUTING_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A topic exchange, a quorum queue that takes every request, and the same pair for dead letters.

    Each of `lanes` has a queue of its own for the requests of its priority. With `passive` nothing is
    declared: exchange and queues have to be there. `delivery_limit` is how often a
    consumer may fail with a message before it is a dead letter, `max_length` after how many messages the
    queue refuses more; None for no limit.
    """

    exchange: str = "pushgate"
    queue: str = "pushgate.executions"
    lanes: tuple[str, ...] = ()
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
        """The queues that take requests, and the keys by which they are bound."""
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
    def dead_arguments(self) -> dict[str, Any]:
        """What the queue of dead letters is declared with."""
        return {"x-queue-type": "quorum"}

    async def establish(self, channel: AbstractChannel) -> None:
        """Declare or check everything. Raises `PublishError` with what is wrong."""
        try:
            await (self._check(channel) if self.passive else self._declare(channel))
        except ChannelPreconditionFailed as error:
            raise PublishError(
                f"what stands at the broker differs from what Pushgate declares; delete it first ({error})"
            ) from error
        except ChannelNotFoundEntity as error:
            raise PublishError(f"what Pushgate publishes to is not there ({error})") from error
        except ChannelClosed as error:
            raise PublishError(f"the broker does not let Pushgate declare its queues ({error})") from error

    async def _check(self, channel: AbstractChannel) -> None:
        await channel.declare_exchange(self.exchange, passive=True)
        for name in self.queues:
            await channel.declare_queue(name, passive=True)

    async def _declare(self, channel: AbstractChannel) -> None:
        dead_exchange = await channel.declare_exchange(self.dead_exchange, ExchangeType.TOPIC, durable=True)
        dead_queue = await channel.declare_queue(self.dead_queue, durable=True, arguments=self.dead_arguments)
        await dead_queue.bind(dead_exchange, "#")
        exchange = await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
        for name, key in self.queues.items():
            queue = await channel.declare_queue(name, durable=True, arguments=self.arguments)
            await queue.bind(exchange, key)
