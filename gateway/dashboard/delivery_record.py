"""What the page of a delivery shows: commits, pages at the provider, and the way through the stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy

from gateway.api.views import (
    AttemptView,
    ExecutionSummary,
    ExplainedExecutionView,
    ExplainedView,
    StatusView,
    UpdateView,
)
from gateway.dashboard.contents import Explanation
from gateway.store import past_updates
from gateway.text.sentences import begin_sentence, provider_name
from gateway.worker.plan_inputs import unpack
from providers.pages import commit_page, comparison_page, ref_page, repository_page

Tone = Literal["good", "wait", "bad", ""]

# The inputs of one plan take up to 4 MiB of memory: only the commits of the first updates are shown.
_MAX_COMMITS = 20
_MAX_EVENTS = 200
_ENDS: Mapping[str, Tone] = {"succeeded": "good", "failed": "bad", "rejected": "bad", "lost": "bad"}
_SETTLED: Mapping[str, Tone] = {"planned": "good", "failed": "bad", "gone": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCommit:
    """The commit of a ref update. `subject` is the first line of its message, `text` what follows."""

    id: str
    subject: str
    text: str
    author: str
    committed_at: datetime

    @classmethod
    def of(cls, *, id_: str, author: str, message: str, committed_at: datetime) -> "ShownCommit":
        """Return a commit with its message in two parts."""
        subject, _, text = message.strip().partition("\n")
        return cls(id=id_, subject=subject, text=text.strip(), author=author, committed_at=committed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The provider's pages about a ref update; each is None where there is none."""

    ref: str | None
    commit: str | None
    comparison: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Something that happened to a delivery. `path` is a page of the dashboard about it, if any."""

    at: datetime
    title: str
    detail: str = ""
    tone: Tone = ""
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A delivery as its page shows it.

    `commits` and `links` are by the id of the ref update; `stages` are in the order of time, and
    `more_stages` is how many were left out.
    """

    way: Explanation
    repository: str | None
    commits: Mapping[int, ShownCommit]
    links: Mapping[int, Links]
    stages: Sequence[Stage]
    more_stages: int

    @property
    def commit(self) -> ShownCommit | None:
        """The first commit that is known."""
        return next(iter(self.commits.values()), None)

    @property
    def title(self) -> str:
        """The subject of the commit, or else what happened."""
        if self.commit is not None and self.commit.subject:
            return self.commit.subject
        delivery = self.way.delivery
        gone = [update for update in delivery.updates if update.after is None]
        if gone and len(gone) == len(delivery.updates):
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            return f"{begin_sentence(gone[0].kind.replace('_', ' '))} {gone[0].name}{more} deleted"
        event = delivery.event or "Delivery"
        return event if delivery.provider is None else f"{event} from {provider_name(delivery.provider)}"

    @classmethod
    def of(cls, delivery: ExplainedView, facts: Mapping[int, bytes]) -> "DeliveryRecord":
        """Return the record of a delivery; `facts` are the packed inputs of plans by ref update."""
        way = Explanation.of(delivery)
        commits = _commits(way, facts)
        stages = sorted(_stages(way, commits), key=lambda stage: stage.at)
        repository = delivery.repository
        return cls(
            way=way,
            repository=repository_page(repository.web_url if repository is not None else None),
            commits=commits,
            links={update.id: links_of(delivery, update) for update in way.updates},
            stages=stages[:_MAX_EVENTS],
            more_stages=max(0, len(stages) - _MAX_EVENTS),
        )


def read_facts(conn: sqlalchemy.Connection, delivery: str) -> dict[int, bytes]:
    """Return the inputs of a delivery's first plans, for `DeliveryRecord.of`."""
    return past_updates.facts_of(conn, delivery, limit=_MAX_COMMITS)


def _commits(way: Explanation, facts: Mapping[int, bytes]) -> dict[int, ShownCommit]:
    """Return the commits by ref update: from the inputs of the plan, else from a message to the runners."""
    found = {}
    for update in way.updates:
        if update.id in facts:
            commit = unpack(facts[update.id]).commit
            found[update.id] = ShownCommit.of(
                id_=commit.id,
                author=commit.author,
                message=commit.message,
                committed_at=commit.committed_at,
            )
        elif message := _message(way.requests.get(update.id, ())):
            found[update.id] = ShownCommit.of(
                id_=message["id"],
                author=message["author"],
                message=message["message"],
                committed_at=datetime.fromisoformat(message["committed_at"]),
            )
    return found


def _message(requests: Sequence[ExplainedExecutionView]) -> dict[str, Any] | None:
    """Return the commit in the first message that was read."""
    messages = (request.message for request in requests)
    return next((message["commit"] for message in messages if message is not None), None)


