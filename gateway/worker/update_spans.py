"""The spans of the stages that ref updates pass."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from gateway.store.connections import Connection
from gateway.store.work_queue import PendingUpdate
from gateway.tracing import attributes, spans
from gateway.tracing.spans import SpanIds, traced


@contextmanager
def fetching(connection: Connection, updates: Sequence[PendingUpdate]) -> Iterator[None]:
    """Trace a fetch, which serves the deliveries of all these updates.

    The trace of each delivery has a span of it. Those of the others link to that of the first.
    """
    about = attributes.of_repository(provider=connection.provider, url=connection.url)
    first, *others = dict.fromkeys(update.delivery for update in updates)
    started_ns, failure = time.time_ns(), None
    with traced("fetch", first, attributes=about | {"pushgate.deliveries": 1 + len(others)}) as ids:
        try:
            yield
        except Exception as error:
            failure = error
            raise
        finally:
            for delivery in others if spans.is_on() else ():
                spans.record(
                    "fetch",
                    SpanIds.below(delivery),
                    started_ns=started_ns,
                    attributes=about,
                    links=[spans.link_to(ids)],
                    error=failure,
                )


def planning(connection: Connection, update: PendingUpdate) -> AbstractContextManager[SpanIds]:
    """Trace that a ref update is planned."""
    return traced(
        "plan",
        update.delivery,
        attributes={
            **attributes.of_repository(provider=connection.provider, url=connection.url),
            **attributes.of_ref(
                kind=update.kind, name=update.name, after=update.after, pull_request=update.pull_request
            ),
            "pushgate.project": connection.project,
        },
    )
