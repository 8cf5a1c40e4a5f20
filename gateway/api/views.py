"""The bodies of answers of the REST API: how stored records are shown."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from gateway.store.connections import Connection, SecretDates
from gateway.store.deliveries import RecordedDelivery, RecordedUpdate
from gateway.store.executions import OMITTED, StoredRequest
from gateway.store.platforms import Platform
from gateway.store.reconciliations import ReconciliationState
from providers.model import RefKind


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

    created_at: datetime
    last_used_at: datetime | None


class ReconciliationView(View):
    """The state of reconciliation: the comparison with the remote's refs.

    `delivery` records what the last reconciliation found, if anything; `reason` is why it fails; `tried_at`
    is when the last completed attempt began.
    """

    due_at: datetime
    tried_at: datetime | None
    reconciled_at: datetime | None
    delivery: str | None
    reason: str | None


class PlatformView(View):
    """A platform that fetches after each push; `reason` is why its last fetch failed, if it did."""

    url: str
    project: str
    fetched_at: datetime | None
    reason: str | None


class OtherRepositoryView(View):
    """Another repository at the connection's URL, as the delivery reports."""

    id: str
    name: str | None
    delivery: str


class ConnectionView(View):
    """A connection as it is shown.

    `secrets` are the valid secrets, newest first. `access` is the kind of credentials; `deploy_key` is the
    public key.
    """

    id: str
    name: str
    provider: str
    url: str
    project: str
    hook_url: str
    auth: dict[str, str]
    triggers: list[dict[str, Any]]
    yaml_path: str
    follows: list[str]
    networks: list[str]
    access: Literal["ssh key", "login", "none"]
    deploy_key: str | None
    package_format: str
    repository_id: str | None
    other_repository: OtherRepositoryView | None
    reconciliation: ReconciliationView
    platform: PlatformView | None
    secrets: list[SecretView]
    created_at: datetime
    updated_at: datetime

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
    """A new connection, or a connection with a new secret: the only answers that contain a secret.

    `warnings` name ignored input, such as a line of host_keys without a key.
    """

    secret: str
    warnings: list[str] = []


class VerdictView(View):
    """The verdict of a trigger on a ref update; `reason` names the condition that decided.

    `failure` is why no request exists although the trigger matched.
    """

    trigger: str
    matched: bool
    reason: str
    failure: str | None = None


class AttemptView(View):
    """The outcome of a ref update before it was replayed at `replayed_at`."""

    state: str
    reason: str | None
    settled_at: datetime | None
    verdicts: list[VerdictView]
    replayed_at: datetime


class UpdateView(View):
    """A ref update as it is shown; its execution requests refer to its `id`.

    `attempts` are its outcomes before replays, oldest first.
    """

    id: int
    ref: str
    kind: RefKind
    name: str
    before: str | None
    after: str | None
    action: Literal["create", "update", "delete"]
    peeled: str | None
    forced: bool | None
    commits: list[str]
    truncated: bool | None
    total: int | None
    state: str
    reason: str | None
    settled_at: datetime | None
    verdicts: list[VerdictView]
    attempts: list[AttemptView]

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


class DeliveryView(View):
    """A delivery as it is shown, with its connection's `name`; the connection of an orphan was deleted."""

    id: str
    connection: str
    name: str
    is_orphan: bool
    provider: str
    event: str
    provider_delivery_id: str | None
    source: str
    received_at: datetime
    verdict: str
    reason: str | None
    pusher: str | None
    repository: dict[str, Any] | None
    detail: dict[str, Any] | None
    secret_made_at: datetime | None
    updates: list[UpdateView]

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


class ExecutionView(View):
    """An execution request as it is shown; `message` is the message to the runners.

    The URL of its package works now, if the package has not expired. With `is_outline` the message is
    shortened, because the answer would be too large.
    """

    id: str
    connection: str
    delivery: str
    ref_update: int
    trigger: str
    state: str
    reason: str | None
    superseded_by: str | None
    lane: str | None
    message: dict[str, Any]
    is_outline: bool = False
    planned_at: datetime
    published_at: datetime | None
    redrives: int = Field(description="how often an operator has republished the request")
    republished_at: datetime | None = Field(description="when that was last requested; null if it never was")

    @classmethod
    def of(cls, stored: StoredRequest) -> "ExecutionView":
        """Return the view of an execution request."""
        is_outline = stored.body == OMITTED
        message = _outline(stored) if is_outline else json.loads(stored.body)
        return _view(cls, stored, message=message, is_outline=is_outline)


def _outline(stored: StoredRequest) -> dict[str, Any]:
    """Return the outline of a message whose body was omitted."""
    known = {"id": stored.id, "project": stored.project, "trigger": stored.trigger}
    return {**known, "execution": {"name": stored.target}, "package": None, "submodules": []}


class ExplainedView(DeliveryView):
    """A delivery with its execution requests, in the order of planning."""

    executions: list[ExecutionView]

    @classmethod
    def with_executions(
        cls, recorded: RecordedDelivery, requests: Sequence[ExecutionView]
    ) -> "ExplainedView":
        """Return the view of a delivery with its requests."""
        return cls(**dict(DeliveryView.of(recorded)), executions=list(requests))


class RefView(View):
    """The position of a ref; null if the ref was deleted."""

    ref: str
    id: str | None
