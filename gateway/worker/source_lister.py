"""Lists the repositories of sources on a schedule: new ones, renamed ones, and those that are gone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.operation import ApiError, ApiLimited
from gateway.provider_apis.sign_in import SignIn, Use, api_url, repositories_of
from gateway.provider_apis.webhooks import ListedRepository, Place
from gateway.store import identities, source_repositories, sources
from gateway.store.database import Database
from gateway.store.notify import Waiter
from gateway.store.source_repositories import Seen, SourceRepository
from gateway.store.sources import DueListing
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on
from providers.clone_urls import repository_key

T = TypeVar("T")

log = structlog.get_logger()

LIST_EVERY = timedelta(hours=1)
_LEASE = timedelta(minutes=30)
_FIRST_DELAY = 10.0
_MAX_DELAY = 3600.0
# How many repositories a transaction records: well under 100 ms.
_PART = 500
_GONE = "the source does not list it: it was deleted, transferred or archived, or the identity may not see it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLister:
    """Lists the repositories of the sources that are due; any number may run side by side."""

    database: Database
    keyring: Keyring
    wakeups: Waiter
    notify: Callable[[], None]
    apis: ProviderApis
    sign_in: SignIn

    async def run(self) -> None:
        """Work until cancelled. Record failures on the source, and try again."""
        failure = "the lister of sources failed"
        await poll(self._list_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def _list_next(self) -> bool:
        return await work_on(self._claim(), self._list, self._give_back)

    async def _claim(self) -> DueListing | None:
        return await claim_if_due(self.database, sources.LISTINGS.is_due, sources.claim, lease=_LEASE)

    async def _give_back(self, listing: DueListing) -> None:
        await self.database.write(sources.give_back, listing, now=_now())

    async def _list(self, listing: DueListing) -> None:
        began_at = _now()
        try:
            found = await self._repositories(listing)
        except (ApiError, NotFound, SettingError) as error:
            await self._failed(listing, error)
            return
        await self._record(listing, found, began_at)
        log.info("repositories listed", source=listing.source.id, number=len(found))
        self.notify()

    async def _repositories(self, listing: DueListing) -> Sequence[ListedRepository]:
        source = listing.source
        if source.identity is None:
            raise NotFound("the source has no identity: its repositories are found by their deliveries only")
        unsealed = await self.database.read(
            identities.unseal, keyring=self.keyring, identity_id=source.identity
        )
        place = Place(source.url, source.scope)
        return await self.apis.run(
            repositories_of(unsealed.identity, place),
            base_url=api_url(unsealed.identity, place),
            identity=self.sign_in.identity(unsealed, Use(place, "fetch")),
        )

    async def _record(
        self, listing: DueListing, found: Sequence[ListedRepository], began_at: datetime
    ) -> None:
        """Record a listing: the rules decide about what is new or has changed, and what is missing is gone.

        In parts, because webhooks wait for each transaction.
        """
        source = listing.source.id
        known = await self.database.read(source_repositories.listed, source)
        live = {one.id: one for one in found if not one.is_archived}
        changed = [_seen(source, one) for one in live.values() if _has_changed(known.get(one.id), one)]
        for part in _parts(changed):
            await self.database.write(source_repositories.see_listed, part, now=_now())
        missing = [
            one.repository
            for one in known.values()
            if one.repository not in live and one.state not in {"gone", "removed"}
        ]
        for names in _parts(missing):
            await self.database.write(
                source_repositories.mark_gone, source, names, since=began_at, reason=_GONE
            )
        now = _now()
        await self.database.write(sources.record_listing, listing, now=now, next_at=now + LIST_EVERY)

    async def _failed(self, listing: DueListing, error: Exception) -> None:
        delay = backoff(listing.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        if isinstance(error, ApiLimited):
            delay = max(delay, error.seconds)
        log.warning(
            "the repositories of a source cannot be listed",
            source=listing.source.id,
            reason=str(error),
            next_try_in_s=round(delay),
        )
        await self.database.write(
            sources.record_listing,
            listing,
            now=_now(),
            next_at=_now() + timedelta(seconds=delay),
            reason=str(error),
            attempts=listing.attempts + 1,
        )


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _PART] for start in range(0, len(items), _PART))


def _has_changed(known: SourceRepository | None, listed: ListedRepository) -> bool:
    if known is None or known.state == "gone":
        return True
    if known.state == "removed":
        return False
    if not known.is_listed or repository_key(known.url) != repository_key(listed.url):
        return True
    return (listed.default_branch or known.default_branch) != known.default_branch


def _seen(source: str, listed: ListedRepository) -> Seen:
    return Seen(
        source=source,
        repository=listed.id,
        full_name=listed.full_name,
        url=listed.url,
        default_branch=listed.default_branch,
        is_listed=True,
    )


def _now() -> datetime:
    return datetime.now(UTC)
