"""The bodies of answers of the REST API: how stored records are shown."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from gateway.api.schemas import (
    DeliverySource,
    Page,
    Provider,
    ShownAs,
    UpdateAction,
    UpdateKind,
    one_of,
)
from gateway.messages import execution_states
from gateway.messages.execution_request import ExecutionRequest
from gateway.store import deliveries, outcomes, refusals
from gateway.store.deliveries import RecordedDelivery, RecordedUpdate
from gateway.store.executions import OMITTED, StoredRequest
from gateway.store.refusals import RecordedRefusal
from gateway.store.status_tasks import SentStatus
from gateway.text.sentences import repair_of_refusal

# Each of these has a schema of its own in the OpenAPI document.
Verdict = TypeAliasType(
    "Verdict",
    Annotated[
        str,
        one_of(
            (*get_args(deliveries.Verdict), refusals.VERDICT),
            "what the gateway made of a delivery: `accepted`; `duplicate`, recorded before; `ignored`,"
            " nothing to do; `unreadable`, verified, but not as the provider documents it; `refused`, not"
            " verified, too large or for no connection: not stored, only counted",
        ),
    ],
)
Outcome = TypeAliasType(
    "Outcome",
    Annotated[
        str,
        one_of(
            get_args(outcomes.Outcome),
            "what became of a delivery, the worst of its ref updates: `failed`, a ref update failed or has"
            " vanished, a matched trigger could not be planned, or the body is unreadable; `waiting`; `ran`,"
            " at least one execution was requested; `superseded`, later commits have superseded all of them;"
            " `nothing-matched`; `duplicate`, recorded before; `ignored`, no push; `refused`, see `verdict`",
        ),
    ],
)
UpdateState = TypeAliasType(
    "UpdateState",
    Annotated[
        str,
        one_of(
            get_args(deliveries.UpdateState),
            "`pending` until it is `planned`; `gone`, the remote no longer has the commit; `failed`;"
            " `duplicate`, the same move was recorded before",
        ),
    ],
)
ExecutionState = TypeAliasType(
    "ExecutionState",
    Annotated[
        str,
        one_of(
            get_args(execution_states.ExecutionState),
            "`pending` until the broker confirms it as `published`; then what its runner reports: `accepted`,"
            " `running`, and one of the ends `succeeded`, `failed`, `cancelled`, `rejected`; `lost`, nothing"
            " was reported for too long; `superseded` by a later commit; `undeliverable`, the broker refuses"
            " it permanently; `dropped` by an operator",
        ),
    ],
)

Message: TypeAlias = Annotated[dict[str, Any], ShownAs(ExecutionRequest)]


class View(BaseModel):
    """What the API shows of a stored record."""

    model_config = ConfigDict(from_attributes=True)


V = TypeVar("V", bound=View)


def view_of(kind: type[V], record: object, **given: Any) -> V:
    """Return a view whose fields have the values of the record's attributes with the same names.

    `given` are the fields that differ from their attribute, or have none. Records in them become views.
    """
    same = {name: getattr(record, name) for name in kind.model_fields if name not in given}
    return kind(**same, **given)


class VerdictView(View):
    """The verdict of a trigger on a ref update."""

    trigger: str = Field(description="the trigger's name")
    matched: bool = Field(description="whether the ref update matches the trigger")
    reason: str = Field(description="the condition that decided, in a sentence for people")
    failure: str | None = Field(
        default=None, description="why no request exists although the trigger matched; null if there is one"
    )


class AttemptView(View):
    """The outcome of a ref update before it was replayed."""

    state: UpdateState = Field(description="how it had ended")
    reason: str | None = Field(description="why")
    settled_at: datetime | None = Field(description="when it had ended")
    verdicts: list[VerdictView] = Field(description="the verdict of each trigger")
    replayed_at: datetime = Field(description="when it was replayed")


class UpdateView(View):
    """A ref update as it is shown."""

    id: int = Field(description="the number of the ref update: `ref_update` in its execution requests")
    ref: str = Field(description="the full name of the ref", examples=["refs/heads/main"])
    kind: UpdateKind = Field(description="the kind of ref")
    name: str = Field(description="the short name", examples=["main"])
    before: str | None = Field(description="the object id before; null if the ref did not exist")
    after: str | None = Field(
        description="the object id after, of the tag object for an annotated tag; null if the ref was deleted"
    )
    action: UpdateAction = Field(description="what happened to the ref")
    peeled: str | None = Field(description="the commit of an annotated tag, if the payload has it")
    forced: bool | None = Field(description="whether commits were lost; null if the payload does not say")
    commits: list[str] = Field(
        description="the ids that the payload lists, oldest first: not necessarily all"
    )
    truncated: bool | None = Field(
        description="whether the payload lists only some of the commits; null if it does not say"
    )
    total: int | None = Field(
        description="the number of commits of the push; null if the payload does not say"
    )
    state: UpdateState = Field(description="what became of it")
    reason: str | None = Field(description="why it ended so, or why it waits")
    fetched_at: datetime | None = Field(
        description="when its commit had been fetched; null if none was, or by an earlier version"
    )
    settled_at: datetime | None = Field(description="when it ended; null while it is pending")
    verdicts: list[VerdictView] = Field(description="the verdict of each trigger; empty until it is planned")
    attempts: list[AttemptView] = Field(description="how it had ended before each replay, oldest first")

    @classmethod
    def of(cls, recorded: RecordedUpdate) -> "UpdateView":
        """Return the view of a ref update."""
        return view_of(
            cls,
            recorded.update,
            id=recorded.seq,
            state=recorded.state,
            reason=recorded.reason,
            fetched_at=recorded.fetched_at,
            settled_at=recorded.settled_at,
            verdicts=recorded.verdicts,
            attempts=recorded.attempts,
        )


class RepositoryView(View):
    """A repository, according to a payload: for display."""

    id: str | None = Field(default=None, description="the provider's id")
    full_name: str | None = Field(default=None, description="the full name", examples=["acme/digits"])
    web_url: str | None = Field(default=None, description="its page")
    default_branch: str | None = Field(default=None, description="the default branch")


class PullRequestView(View):
    """A pull or merge request, according to a payload."""

    action: str = Field(description="`opened`, `updated`, `merged` or `closed`")
    number: str = Field(description="the provider's number for it")
    source: str = Field(description="the short name of the source branch")
    target: str = Field(description="the short name of the target branch")
    head: str | None = Field(
        default=None, description="the commit of the source branch, if the payload has it"
    )
    from_fork: bool | None = Field(
        default=None, description="whether the source is in another repository; null if that is unknown"
    )


class PullRequestDetail(View):
    """What a delivery says about a pull or merge request."""

    pull_request: PullRequestView = Field(description="the pull request")


class RepositoryChangeView(View):
    """A rename or a transfer of a repository, according to a payload."""

    action: str = Field(description="`renamed` or `transferred`")
    full_name: str | None = Field(default=None, description="the new full name, if the payload has it")


class RepositoryChangeDetail(View):
    """What a delivery says about a change of the repository."""

    change: RepositoryChangeView = Field(description="the change")


class RefusalView(View):
    """Why requests were refused: those of one client on one day with one reason are one item of the list."""

    status: int = Field(description="the HTTP status of the answer", examples=[401])
    client: str | None = Field(description="the address of the client; null if it is unknown")
    count: int = Field(description="how many requests were refused")
    last_at: datetime = Field(description="when the last of them was received; `received_at` is the first")
    repair: str | None = Field(description="what to do, in a sentence for people; null if nothing is known")


class DeliveryView(View):
    """A delivery as it is shown."""

    id: str = Field(description="the id", examples=["0198c0de-7a1b-7c3d-8e4f-0123456789ab"])
    connection: str = Field(
        description="the id of the connection; of a refused request, the id in its URL, empty if that is none"
    )
    name: str = Field(description="the name of the connection; `unknown connection` if it never existed")
    is_orphan: bool = Field(description="whether the connection was deleted, or never existed")
    is_of_source: bool = Field(
        description="whether `connection` and `name` are those of a source: the delivery is about a"
        " repository without a connection"
    )
    is_waiting: bool = Field(
        description="whether it waits for the rules of its source: if they connect its repository, it becomes"
        " a delivery to that connection, with the same id"
    )
    provider: Provider | None = Field(
        description="the kind of git server; null only if the connection never existed"
    )
    event: str = Field(description="the provider's name of the event", examples=["push"])
    provider_delivery_id: str | None = Field(
        description="the provider's id of the delivery; null if it sends none"
    )
    source: DeliverySource = Field(description="how the delivery came")
    received_at: datetime = Field(description="when it was received")
    verdict: Verdict = Field(description="what the gateway made of it")
    outcome: Outcome = Field(description="what became of it")
    reason: str | None = Field(description="why; null where the verdict says it all")
    pusher: str | None = Field(description="who pushed, according to the payload: for display, not verified")
    repository: RepositoryView | None = Field(
        description="the repository, according to the payload; null if the payload does not name it"
    )
    detail: PullRequestDetail | RepositoryChangeDetail | None = Field(
        description="what the payload says besides ref updates; null if nothing"
    )
    secret_made_at: datetime | None = Field(
        description="when the secret that verified it was set; null if none did, or if it is no longer stored"
    )
    updates: list[UpdateView] = Field(description="the refs that moved")
    refusal: RefusalView | None = Field(description="why it was refused; null for every other verdict")

    @classmethod
    def of(cls, recorded: RecordedDelivery | RecordedRefusal) -> "DeliveryView":
        """Return the view of a delivery."""
        if isinstance(recorded, RecordedRefusal):
            return cls._of_refusal(recorded)
        return view_of(
            cls,
            recorded,
            repository=recorded.repository or None,
            detail=recorded.detail or None,
            updates=[UpdateView.of(update) for update in recorded.updates],
            refusal=None,
        )

    @classmethod
    def _of_refusal(cls, recorded: RecordedRefusal) -> "DeliveryView":
        return view_of(
            cls,
            recorded,
            connection=recorded.connection or "",
            name=recorded.name or "unknown connection",
            is_waiting=False,
            source="webhook",
            received_at=recorded.first_at,
            verdict=refusals.VERDICT,
            outcome=outcomes.REFUSED,
            pusher=None,
            repository=None,
            detail=None,
            secret_made_at=None,
            updates=[],
            refusal=view_of(
                RefusalView,
                recorded,
                repair=repair_of_refusal(recorded.cause, is_of_source=recorded.is_of_source),
            ),
        )


class RunOutputView(View):
    """A file that a run has made, according to the runner."""

    name: str = Field(description="the name of the output or of the file")
    url: str | None = Field(description="where it is, such as s3://…; null if the runner does not say")


class RunView(View):
    """What runners have reported. Each field is null if no report has it."""

    accepted_at: datetime | None = Field(description="when a runner took the request over")
    started_at: datetime | None = Field(description="when it began to run")
    ended_at: datetime | None = Field(description="when it ended")
    lost_at: datetime | None = Field(description="when it was last given up as lost, for lack of reports")
    reported_at: datetime | None = Field(description="when Pushgate received the report that counts")
    url: str | None = Field(description="a web page about the run")
    log_url: str | None = Field(description="a web page with its log")
    summary: str | None = Field(description="what came out, for people")
    metrics: dict[str, float] | None = Field(description="measured numbers by name")
    outputs: list[RunOutputView] | None = Field(description="the files that the run has made")
    runner: str | None = Field(description="the runner and its version")

    @classmethod
    def of(cls, run: execution_states.Run) -> Self:
        """Return the view of a run."""
        is_reported = run.sequence != execution_states.NO_REPORT
        return view_of(cls, run, reported_at=run.reported_at if is_reported else None)


class ExecutionSummary(View):
    """An execution request as it is shown, without its message."""

    id: str = Field(
        description="the id, which is also the message's", examples=["5c0ffee0-1a2b-5c3d-8e4f-0123456789ab"]
    )
    connection: str = Field(description="the id of the connection")
    delivery: str = Field(description="the id of the delivery that caused it")
    ref_update: int = Field(description="the `id` of its ref update in the delivery")
    project: str = Field(description="the platform's project")
    trigger: str = Field(description="the name of the trigger")
    target: str = Field(description="the name of the step, pipeline or task", examples=["train"])
    state: ExecutionState = Field(description="what became of it")
    reason: str | None = Field(description="why it waits, why it was not published, or why it is lost")
    superseded_by: str | None = Field(description="the id of the later request that replaced it")
    lane: str | None = Field(description="the priority lane that the trigger names")
    planned_at: datetime = Field(description="when it was planned")
    published_at: datetime | None = Field(description="when the broker confirmed it; null until then")
    redrives: int = Field(description="how often an operator has republished the request")
    republished_at: datetime | None = Field(description="when that was last requested; null if it never was")
    run: RunView | None = Field(description="what runners have reported; null if nothing")
    cancel_requested_at: datetime | None = Field(
        description="when an operator cancelled it; its `state` changes once its runner has reported"
    )
    rerun_of: str | None = Field(
        description="the id of the execution that this one runs again; null for a first run"
    )
    rerun_by: list[str] = Field(description="the ids of the executions that run this one again, oldest first")

    @classmethod
    def summary_of(cls, stored: StoredRequest, **given: Any) -> Self:
        """Return the view of an execution request; `given` are the fields that it has besides."""
        run = stored.run
        # The stored reason is the outbox's.
        reason = stored.reason if run is None else execution_states.why_lost(run)
        return view_of(
            cls,
            stored,
            state=stored.shown_state,
            reason=reason,
            run=None if run is None else RunView.of(run),
            **given,
        )


class ExecutionView(ExecutionSummary):
    """An execution request as it is shown."""

    message: Message = Field(description="the message to the runners; the URL of its package works now")

    @classmethod
    def of(cls, stored: StoredRequest) -> Self:
        """Return the view of an execution request, whose body must have been read."""
        return cls.summary_of(stored, message=json.loads(stored.body))


class ExplainedExecutionView(ExecutionSummary):
    """An execution request as an explanation shows it."""

    message: Message | None = Field(
        description="the message to the runners; null where the answer would be too large: get the execution"
    )

    @classmethod
    def of(cls, stored: StoredRequest) -> Self:
        """Return the view of an execution request."""
        message = None if stored.body == OMITTED else json.loads(stored.body)
        return cls.summary_of(stored, message=message)


class StatusView(View):
    """A verdict on a commit, as the provider shows it."""

    commit: str = Field(description="the object id of the commit")
    context: str = Field(description="its name at the provider", examples=["pushgate/train"])
    shown: str | None = Field(
        description="the state that the provider has accepted, in its own words; null if none yet"
    )
    is_due: bool = Field(description="whether another attempt to send it follows")
    problem: str | None = Field(description="why the last attempt failed; null if it did not")
    tried_at: datetime | None = Field(description="when the last attempt ended; null before the first")


class ExplainedView(DeliveryView):
    """A delivery with its execution requests, in the order of planning, and the verdicts on its commits."""

    executions: list[ExplainedExecutionView] = Field(description="its execution requests")
    statuses: list[StatusView] = Field(
        description="the verdicts that the provider shows; empty if the connection shows none, or if a later"
        " delivery has led to others on the same commits"
    )

    @classmethod
    def with_executions(
        cls,
        recorded: RecordedDelivery | RecordedRefusal,
        requests: Sequence[ExplainedExecutionView],
        statuses: Sequence[SentStatus] = (),
    ) -> "ExplainedView":
        """Return the view of a delivery with its requests and the verdicts on its commits."""
        shown = [view_of(StatusView, status) for status in statuses]
        return cls(**dict(DeliveryView.of(recorded)), executions=list(requests), statuses=shown)


class DeliveryPage(Page[DeliveryView]):
    """A page of deliveries."""


class ExplainedPage(Page[ExplainedView]):
    """A page of explained deliveries."""


class ExecutionPage(Page[ExecutionView]):
    """A page of execution requests."""
