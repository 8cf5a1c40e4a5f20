"""Triggers "Fetch repository" on the platforms of connections after each push.

`POST /api/v0/projects/{uuid}/fetch/` answers 201 with the platform's commits, and with errors: the fetch has
failed if there are any, even though the status is 201.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, build_opener

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.errors import PushgateError
from gateway.http_client import BROKEN_OFF, NoRedirects, reason
from gateway.store import platforms
from gateway.store.database import Database
from gateway.store.notify import Waiter
from gateway.store.platforms import PlatformFetch
from gateway.threads import PLATFORMS
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on

log = structlog.get_logger()

_ANSWER_SECONDS = 120.0
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
_LEASE = timedelta(seconds=180)
_FIRST_DELAY = 2.0
_MAX_DELAY = 900.0
_MAX_TRIES = 20


class PlatformError(PushgateError):
    """The platform did not fetch."""


_opener = build_opener(NoRedirects())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFetcher:
    """Makes platforms fetch what was pushed; any number may run side by side."""

    database: Database
    keyring: Keyring
    wakeups: Waiter

    async def run(self) -> None:
        """Work until cancelled. Record failures on the connection, and retry them."""
        failure = "the platform fetcher failed"
        await poll(self._fetch_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def _fetch_next(self) -> bool:
        return await work_on(self._claim(), self._fetch, self._give_back)

    async def _claim(self) -> PlatformFetch | None:
        return await claim_if_due(
            self.database, platforms.is_due, platforms.claim, lease=_LEASE, keyring=self.keyring
        )

    async def _fetch(self, fetch: PlatformFetch) -> None:
        try:
            commits = await PLATFORMS.run(_request_fetch, fetch)
        except PlatformError as error:
            is_over = fetch.attempts + 1 >= _MAX_TRIES
            delay = backoff(fetch.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
            next_at = None if is_over else _now() + timedelta(seconds=delay)
            log.warning(
                "platform fetch failed",
                connection=fetch.connection,
                reason=str(error),
                next_try_at=next_at.isoformat() if next_at is not None else None,
            )
            record = partial(platforms.record, reason=str(error), next_at=next_at)
        else:
            log.info("platform fetched", connection=fetch.connection, commits=commits)
            record = partial(platforms.record, reason=None, next_at=None)
        await self.database.write(record, fetch=fetch, now=_now())

    async def _give_back(self, fetch: PlatformFetch) -> None:
        await self.database.write(platforms.give_back, fetch, now=_now())


def _request_fetch(fetch: PlatformFetch) -> int:
    """Make the platform fetch; return how many commits it lists. Raises `PlatformError`."""
    url = f"{fetch.url.rstrip('/')}/api/v0/projects/{quote(fetch.project, safe='')}/fetch/"
    headers = {
        "authorization": f"Token {fetch.token}",
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": "pushgate",
    }
    request = Request(url, data=b"{}", headers=headers, method="POST")  # noqa: S310 - the API has checked the URL
    try:
        with _opener.open(request, timeout=_ANSWER_SECONDS) as answer:
            text = answer.read(_MAX_ANSWER_BYTES)
    except HTTPError as error:
        error.close()
        raise PlatformError(
            f"the platform answers {error.code} to the fetch of project {fetch.project}"
        ) from error
    except BROKEN_OFF as error:
        raise PlatformError(f"the platform at {request.host} cannot be reached: {reason(error)}") from error
    except ValueError:
        # Without its cause, which may show the token.
        raise PlatformError("the platform's token has characters that no HTTP header may have") from None
    return _commits_in(text)


def _commits_in(answer: bytes) -> int:
    """Return how many commits the platform's answer lists. Raises `PlatformError`."""
    try:
        answered = json.loads(answer)
    except ValueError as error:
        raise PlatformError("the platform's answer is not JSON: is its URL right?") from error
    if not isinstance(answered, Mapping):
        raise PlatformError("the platform's answer has an unknown format: is its URL right?")
    errors = [str(error) for error in answered.get("errors") or []]
    if errors:
        raise PlatformError(f"the platform could not fetch: {'; '.join(errors)[:500]}")
    return len(answered.get("commits") or [])


def _now() -> datetime:
    return datetime.now(UTC)
