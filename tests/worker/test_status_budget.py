"""Verdicts on the commits of many pushes: GitHub ends with the newest of each, within its limits.

The time is simulated: it passes only while the sender waits.
"""

import asyncio
import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import pytest
from sqlalchemy import func, select

from gateway.crypto.keyring import Keyring
from gateway.messages.execution_status import ExecutionStatus
from gateway.provider_apis import github
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.budget import Budget
from gateway.provider_apis.github_app_sign_in import GitHubApps
from gateway.provider_apis.operation import ApiLimited
from gateway.provider_apis.sign_in import SignIn
from gateway.store import accept, commit_statuses, executions, identities, runs, work_queue
from gateway.store.commit_statuses import Expected, context_of
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.run_tables import commit_statuses as status_rows
from gateway.worker.pauses import Pauses
from gateway.worker.status_sender import StatusSender
from testing import records
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.github_app import FakeGitHubWithApp, Installation, make_key
from testing.provider_apis.github_statuses import SecondaryLimit
from testing.records import NOW, arrival, move
from testing.service import WAIT_SECONDS

KEYRING = Keyring("k" * 32)
TOKEN = "canary-19c4"
CONTEXT = context_of("train")
REPOSITORY = "acme/digits"
# Of pushes, and of reports.
BATCH = 10
# In seconds. A sender that looks seldom sends several at each look, which is quicker to simulate.
LAST_END = 75 + 200 / 2
LOOK = 15
_WRITE = re.compile(r"/(?:statuses/(?P<commit>[0-9a-f]+)|check-runs(?:/(?P<run>\d+))?)$")
_ENDS = {"succeeded": "success", "failed": "failure"}
# In the order in which they are reached.
_WORDS = ("pending", "queued", "in_progress", "success", "failure")


@dataclass(kw_only=True)
class Simulation:
    """A simulated time and what happens in it, which wakes all tasks of the sender.

    While all of them wait, the time moves on to the next event, or to the next look that finds a verdict due.
    """

    database: Database
    now: float = 0.0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _tasks: int = 0
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Let an event happen."""
        heapq.heappush(self._events, (seconds, len(self._events), event))

    def monotonic(self) -> float:
        """Return the seconds since the begin."""
        return self.now

    def time(self) -> datetime:
        """Return the date and time."""
        return NOW + timedelta(seconds=self.now)

    def subscribe(self) -> "Simulation":
        """Count a task of the sender."""
        self._tasks += 1
        return self

    async def wait(self, timeout: float) -> None:  # noqa: ARG002, ASYNC109 - simulated
        """Wait until the time has moved on."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        if len(self._waiting) == self._tasks:
            self._move_on()
        await woken

    def _move_on(self) -> None:
        with self.database.reading() as conn:
            due_at = conn.execute(select(func.min(status_rows.c.due_at))).scalar_one()
        if due_at is None and not self._events:
            self.is_over.set()
            return
        moments = [self._events[0][0]] if self._events else []
        if due_at is not None:
            moments.append(max((due_at - NOW).total_seconds(), self.now + LOOK))
        self.now = min(moments)
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[-1]()
        waiting, self._waiting = self._waiting, []
        for woken in waiting:
            woken.set_result(None)

    async def run(self, sender: StatusSender) -> None:
        """Run the sender until nothing more happens and nothing is due."""
        running = asyncio.create_task(sender.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await self.is_over.wait()
        running.cancel()
        await asyncio.wait([running])


@dataclass(frozen=True, kw_only=True)
class Push:
    """A push, and how its execution ends."""

    number: int
    end: Literal["succeeded", "failed"]

    @property
    def commit(self) -> str:
        """Its commit."""
        return f"{self.number + 1:040x}"

    @property
    def execution(self) -> str:
        """The id of its execution request."""
        return f"train-{self.number}"


@pytest.fixture
def simulation(database: Database) -> Simulation:
    """Return a time that has not begun."""
    return Simulation(database=database)


@pytest.fixture
def fake(simulation: Simulation) -> Iterator[FakeGitHub]:
    """Serve the repository, in the simulated time."""
    limit = SecondaryLimit(clock=simulation.monotonic)
    fake = FakeGitHub(tokens={TOKEN: {REPOSITORY}}, limit=limit)
    with serving(fake):
        yield fake


@pytest.fixture
def app(simulation: Simulation) -> Iterator[tuple[FakeGitHubWithApp, str]]:
    """Serve the repository to an App, in the simulated time; return the key too."""
    key, pem = make_key()
    installation = Installation(7, "acme", [REPOSITORY], {"checks": "write", "metadata": "read"})
    limit = SecondaryLimit(clock=simulation.monotonic)
    fake = FakeGitHubWithApp(key=key, installations=[installation], limit=limit)
    with serving(fake):
        yield fake, pem


def pushed(simulation: Simulation, fake: FakeGitHub, count: int, secret: str, **identity: Any) -> list[Push]:
    """Let pushes come within a minute, whose executions run and end while others are still to be shown.

    Return the pushes once everything was sent.
    """
    database = simulation.database
    apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True), clock=simulation.monotonic)
    settings: dict[str, Any] = {"kind": "token", "settings": {}, **identity}
    bot = Identity(
        id="i1",
        name="bot",
        provider="github",
        user=None,
        api_url=f"{fake.url}/api/v3",
        expires_at=None,
        created_at=NOW,
        updated_at=NOW,
        **settings,
    )
    records.connection(database, url=f"{fake.url}/{REPOSITORY}.git", identity="i1")
    with database.writing() as conn:
        identities.add(conn, KEYRING, bot, secret)
    pushes = [Push(number=number, end="failed" if number % 3 else "succeeded") for number in range(count)]
    batches = [pushes[start : start + BATCH] for start in range(0, count, BATCH)]
    for number, batch in enumerate(batches):
        first = number * 60 / len(batches)
        simulation.at(first, partial(plan, simulation, batch))
    for number in range(0, count, BATCH):
        # Those that were pushed last end first, so that some end before they are shown, others long after.
        running = [(push, "running") for push in pushes[number : number + BATCH]]
        ended = [(push, push.end) for push in pushes[::-1][number : number + BATCH]]
        simulation.at(61 + number / 4, partial(report, simulation, running, 1))
        simulation.at(75 + number / 2, partial(report, simulation, ended, 2))
    sender = StatusSender(
        database=database,
        keyring=KEYRING,
        subscribe=simulation.subscribe,
        apis=apis,
        sign_in=SignIn({"github-app": GitHubApps(apis=apis)}),
        base_url="https://gate.example",
        clock=simulation.time,
        pauses=Pauses(clock=simulation.monotonic),
    )
    asyncio.run(simulation.run(sender))
    return pushes


