"""Exchanges the codes of new GitHub Apps for the Apps and their secrets."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, StoreUnavailable
from gateway.provider_apis import github, github_app
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.github_app import NewApp
from gateway.provider_apis.github_app_sign_in import NoIdentity
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, ApiUnavailable
from gateway.provider_apis.webhooks import Place
from gateway.store import source_apps
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.ids import identity_id
from gateway.store.notify import Waiter
from gateway.store.source_apps import CODE_VALID, Claimed
from gateway.threads import to_the_end
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on

log = structlog.get_logger()

_LEASE = timedelta(minutes=5)
_FIRST_DELAY = 2.0
_MAX_DELAY = 300.0
_RETRY_SECONDS = 1.0
_AGAIN = (
    "begin again on the page of the source's App; if GitHub lists the App already, delete it there first,"
    " because no other App can have its name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppMaker:
    """Exchanges the codes that are due; any number may run side by side.

    GitHub shows the private key of a new App once. Until it is stored it exists only in this process, which
    therefore stores it before it does anything else, and does not end meanwhile unless it is killed.
    """

    database: Database
    keyring: Keyring
    wakeups: Waiter
    notify: Callable[[], None]
    apis: ProviderApis

    async def run(self) -> None:
        """Work until cancelled. Record failures on the source."""
        failure = "the exchange of the codes of Apps failed"
        await poll(self.exchange_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def exchange_next(self) -> bool:
        """Exchange the next code that is due, if there is one; return whether there was."""
        return await work_on(self._claim(), self._exchange, self._give_back)

    async def _claim(self) -> Claimed | None:
        return await claim_if_due(
            self.database, source_apps.EXCHANGES.is_due, source_apps.claim, lease=_LEASE, keyring=self.keyring
        )

    async def _give_back(self, claimed: Claimed) -> None:
        await self.database.write(source_apps.give_back, claimed, now=_now())

    async def _exchange(self, claimed: Claimed) -> None:
        if claimed.code is None:
            await self._failed(claimed, claimed.obstacle)
            return
        stopping = asyncio.Event()
        making = asyncio.ensure_future(self._make(claimed, claimed.code, stopping))
        await to_the_end(making, stop=stopping.set)

    async def _make(self, claimed: Claimed, code: str, stopping: asyncio.Event) -> None:
        place = Place(claimed.source.url, claimed.source.scope)
        try:
            made = await self.apis.run(
                github_app.convert_manifest(code), base_url=github.base_url(place), identity=NoIdentity()
            )
        except ApiError as error:
            await self._refused(claimed, error)
            return
        try:
            added = await self._store(claimed, made, place, stopping)
        except NotFound:
            log.warning("a new GitHub App is not used: its source was deleted", app=made.slug)
            return
        log.info("a GitHub App was made", source=claimed.source.id, identity=added.name, app=made.slug)
        self.notify()

    async def _store(self, claimed: Claimed, made: NewApp, place: Place, stopping: asyncio.Event) -> Identity:
        """Store a new App. While the database does not answer, try again until this process ends."""
        now = _now()
        base_url = github.base_url(place)
        app = Identity(
            id=identity_id(),
            name=made.slug,
            provider="github",
            kind="github-app",
            user=None,
            settings={"app_id": str(made.id), "client_id": made.client_id, "slug": made.slug},
            api_url=None if base_url == github.PUBLIC_API else base_url,
            expires_at=None,
            created_at=now,
            updated_at=now,
        )
        while True:
            try:
                return await self.database.write(
                    source_apps.finish,
                    keyring=self.keyring,
                    claimed=claimed,
                    app=app,
                    private_key=made.pem,
                    webhook_secret=made.webhook_secret,
                    now=now,
                )
            except StoreUnavailable as error:
                if stopping.is_set():
                    log.exception("the key of a new GitHub App is lost: begin again", app=made.slug)
                    raise
                log.warning(
                    "a new GitHub App cannot be stored yet: do not kill this process",
                    app=made.slug,
                    reason=str(error),
                )
            await asyncio.sleep(_RETRY_SECONDS)

    async def _refused(self, claimed: Claimed, error: ApiError) -> None:
        """Record why a code was not exchanged; try again while GitHub may still accept it."""
        delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        if isinstance(error, ApiLimited):
            delay = max(delay, error.seconds)
        next_at = _now() + timedelta(seconds=delay)
        if isinstance(error, ApiUnavailable) and next_at < claimed.received_at + CODE_VALID:
            log.warning(
                "the code of an App cannot be exchanged now",
                source=claimed.source.id,
                reason=str(error),
                next_try_in_s=round(delay),
            )
            await self.database.write(source_apps.postpone, claimed, reason=str(error), next_at=next_at)
            return
        is_unknown = isinstance(error, ApiRefused) and error.status == HTTPStatus.NOT_FOUND
        reason = "it was used already, or is older than an hour" if is_unknown else str(error)
        await self._failed(claimed, f"GitHub did not accept the code of the new App: {reason}")

    async def _failed(self, claimed: Claimed, reason: str) -> None:
        log.warning("the code of an App was not exchanged", source=claimed.source.id, reason=reason)
        await self.database.write(source_apps.fail, claimed, reason=f"{reason}; {_AGAIN}")


def _now() -> datetime:
    return datetime.now(UTC)
