"""A worker that is cancelled, or that the store fails, gives back what it has claimed."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.worker.polling import work_on


class Claims:
    """Claims that are committed when `committing` is set; it records the work and what is given back."""

    def __init__(self, found: str | None, *, failure: Exception | None = None, away: bool = False) -> None:
        """Find this, or fail; giving back fails where the store is `away`."""
        self.found, self.failure, self.away = found, failure, away
        self.begun, self.committing, self.working = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.given_back: list[str] = []

    async def claim(self) -> str | None:
        """Claim, or fail."""
        self.begun.set()
        await self.committing.wait()
        if self.failure is not None:
            raise self.failure
        return self.found

    async def work(self, _claimed: str) -> None:
        """Work without an end."""
        self.working.set()
        await asyncio.Event().wait()

    async def give_back(self, claimed: str) -> None:
        """Record what is given back."""
        self.given_back.append(claimed)
        if self.away:
            raise StoreUnavailable("the database does not answer")


async def cancelled(claims: Claims, *, at_work: bool) -> None:
    """Cancel the work, or the claim before it is committed."""
    task = asyncio.create_task(work_on(claims.claim(), claims.work, claims.give_back))
    await claims.begun.wait()
    if at_work:
        claims.committing.set()
        await claims.working.wait()
    task.cancel()
    await asyncio.sleep(0)
    claims.committing.set()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("at_work", [True, False])
@pytest.mark.parametrize("away", [True, False])
def test_a_cancelled_worker_gives_back_its_claim(*, at_work: bool, away: bool) -> None:
    """Also a claim whose transaction is under way; without the store, it is left to expire."""

    async def scenario() -> None:
        claims = Claims("c1", away=away)
        await cancelled(claims, at_work=at_work)
        assert claims.given_back == ["c1"]

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [one["event"] for one in logs] == ["a claim is left to expire"] * away


@pytest.mark.parametrize("failure", [None, StoreUnavailable("away"), ValueError("a bug")])
def test_without_a_claim_there_is_nothing_to_give_back(failure: Exception | None) -> None:
    """Whether nothing was due or the claim has failed, the cancellation ends the worker."""

    async def scenario() -> None:
        claims = Claims(None, failure=failure)
        await cancelled(claims, at_work=False)
        assert claims.given_back == []

    asyncio.run(scenario())


def test_work_that_the_store_fails_is_given_back_once_the_store_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As during a failover. Others would have to wait until the claim expires."""
    monkeypatch.setattr("gateway.worker.polling.POLL_SECONDS", 0.0)
    claims = Claims("c1", away=True)
    claims.committing.set()

    async def work(_claimed: str) -> None:
        raise StoreUnavailable("the database does not answer")

    async def give_back(claimed: str) -> None:
        claims.away = len(claims.given_back) < 2
        await claims.give_back(claimed)

    with pytest.raises(StoreUnavailable):
        asyncio.run(work_on(claims.claim(), work, give_back))
    assert claims.given_back == ["c1"] * 3
