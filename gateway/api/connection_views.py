"""The answers of the REST API about connections."""

from datetime import datetime
from typing import Annotated, Any, Self, get_args

from pydantic import Field
from typing_extensions import TypeAliasType

from gateway.api.schemas import PackageFormat, Page, Provider, ShownAs, one_of
from gateway.api.views import View, view_of
from gateway.fetch.reasons import CHECK_THE_NETWORK, Access, repair_of
from gateway.plan.triggers import Trigger
from gateway.store.connection_facts import ConnectionFacts
from gateway.store.connections import Connection
from gateway.store.reconciliations import ReconciliationState
from gateway.worker import connection_health

_START_A_WORKER = "check that a process with the role all or worker is running and not overloaded"


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


class RemoteView(View):
    """Whether a worker can read the remote, by its last look."""

    readable: bool | None = Field(description="whether it could be read; null if it has not been read yet")
    reason: str | None = Field(description="why it cannot be read, or has not been read yet; null otherwise")
    repair: str | None = Field(description="what to do about the reason; null if only waiting helps")
    checked_at: datetime | None = Field(
        description="when that look began; null if the remote has not been read yet"
    )
    default_branch: str | None = Field(
        description="the default branch at the last requested look; null if unknown"
    )

    @classmethod
    def of(
        cls,
        state: ReconciliationState,
        access: Access,
        *,
        now: datetime,
        since: datetime | None = None,
    ) -> Self:
        """Return the outcome of the last look, of those that began at `since` or later."""
        if state.tried_at is None or (since is not None and state.tried_at < since):
            reason, repair = "no worker has begun to read it", _START_A_WORKER
            if state.due_at > now:
                waited = f" after {(now - since).total_seconds():.0f} s" if since else ""
                reason, repair = f"the host has not answered a worker yet{waited}", CHECK_THE_NETWORK
            return cls(
                readable=None,
                reason=reason,
                repair=repair,
                checked_at=None,
                default_branch=state.default_branch,
            )
        return cls(
            readable=state.reason is None,
            reason=state.reason,
            repair=repair_of(state.reason, access) if state.reason else None,
            checked_at=state.tried_at,
            default_branch=state.default_branch,
        )


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


HealthState = TypeAliasType(
    "HealthState",
    Annotated[
        str,
        one_of(
            connection_health.STATES,
            "`ok`; `unknown`, something has not been seen yet; `warning`, something needs attention, now or"
            " soon; `failing`, webhooks do not arrive, or the repository cannot be read",
        ),
    ],
)


class FindingView(View):
    """Something about a connection that is not in order, or not known."""

    what: str = Field(
        description="what it is about", json_schema_extra={"enum": list(get_args(connection_health.What))}
    )
    state: HealthState = Field(description="how bad it is")
    reason: str = Field(description="what was found, in a sentence for people")
    repair: str = Field(description="what to do, in a sentence for people")


class HealthView(View):
    """The health of a connection, by the last check of its webhook, its identity and its remote."""

    state: HealthState = Field(description="the worst state of the findings; `ok` without any")
    findings: list[FindingView] = Field(description="what is not in order, or not known, the worst first")

    @classmethod
    def of(cls, connection: Connection, facts: ConnectionFacts, *, now: datetime) -> Self:
        """Return the health of a connection."""
        access = connection_health.access_of(connection)
        return cls.of_health(connection_health.health(connection, facts, access, now=now))

    @classmethod
    def of_health(cls, found: connection_health.Health) -> Self:
        """Return the view of a health."""
        return view_of(cls, found, findings=[view_of(FindingView, one) for one in found.findings])


class ConnectionHealthView(View):
    """A connection with its health."""

    id: str = Field(description="the id of the connection", examples=["5f1b6c2d9a7e4b3c8d0e1f2a"])
    name: str = Field(description="its unique name", examples=["acme/digits"])
    provider: Provider = Field(description="the kind of git server that sends the webhooks")
    project: str = Field(description="the platform's project", examples=["digits"])
    health: HealthView = Field(description="its health")


class SourceOfConnectionView(View):
    """The source whose webhook serves a connection."""

    id: str = Field(description="the id of the source")
    name: str = Field(description="its unique name", examples=["acme"])


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
        description="the webhook URL for the provider's settings; of a connection with a `source`, the"
        " webhook URL of the source, where the deliveries of all of its repositories arrive",
        examples=["https://pushgate.example.com/hooks/5f1b6c2d9a7e4b3c8d0e1f2a"],
    )
    source: SourceOfConnectionView | None = Field(
        description="the source that made it, and whose webhook, secret and networks serve it; null if it has"
        " a webhook of its own"
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
    access: Access = Field(description="the kind of the credentials that fetches use")
    identity: str | None = Field(description="the name of the identity; null if there is none")
    statuses: bool = Field(
        description="whether the provider shows the verdicts on commits, if the identity may set statuses"
    )
    has_status_webhook: bool = Field(
        description="whether a webhook receives the verdicts in place of the provider"
    )
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
    remote: RemoteView = Field(description="whether the repository can be read")
    reconciliation: ReconciliationView = Field(
        description="the state of the comparison with the remote's refs"
    )
    platform: PlatformView | None = Field(
        description="the platform that fetches after each push; null if there is none"
    )
    valohai_url: str = Field(
        description="the URL for a notification channel of Valohai, which reports what becomes of executions;"
        " secret, because it needs no token"
    )
    secrets: list[SecretView] = Field(
        description="the valid webhook secrets without their values, newest first; empty with a `source`"
    )
    health: HealthView = Field(description="what is known of its webhook, identity and remote")
    created_at: datetime = Field(description="when it was connected")
    updated_at: datetime = Field(description="when its settings last changed")

    @classmethod
    def of(
        cls,
        connection: Connection,
        facts: ConnectionFacts,
        *,
        base_url: str,
        valohai_url: str,
        now: datetime,
        since: datetime | None = None,
    ) -> "ConnectionView":
        """Return the view of a connection, without secrets. Looks at the remote count from `since` on."""
        access = connection_health.access_of(connection)
        return view_of(
            cls,
            connection,
            hook_url=f"{base_url}/hooks/{connection.source or connection.id}",
            source=_source(connection, facts),
            valohai_url=valohai_url,
            access=access,
            identity=facts.identity.name if facts.identity else None,
            remote=RemoteView.of(facts.reconciliation, access, now=now, since=since),
            reconciliation=facts.reconciliation,
            platform=facts.platform,
            secrets=facts.secrets,
            health=HealthView.of(connection, facts, now=now),
        )


def _source(connection: Connection, facts: ConnectionFacts) -> SourceOfConnectionView | None:
    if connection.source is None:
        return None
    return SourceOfConnectionView(id=connection.source, name=facts.source or connection.source)


class ConnectionCreated(ConnectionView):
    """A new connection, or a connection with a new secret: the only answers that contain a secret."""

    secret: str = Field(description="the webhook secret for the provider's settings: store it now")
    warnings: list[str] = Field(
        default_factory=list,
        description="sentences about ignored input, such as a line of host_keys without a key, and about a"
        " webhook URL that the provider cannot reach",
    )


class RefView(View):
    """The position of a ref."""

    ref: str = Field(description="the full name", examples=["refs/heads/main"])
    id: str | None = Field(description="the object id; null if the ref was deleted")


class ConnectionPage(Page[ConnectionView]):
    """A page of connections."""


class HealthPage(Page[ConnectionHealthView]):
    """A page of connections with their health."""


class RefPage(Page[RefView]):
    """A page of refs."""
