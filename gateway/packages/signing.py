"""Sign the URL of a request's package: when the request is published, and when it is shown.

A request may wait in the store for weeks, and PUBLIC_URL may change meanwhile, so no URL is stored. The URL
that an earlier version has stored in a request is replaced.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from gateway.crypto.signed_tokens import SignedTokens
from gateway.errors import NotFound, PackageStorageUnavailable, StoreUnavailable, Undeliverable, Unroutable
from gateway.messages.execution_request import Package
from gateway.messages.packages import package_in, with_package
from gateway.packages.storage import MAX_SIGNATURE_AGE, PackageStorage
from gateway.store import packages
from gateway.store.database import Database
from gateway.store.executions import StoredRequest, expired_package
from gateway.store.packages import KeptPackage

# Object stores mostly sign locally. For a role of the machine, credentials are fetched first, and on Azure
# and Google each signature is a request.
_SIGN_SECONDS = 10.0
# So a signature is used again: by the other requests of a commit, and by the relay if the first one was slow.
_REUSED_FOR = timedelta(minutes=1)
_MAX_REUSED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSigner:
    """Signs URLs of packages, which are valid for `valid`; packages expire `keep` after their last use."""

    database: Database
    storage: PackageStorage
    signed_tokens: SignedTokens
    base_url: str
    valid: timedelta
    keep: timedelta
    _presigned: dict[str, tuple[str, datetime]] = field(default_factory=dict)

    async def publishable(self, stored: StoredRequest) -> StoredRequest:
        """Return a request with a URL that downloads its package.

        Raises `Undeliverable` if the package has expired, `Unroutable` if a later try may succeed.
        """
        kept, now = stored.package, _now()
        if kept is None:
            if package_in(stored.body) is None:
                return stored
            raise Undeliverable(expired_package(stored))
        try:
            if now - kept.last_used_at > self.keep / 2:
                # Otherwise it might expire before a runner has downloaded it.
                kept = await self.database.write(packages.touch, kept.id, kept.format, now=now)
            package = await self._signed(kept, stored, now=now)
        except NotFound:
            raise Undeliverable(expired_package(stored)) from None
        except StoreUnavailable as error:
            raise Unroutable(f"the URL of its package cannot be signed: {error}") from error
        return replace(stored, body=with_package(stored.body, package))

    async def shown(self, stored: StoredRequest) -> StoredRequest:
        """Return a request as it was, or will be, published, with a URL that works now.

        If that is not possible, because the package has expired or the storage does not answer, the URL is
        without a signature.
        """
        planned = package_in(stored.body)
        if planned is None:
            return stored
        # To the hour, so that a page which refreshes itself does not change each time.
        now = _now().replace(minute=0, second=0, microsecond=0)
        package = planned.unsigned(self.base_url, now=now)
        if stored.package is not None:
            # A page must not fail because of one of its links.
            with suppress(PackageStorageUnavailable):
                package = await self._signed(stored.package, stored, now=now)
        return replace(stored, body=with_package(stored.body, package))

    async def _signed(self, kept: KeptPackage, stored: StoredRequest, *, now: datetime) -> Package:
        presigned = await self._presign(kept.object, now=now) if self.storage.presigns else None
        if presigned is not None:
            url, signed_at = presigned
            expires_at = signed_at + min(self.valid, MAX_SIGNATURE_AGE)
        else:
            token = self.signed_tokens.issue(packages.subject(kept.id, kept.format), now=now)
            query = f"format={kept.format}&expires={token.expires}&signature={token.signature}"
            url = f"{self.base_url}/api/v1/packages/{kept.id}?{query}"
            expires_at = datetime.fromtimestamp(int(token.expires), UTC)
        return Package(
            id=kept.id,
            url=url,
            expires_at=min(expires_at, kept.last_used_at + self.keep).replace(microsecond=0),
            sha256=kept.sha256,
            size=kept.size,
            format=kept.format,
            rebuilt=kept.made_at > stored.planned_at,
        )

    async def _presign(self, name: str, *, now: datetime) -> tuple[str, datetime] | None:
        """Return the storage's own URL for an object, and when it was signed."""
        known = self._presigned.get(name)
        if known is not None and now - known[1] < _REUSED_FOR:
            return known
        try:
            async with asyncio.timeout(_SIGN_SECONDS):
                url = await self.storage.presign(name, self.valid)
        except TimeoutError as error:
            raise PackageStorageUnavailable("the package storage does not answer") from error
        if url is None:
            return None
        if len(self._presigned) >= _MAX_REUSED:
            self._presigned.clear()
        self._presigned[name] = url, now
        return url, now


def _now() -> datetime:
    return datetime.now(UTC)