def plan(simulation: Simulation, batch: Sequence[Push]) -> None:
    """Plan a request for each of some pushes."""
    now = simulation.time()
    with simulation.database.writing() as conn:
        moves = [move(None, push.commit, f"refs/heads/b{push.number}") for push in batch]
        sent = arrival(*moves)
        accept.record(conn, [sent])
        [update] = work_queue.pending(conn, "c1", limit=1)
        requests = [records.request(push.execution, delivery=sent.id, trigger="train") for push in batch]
        executions.add(conn, requests, ref_update=update.seq, now=now)
        expected = [
            Expected(
                commit=push.commit,
                context=CONTEXT,
                ref=f"refs/heads/b{push.number}",
                delivery=sent.id,
                request=push.execution,
            )
            for push in batch
        ]
        commit_statuses.expect(conn, "c1", expected, now=now)


def report(simulation: Simulation, states: Sequence[tuple[Push, Any]], sequence: int) -> None:
    """Record what runners report."""
    now = simulation.time()
    reports = [
        ExecutionStatus(id=push.execution, state=state, at=now, sequence=sequence) for push, state in states
    ]
    with simulation.database.writing() as conn:
        runs.record(conn, reports, now=now)


def words(fake: FakeGitHub) -> Mapping[str, list[str]]:
    """Return the provider's words for the states that were sent for each commit, in order."""
    sent: dict[str, list[str]] = {}
    for request in fake.requests:
        if found := _WRITE.search(request.path):
            assert request.status in {200, 201}, "the limits were exceeded"
            body = json.loads(request.body)
            run = fake.verdicts.check_runs[int(found["run"]) - 1] if found["run"] else body
            word = body.get("state") or body.get("conclusion") or body["status"]
            sent.setdefault(found["commit"] or run["head_sha"], []).append(word)
    return sent


def most_within(seconds: float, moments: Sequence[float]) -> int:
    """Return the highest number of moments in any period."""
    return max(number + 1 - bisect_right(moments, moment - seconds) for number, moment in enumerate(moments))


def earliest(writes: int) -> float:
    """Return after how many seconds so many writes may have been sent, by the limits that we keep."""
    now = 0.0
    budget = Budget(github.REQUESTS_PER_HOUR, write_limits=github.WRITE_LIMITS, clock=lambda: now)
    for _ in range(writes):
        try:
            budget.take(is_write=True)
        except ApiLimited as limited:
            now += limited.seconds + 1e-6
            budget.take(is_write=True)
    return now


def check(fake: FakeGitHub, pushes: Sequence[Push]) -> None:
    """Check what was sent when, and what people see at the end."""
    assert fake.statuses == {(push.commit, CONTEXT): _ENDS[push.end] for push in pushes}
    sent = words(fake)
    for of_commit in sent.values():
        order = [_WORDS.index(word) for word in of_commit]
        assert order == sorted(set(order)), "a state was sent after a newer one, or twice"
    moments = list(fake.limit.writes)
    assert len(moments) == sum(map(len, sent.values())) == fake.status_writes
    assert most_within(60, moments) <= 80
    assert most_within(3600, moments) <= 500
    # Within the limits, nothing waits longer than it must.
    assert moments[-1] <= max(earliest(len(moments)), LAST_END) + 2 * LOOK


def test_200_pushes_within_a_minute_stay_within_the_limits(simulation: Simulation, fake: FakeGitHub) -> None:
    """What was overtaken before it could be sent needs no write."""
    pushes = pushed(simulation, fake, 200, TOKEN)
    check(fake, pushes)
    assert 200 < fake.status_writes < 350


def test_check_runs_of_an_app_stay_within_the_limits(
    simulation: Simulation, app: tuple[FakeGitHubWithApp, str]
) -> None:
    """They show that an execution runs as well."""
    fake, pem = app
    pushes = pushed(simulation, fake, 40, pem, kind="github-app", settings={"app_id": str(fake.app_id)})
    check(fake, pushes)
    assert 40 < fake.status_writes <= 120
