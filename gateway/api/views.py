"""The bodies of answers of the REST API: how stored records are shown."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from gateway.api.schemas import (
    DeliverySource,
    PackageFormat,
    Page,
    Provider,
    ShownAs,
    UpdateAction,
    UpdateKind,
    one_of,
)
from gateway.messages.execution_request import ExecutionRequest
from gateway.plan.triggers import Trigger
from gateway.store import deliveries, executions
from gateway.store.connections import Connection, SecretDates
from gateway.store.deliveries import RecordedDelivery, RecordedUpdate
from gateway.store.executions import OMITTED, StoredRequest
from gateway.store.platforms import Platform
from gateway.store.reconciliations import ReconciliationState

# Each of these has a schema of its own in the OpenAPI document.
Verdict = TypeAliasType(
    "Verdict",
    Annotated[
        str,
        one_of(
            get_args(deliveries.Verdict),
            "what the gateway made of a delivery: `accepted`; `duplicate`, recorded before; `ignored`,"
            " nothing to do; `unreadable`, verified, but not as the provider documents it",
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
            get_args(executions.ExecutionState),
            "`pending` until the broker confirms it as `published`; `superseded` by a later commit;"
            " `undeliverable`, the broker refuses it permanently; `dropped` by an operator",
        ),
    ],
)

Message: TypeAlias = Annotated[dict[str, Any], ShownAs(ExecutionRequest)]


class View(BaseModel):
    """What the API shows of a stored record."""

    model_config = ConfigDict(from_attributes=True)


V = TypeVar("V", bound=View)


def _view(kind: type[V], record: object, **given: Any) -> V:
    """Return a view whose fields have the values of the record's attributes with the same names.

    `given` are the fields that differ from their attribute, or have none. Records in them become views.
    """
    same = {name: getattr(record, name) for name in kind.model_fields if name not in given}
    return kind(**same, **given)


class SecretView(View):
    """A valid secret, without its value."""

    created_at: datetime = Field(description="when it was set")
    last_used_at: datetime | None = Field(
        description="when it last verified a delivery; null if it never has"
    )


class ReconciliationView(View):
    """The state of reconciliation: the comparison with the remote's refs."""

    due_at: datetime = Field(description="when the next one is due")
    tried_at: datetime | None = Field(
        description="when the last completed attempt began; null before the first"
    )
    reconciled_at: datetime | None = Field(
        description="when the last successful one ended; null before the first"
    )
    delivery: str | None = Field(
        description="the id of the delivery that records what the last one found; null if it found nothing"
    )
    reason: str | None = Field(description="why the last attempt failed; null if it succeeded")


class PlatformView(View):
    """A platform that fetches after each push."""

    url: str = Field(description="scheme and host of the platform")
    project: str = Field(description="the UUID of the project on the platform")
    fetched_at: datetime | None = Field(
        description="when the platform last fetched; null before the first time"
    )
    reason: str | None = Field(description="why its last fetch failed; null if it succeeded")


class OtherRepositoryView(View):
    """Another repository at the connection's URL, as the delivery reports."""

    id: str = Field(description="the provider's id of the repository")
    name: str | None = Field(description="its full name, if the payload has one")
    delivery: str = Field(description="the id of the delivery that reported it")


class ConnectionView(View):
    """A connection as it is shown."""

    id: str = Field(
        description="the id, which is also in the webhook URL", examples=["5f1b6c2d9a7e4b3c8d0e1f2a"]
    )
    name: str = Field(description="the unique name", examples=["acme/digits"])
    provider: Provider = Field(description="the kind of git server that sends the webhooks")
    url: str = Field(
        description="the clone URL, without credentials", examples=["https://github.com/acme/digits.git"]
    )
    project: str = Field(description="the platform's project", examples=["digits"])
    hook_url: str = Field(
        description="the webhook URL for the provider's settings",
        examples=["https://pushgate.example.com/hooks/5f1b6c2d9a7e4b3c8d0e1f2a"],
    )
    auth: dict[str, str] = Field(
        description="the parts of the authentication that are not secret; empty for most providers"
    )
    triggers: list[Annotated[dict[str, Any], ShownAs(Trigger)]] = Field(
        description="which ref updates run what"
    )
    yaml_path: str = Field(description="the manifest's path in the repository", examples=["valohai.yaml"])
    follows: list[str] = Field(
        description="globs of branches: nothing runs for other branches; empty if all count"
    )
    networks: list[str] = Field(description="the networks that may send webhooks; empty if any may")
    access: Literal["ssh key", "login", "none"] = Field(description="the kind of the credentials")
    deploy_key: str | None = Field(
        description="the public key for the provider's settings; null if the access is by another kind"
    )
    package_format: PackageFormat = Field(description="the format of packages")
    repository_id: str | None = Field(
        description="the provider's id of the repository; null until a delivery names it"
    )
    other_repository: OtherRepositoryView | None = Field(
        description="another repository that a delivery reported at the URL; null if there is none"
    )
    reconciliation: ReconciliationView = Field(
        description="the state of the comparison with the remote's refs"
    )
    platform: PlatformView | None = Field(
        description="the platform that fetches after each push; null if there is none"
    )
    secrets: list[SecretView] = Field(
        description="the valid webhook secrets without their values, newest first"
    )
    created_at: datetime = Field(description="when it was connected")
    updated_at: datetime = Field(description="when its settings last changed")

    @classmethod
    def of(
        cls,
        connection: Connection,
        secrets: list[SecretDates],
        reconciliation: ReconciliationState,
        platform: Platform | None,
        *,
        base_url: str,
    ) -> "ConnectionView":
        """Return the view of a connection, without secrets."""
        return _view(
            cls,
            connection,
            hook_url=f"{base_url}/hooks/{connection.id}",
            access=_access(connection),
            reconciliation=reconciliation,
            platform=platform,
            secrets=secrets,
        )


