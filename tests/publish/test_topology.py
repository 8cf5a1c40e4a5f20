"""The topology at the broker, as documented for operators who declare it themselves."""

from gateway.publish.topology import Topology


def test_without_a_word_there_is_one_queue_and_one_for_dead_letters() -> None:
    """The gateway declares them, with ten more tries and no limit; consumers may hold messages for a week."""
    plain = Topology()
    assert (plain.exchange, plain.queue) == ("pushgate", "pushgate.executions")
    assert (plain.dead_exchange, plain.dead_queue) == ("pushgate.dead", "pushgate.executions.dead")
    assert (plain.passive, plain.lanes, plain.ordered, plain.max_length) == (False, (), 0, None)
    assert plain.consumer_timeout == 7 * 24 * 3600 * 1000
    assert plain.queues == {"pushgate.executions": "execution.requested.#"}
    assert plain.arguments == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "pushgate.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 10,
    }
    assert plain.dead_arguments == {"x-queue-type": "quorum"}
    assert plain.partitions(plain.queue) == []


def test_a_limit_is_one_of_each_queue() -> None:
    """Messages above it are refused, and wait in the store."""
    limited = Topology(max_length=5, delivery_limit=3)
    assert (limited.arguments["x-max-length"], limited.arguments["x-delivery-limit"]) == (5, 3)


def test_each_lane_has_a_queue_by_its_own_key() -> None:
    """Next to the queue for all other requests."""
    assert Topology(lanes=("high", "low")).queues == {
        "pushgate.executions": "execution.requested.#",
        "pushgate.executions.high": "lane.high.#",
        "pushgate.executions.low": "lane.low.#",
    }


def test_partitions_are_counted_from_one_and_have_one_consumer_each() -> None:
    """There are as many as configured."""
    ordered = Topology(ordered=2)
    assert ordered.partitions("q") == ["q.ordered.1", "q.ordered.2"]
    assert ordered.hash_exchange("q") == "q.ordered"
    assert ordered.partition_arguments == {**ordered.arguments, "x-single-active-consumer": True}