def links_of(delivery: ExplainedView, update: UpdateView) -> Links:
    """Return the provider's pages about a ref update."""
    provider, repository = delivery.provider, delivery.repository
    if provider is None or repository is None:
        return Links(ref=None, commit=None, comparison=None)
    url, after = repository.web_url, update.peeled or update.after
    is_compared = update.before is not None and after is not None
    return Links(
        ref=None if after is None else ref_page(provider, url, kind=update.kind, name=update.name),
        commit=None if after is None else commit_page(provider, url, after),
        comparison=comparison_page(provider, url, before=update.before or "", after=after or "")
        if is_compared
        else None,
    )


def _stages(way: Explanation, commits: Mapping[int, ShownCommit]) -> Iterator[Stage]:
    delivery = way.delivery
    for commit in {commit.id: commit for commit in commits.values()}.values():
        yield Stage(at=commit.committed_at, title="Committed", detail=f"{commit.subject} ({commit.author})")
    yield _received(delivery)
    for update in way.updates:
        yield from _of_update(update)
        for execution in way.requests.get(update.id, ()):
            path = f"/executions/{execution.id}"
            yield from of_execution(execution, name=execution.target, path=path)
    for status in delivery.statuses:
        yield from of_status(status, provider=delivery.provider)


def _received(delivery: ExplainedView) -> Stage:
    if delivery.refusal is not None:
        return Stage(at=delivery.received_at, title="Refused", detail=delivery.reason or "", tone="bad")
    if delivery.source == "reconciliation":
        return Stage(at=delivery.received_at, title="Found by reconciliation", tone="good")
    detail = f"{delivery.event} from {provider_name(delivery.provider)}"
    return Stage(at=delivery.received_at, title="Received and verified", detail=detail, tone="good")


def _of_update(update: UpdateView) -> Iterator[Stage]:
    def ended(how: UpdateView | AttemptView) -> Iterator[Stage]:
        if how.settled_at is not None:
            title, tone = _titled(update.name, how.state), _SETTLED.get(how.state, "")
            yield Stage(at=how.settled_at, title=title, detail=how.reason or "", tone=tone)

    for attempt in update.attempts:
        yield from ended(attempt)
        yield Stage(at=attempt.replayed_at, title=_titled(update.name, "replayed"))
    if update.fetched_at is not None:
        yield Stage(at=update.fetched_at, title=_titled(update.name, "fetched"), tone="good")
    yield from ended(update)


def of_execution(execution: ExecutionSummary, *, name: str = "", path: str | None = None) -> Iterator[Stage]:
    """Yield the stages of an execution request; their titles begin with its `name`, if given."""

    def stage(at: datetime, title: str, detail: str = "", tone: Tone = "") -> Stage:
        return Stage(at=at, title=_titled(name, title), detail=detail, tone=tone, path=path)

    requested = "re-run requested" if execution.rerun_of else "requested"
    yield stage(execution.planned_at, requested, f"by trigger {execution.trigger}")
    if execution.republished_at is not None:
        yield stage(execution.republished_at, "put back", f"redrive {execution.redrives}")
    if execution.published_at is not None:
        yield stage(execution.published_at, "published", "confirmed by the broker", "good")
    if execution.cancel_requested_at is not None:
        yield stage(execution.cancel_requested_at, "cancel requested")
    run = execution.run
    if run is None:
        return
    by = f"by {run.runner}" if run.runner else ""
    if run.accepted_at is not None:
        yield stage(run.accepted_at, "accepted", by, "good")
    if run.started_at is not None:
        yield stage(run.started_at, "started", by, "good")
    if run.lost_at is not None:
        yield stage(run.lost_at, "lost", (execution.state == "lost" and execution.reason) or "", "bad")
    if run.ended_at is not None:
        summary = (run.summary or "").strip().partition("\n")[0]
        yield stage(run.ended_at, execution.state, summary, _ENDS.get(execution.state, ""))


def of_status(status: StatusView, *, provider: str | None) -> Iterator[Stage]:
    """Yield the last attempt to send a verdict, if there was one."""
    if status.tried_at is None:
        return
    if status.problem is not None:
        title = f"Verdict {status.context} not sent"
        yield Stage(at=status.tried_at, title=title, detail=status.problem, tone="bad")
    else:
        detail = f"{provider_name(provider)} shows {status.shown}"
        yield Stage(at=status.tried_at, title=f"Verdict {status.context} sent", detail=detail, tone="good")


def _titled(name: str, title: str) -> str:
    return f"{name}: {title}" if name else begin_sentence(title)
