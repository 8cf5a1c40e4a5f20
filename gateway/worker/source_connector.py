"""Connects the repositories of sources: lets the rules decide about each that was found or has changed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy
import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid, NotFound, SettingError
from gateway.fetch.urls import check_url, is_ssh
from gateway.intake.connection_cache import cached_connection
from gateway.intake.normalize import Received, delivery_to, verdict_of
from gateway.plan.source_rules import Decision, Rule, decide, manifests_to_find, read_rules
from gateway.provider_apis.apis import APIS, ProviderApis
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiUnavailable
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.webhooks import Place
from gateway.store import accept, connections, identities, source_repositories, sources
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.histories import lock_connections
from gateway.store.ids import connection_id
from gateway.store.notify import Waiter
from gateway.store.source_repositories import Claimed, Waiting
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on
from providers.clone_urls import repository_key, server_url
from providers.places import path_below

log = structlog.get_logger()

_LEASE = timedelta(minutes=5)
_FIRST_DELAY = 5.0
_MAX_DELAY = 3600.0


class _Unlisted(Exception):
    """Only a delivery has named a repository's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConnector:
    """Decides about the repositories that are due; any number may run side by side."""

    database: Database
    keyring: Keyring
    wakeups: Waiter
    notify: Callable[[], None]
    apis: ProviderApis
    sign_in: SignIn
    allow_http: bool
    hosts: tuple[str, ...]

    async def run(self) -> None:
        """Work until cancelled. What cannot be decided now is tried again later."""
        failure = "the connector of sources failed"
        await poll(self.decide_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def decide_next(self) -> bool:
        """Let the rules decide about one repository that is due; return whether there was one."""
        return await work_on(self._claim(), self._decide, self._give_back)

    async def _claim(self) -> Claimed | None:
        return await claim_if_due(
            self.database, source_repositories.DECISIONS.is_due, source_repositories.claim, lease=_LEASE
        )

    async def _give_back(self, claimed: Claimed) -> None:
        await self.database.write(source_repositories.give_back, claimed, now=_now())

    async def _decide(self, claimed: Claimed) -> None:
        source, repository = claimed.source, claimed.repository
        path = None
        try:
            check_url(repository.url, allow_http=self.allow_http, hosts=self.hosts)
            path = path_below(source.url, source.scope, source.provider, repository.url)
            decision = await self._decision(claimed, path)
        except Invalid as error:
            decision = Decision(None, str(error))
        except (ApiError, NotFound, SettingError) as error:
            await self._postpone(claimed, error)
            return
        if decision.rule is None:
            await self.database.write(
                source_repositories.ignore,
                claimed,
                reason=decision.reason or "",
                lacks_manifest=decision.lacks_manifest,
            )
        else:
            await self._connect(claimed, decision.rule, path or "")

    async def _decision(self, claimed: Claimed, path: str | None) -> Decision:
        """Return the rules' decision; look for the manifests that it depends on."""
        if claimed.repository.state == "removed":
            return Decision(None, claimed.repository.reason)
        if path is None:
            return Decision(None, f"{claimed.repository.url} is not below {claimed.source.url}")
        rules = read_rules(claimed.source.rules)
        manifests = {
            manifest: await self._has_file(claimed, manifest) for manifest in manifests_to_find(rules, path)
        }
        return decide(rules, path, manifests=manifests)

    async def _has_file(self, claimed: Claimed, path: str) -> bool:
        """Return whether a file is on the repository's default branch. Raise `ApiError`."""
        source, url = claimed.source, claimed.repository.url
        if source.identity is None:
            raise Invalid(f"the source needs an identity to look for {path}")
        unsealed = await self.database.read(
            identities.unseal, keyring=self.keyring, identity_id=source.identity
        )
        place = Place(url)
        return await self.apis.run(
            APIS[source.provider].has_file(url, path, claimed.repository.default_branch),
            base_url=api_url(unsealed.identity, place),
            identity=self.sign_in.identity(unsealed, Use(place, "fetch")),
        )

    async def _postpone(self, claimed: Claimed, error: Exception) -> None:
        delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        if isinstance(error, ApiLimited):
            delay = max(delay, error.seconds)
        log.warning(
            "a source's repository cannot be decided now",
            source=claimed.source.id,
            repository=claimed.repository.full_name,
            reason=str(error),
            next_try_in_s=round(delay),
        )
        next_at, others_at = _now() + timedelta(seconds=delay), None
        if isinstance(error, ApiUnavailable):
            # It may be the fault of one repository, so the others wait only a little.
            soon = error.seconds if isinstance(error, ApiLimited) else _FIRST_DELAY
            others_at = _now() + timedelta(seconds=soon)
        await self.database.write(
            source_repositories.postpone, claimed, reason=str(error), next_at=next_at, others_at=others_at
        )

    async def _connect(self, claimed: Claimed, rule: Rule, path: str) -> None:
        try:
            connection = await self.database.write(_connect, claimed=claimed, rule=rule, path=path)
        except Conflict as error:
            await self.database.write(source_repositories.ignore, claimed, reason=str(error))
            return
        except _Unlisted as error:
            await self._confirm(claimed, error)
            return
        if connection is None:
            await self._give_back(claimed)
            return
        log.info(
            "repository connected", source=claimed.source.id, connection=connection.id, url=connection.url
        )
        self.notify()

    async def _confirm(self, claimed: Claimed, unlisted: _Unlisted) -> None:
        """Wait for a listing that confirms a repository's address, unless there has been one since."""
        source, repository = claimed.source, claimed.repository
        if source.listed_at is not None and source.listed_at > repository.seen_at:
            reason = f"the source does not list {repository.url}"
            await self.database.write(source_repositories.ignore, claimed, reason=reason)
            return
        if claimed.attempts == 0:
            await self.database.write(sources.request_listing, source.id, now=_now())
        await self._postpone(claimed, unlisted)


def _connect(conn: sqlalchemy.Connection, claimed: Claimed, rule: Rule, path: str) -> Connection | None:
    """Create or update the connection of a repository, and record the deliveries that waited for it.

    Return None if what the decision is based on has changed meanwhile: then it has to be made again. Raise
    `Conflict` if a connection of another repository or source has the address, and `_Unlisted`.
    """
    wanted = _wanted(claimed, rule, path)
    present = _present(conn, claimed, wanted)
    # Before any row, as the webhook endpoint does, so that the two cannot wait for one another.
    lock_connections(conn, [claimed.source.id, wanted.id if present is None else present.id])
    if not source_repositories.is_current(conn, claimed) or _present(conn, claimed, wanted) != present:
        return None
    if present is not None:
        _check_unclaimed(conn, claimed, present)
    _check_listed(claimed, present)
    is_adopted = present is not None and (claimed.repository.is_adopted or present.source is None)
    if present is None:
        connection = connections.add_another(conn, wanted, is_named=False, is_forced=False)
    else:
        connection = _changed(present, wanted, is_adopted=is_adopted)
        if connection.url != present.url and present.name == _name(present.url):
            connection = replace(connection, name=connections.free_name(conn, wanted))
        if connection != present:
            connections.change(conn, connection)
    waiting = source_repositories.connect(conn, claimed, connection.id, is_adopted=is_adopted)
    if waiting:
        to = cached_connection(connection)
        accept.record(conn, [delivery_to(to, _received(one), id_=one.id) for one in waiting])
    return connection


def _present(conn: sqlalchemy.Connection, claimed: Claimed, wanted: Connection) -> Connection | None:
    """Return the connection that the repository has, or that the source takes over."""
    if claimed.repository.connection is not None:
        with suppress(NotFound):
            return connections.get(conn, claimed.repository.connection)
        return None
    return connections.adoptable(conn, wanted, is_listed=claimed.repository.is_listed)


def _check_unclaimed(conn: sqlalchemy.Connection, claimed: Claimed, present: Connection) -> None:
    """Raise `Conflict` if the repository of a connection belongs to another source as well, which has it."""
    if present.source in {None, claimed.source.id}:
        return
    with suppress(NotFound):
        other = sources.get(conn, present.source or "")
        if path_below(other.url, other.scope, other.provider, claimed.repository.url) is not None:
            raise Conflict(f"the source {other.name} has connected it")


def _check_listed(claimed: Claimed, present: Connection | None) -> None:
    """Raise `_Unlisted` if a delivery alone says where a token is to be sent, or a connection to be moved.

    Without an identity there is no listing, and the secret of the source is all there is to trust.
    """
    source, repository = claimed.source, claimed.repository
    if source.identity is None or repository.is_listed:
        return
    is_moved = present is not None and repository_key(present.url) != repository_key(repository.url)
    is_elsewhere = not is_ssh(repository.url) and server_url(repository.url) != server_url(source.url)
    if is_moved or is_elsewhere:
        raise _Unlisted(f"waiting until the source lists {repository.url}")


def _wanted(claimed: Claimed, rule: Rule, path: str) -> Connection:
    source, repository, now = claimed.source, claimed.repository, _now()
    return Connection(
        id=connection_id(),
        name=_name(repository.url),
        provider=source.provider,
        url=repository.url,
        project=rule.project_of(path),
        auth={},
        triggers=[trigger.model_dump(mode="json") for trigger in rule.triggers],
        yaml_path=rule.yaml_path,
        repository_id=repository.repository,
        created_at=now,
        updated_at=now,
        follows=rule.follows,
        identity=source.identity,
        source=source.id,
    )


def _changed(present: Connection, wanted: Connection, *, is_adopted: bool) -> Connection:
    """Return a present connection as it should be: its settings are the rule's, unless it is adopted."""
    is_same_place = repository_key(present.url) == repository_key(wanted.url)
    ours: dict[str, Any] = {
        "url": present.url if is_same_place else wanted.url,
        "repository_id": wanted.repository_id,
        "source": wanted.source,
    }
    if not is_adopted:
        settings = ("project", "triggers", "yaml_path", "follows", "identity")
        ours |= {name: getattr(wanted, name) for name in settings}
    changed = replace(present, **ours)
    return present if changed == present else replace(changed, updated_at=wanted.updated_at)


def _name(url: str) -> str:
    return repository_key(url).partition("/")[2]


def _received(waiting: Waiting) -> Received:
    return Received(
        status=202,
        verdict=verdict_of(waiting.event),
        event=waiting.event,
        event_name=waiting.event_name,
        provider_delivery_id=waiting.provider_delivery_id,
        headers=waiting.headers,
        secret=waiting.secret,
        body=waiting.body,
        exchange=waiting.exchange,
        at=waiting.received_at,
    )


def _now() -> datetime:
    return datetime.now(UTC)