def _access(connection: Connection) -> Literal["ssh key", "login", "none"]:
    if connection.deploy_key is not None:
        return "ssh key"
    return "login" if connection.has_credentials else "none"


class ConnectionCreated(ConnectionView):
    """A new connection, or a connection with a new secret: the only answers that contain a secret."""

    secret: str = Field(description="the webhook secret for the provider's settings: store it now")
    warnings: list[str] = Field(
        default_factory=list,
        description="sentences about ignored input, such as a line of host_keys without a key",
    )


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
    settled_at: datetime | None = Field(description="when it ended; null while it is pending")
    verdicts: list[VerdictView] = Field(description="the verdict of each trigger; empty until it is planned")
    attempts: list[AttemptView] = Field(description="how it had ended before each replay, oldest first")

    @classmethod
    def of(cls, recorded: RecordedUpdate) -> "UpdateView":
        """Return the view of a ref update."""
        return _view(
            cls,
            recorded.update,
            id=recorded.seq,
            state=recorded.state,
            reason=recorded.reason,
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


class DeliveryView(View):
    """A delivery as it is shown."""

    id: str = Field(description="the id", examples=["0198c0de-7a1b-7c3d-8e4f-0123456789ab"])
    connection: str = Field(description="the id of the connection")
    name: str = Field(description="the name of the connection")
    is_orphan: bool = Field(description="whether the connection was deleted")
    provider: Provider = Field(description="the kind of git server")
    event: str = Field(description="the provider's name of the event", examples=["push"])
    provider_delivery_id: str | None = Field(
        description="the provider's id of the delivery; null if it sends none"
    )
    source: DeliverySource = Field(description="how the delivery came")
    received_at: datetime = Field(description="when it was received")
    verdict: Verdict = Field(description="what the gateway made of it")
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

    @classmethod
    def of(cls, recorded: RecordedDelivery) -> "DeliveryView":
        """Return the view of a delivery."""
        return _view(
            cls,
            recorded,
            repository=recorded.repository or None,
            detail=recorded.detail or None,
            updates=[UpdateView.of(update) for update in recorded.updates],
        )


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
    reason: str | None = Field(description="why it waits, or why it was not published")
    superseded_by: str | None = Field(description="the id of the later request that replaced it")
    lane: str | None = Field(description="the priority lane that the trigger names")
    planned_at: datetime = Field(description="when it was planned")
    published_at: datetime | None = Field(description="when the broker confirmed it; null until then")
    redrives: int = Field(description="how often an operator has republished the request")
    republished_at: datetime | None = Field(description="when that was last requested; null if it never was")


class ExecutionView(ExecutionSummary):
    """An execution request as it is shown."""

    message: Message = Field(description="the message to the runners; the URL of its package works now")

    @classmethod
    def of(cls, stored: StoredRequest) -> Self:
        """Return the view of an execution request, whose body must have been read."""
        return _view(cls, stored, message=json.loads(stored.body))


class ExplainedExecutionView(ExecutionSummary):
    """An execution request as an explanation shows it."""

    message: Message | None = Field(
        description="the message to the runners; null where the answer would be too large: get the execution"
    )

    @classmethod
    def of(cls, stored: StoredRequest) -> Self:
        """Return the view of an execution request."""
        return _view(cls, stored, message=None if stored.body == OMITTED else json.loads(stored.body))


class ExplainedView(DeliveryView):
    """A delivery with its execution requests, in the order of planning."""

    executions: list[ExplainedExecutionView] = Field(description="its execution requests")

    @classmethod
    def with_executions(
        cls, recorded: RecordedDelivery, requests: Sequence[ExplainedExecutionView]
    ) -> "ExplainedView":
        """Return the view of a delivery with its requests."""
        return cls(**dict(DeliveryView.of(recorded)), executions=list(requests))


class RefView(View):
    """The position of a ref."""

    ref: str = Field(description="the full name", examples=["refs/heads/main"])
    id: str | None = Field(description="the object id; null if the ref was deleted")


class ConnectionPage(Page[ConnectionView]):
    """A page of connections."""


class RefPage(Page[RefView]):
    """A page of refs."""


class DeliveryPage(Page[DeliveryView]):
    """A page of deliveries."""


class ExplainedPage(Page[ExplainedView]):
    """A page of explained deliveries."""


class ExecutionPage(Page[ExecutionView]):
    """A page of execution requests."""
