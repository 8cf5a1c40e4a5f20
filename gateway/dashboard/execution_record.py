"""What the page of an execution shows besides the execution: its stages, its verdict, and what is linked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from gateway.api.views import ExecutionView, ExplainedView, RunView, StatusView
from gateway.dashboard.delivery_record import Links, Stage, links_of, of_execution, of_status
from gateway.store.commit_statuses import context_of

_NONE = Links(ref=None, commit=None, comparison=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRecord:
    """An execution as its page shows it.

    `stages` are in the order of time. `status` is the verdict of its trigger on its commit, if the provider
    shows one. `waited` is the time from the publishing to the runner's acceptance or start, `ran` that from
    the start to the end.
    """

    delivery: ExplainedView
    stages: Sequence[Stage]
    links: Links
    status: StatusView | None
    waited: timedelta | None
    ran: timedelta | None

    @classmethod
    def of(cls, execution: ExecutionView, delivery: ExplainedView) -> "ExecutionRecord":
        """Return the record of an execution of this delivery."""
        context, commit = context_of(execution.trigger), execution.message["commit"]["id"]
        mine = (each for each in delivery.statuses if each.context == context and each.commit == commit)
        status = next(mine, None)
        stages = [*of_execution(execution)]
        if status is not None:
            stages += of_status(status, provider=delivery.provider)
        moved = (update for update in delivery.updates if update.id == execution.ref_update)
        update = next(moved, None)
        return cls(
            delivery=delivery,
            stages=sorted(stages, key=lambda stage: stage.at),
            links=_NONE if update is None else links_of(delivery, update),
            status=status,
            waited=_waited(execution),
            ran=_ran(execution.run),
        )


def _waited(execution: ExecutionView) -> timedelta | None:
    run = execution.run
    taken_at = None if run is None else run.accepted_at or run.started_at
    if taken_at is None or execution.published_at is None:
        return None
    return taken_at - execution.published_at


def _ran(run: RunView | None) -> timedelta | None:
    if run is None or run.started_at is None or run.ended_at is None:
        return None
    return run.ended_at - run.started_at
