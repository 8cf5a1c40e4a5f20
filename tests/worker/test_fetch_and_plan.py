"""The worker's stages, with mirrors, a reader and packages of the tests."""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import (
    FetchError,
    Gone,
    LocalFailure,
    ObjectUnusable,
    RemoteUnavailable,
    SettingError,
)
from gateway.fetch.commit import Base, Commit, Paths
from gateway.fetch.credentials import Remote
from gateway.fetch.mirror import Wanted
from gateway.fetch.process import GitFailed, GitTimedOut, LimitReached
from gateway.messages.execution_request import MAX_REQUEST_BYTES, Package
from gateway.packages.archive import Ready
from gateway.provider_apis.sign_in import SignIn
from gateway.store.connections import Connection
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.announcer import Announcer
from gateway.worker.fetch_and_plan import FetchAndPlan
from gateway.worker.plan_inputs import unpack
from gateway.worker.remotes import Remotes
from testing.records import NOW, A, B, C, made
from tests.plan.facts import COMMIT, MANIFEST

PUSH = PendingUpdate(
    seq=1,
    connection="c1",
    delivery="d1",
    ref="refs/heads/main",
    kind="branch",
    name="main",
    before=A,
    after=B,
    action="update",
    generation=1,
    pusher="ada",
    repository={"full_name": "acme/digits", "default_branch": "main"},
    pull_request=None,
    tries=0,
    received_at=NOW,
)
TRAIN = {"name": "train", "run": {"step": "train"}}
REMOTE = Remote(url="https://github.example/acme/digits.git", credentials=None, host_keys=None)


def commit(commit_id: str = B, **changes: Any) -> Commit:
    """Return a commit as git stores it."""
    values: dict[str, Any] = {
        "id": commit_id,
        "parents": (A,),
        "author": COMMIT.author,
        "committer": COMMIT.author,
        "committed_at": COMMIT.committed_at,
        "message": COMMIT.message,
        "paths": None,
        "manifest": MANIFEST,
        "manifest_size": len(MANIFEST),
        "signature": "unknown",
        **changes,
    }
    return Commit(**values)


@dataclass
class Rooms:
    """Mirrors, a reader and packages that return what the test sets, and record their calls."""

    shown: Commit = field(default_factory=commit)
    fails: Exception | None = None
    package_fails: Exception | None = None
    failed: dict[str, FetchError] = field(default_factory=dict)
    is_contained: bool = True
    warnings: tuple[str, ...] = ()
    wanted: list[Wanted] = field(default_factory=list)
    bases: list[Base | None] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    believed: list[Wanted] = field(default_factory=list)

    def path(self, connection: str) -> Path:
        """See `Mirrors.path`."""
        return Path(connection)

    async def update(self, *, wanted: Sequence[Wanted], **_asked: Any) -> dict[str, FetchError]:
        """See `Mirrors.update`."""
        if self.fails is not None:
            raise self.fails
        self.wanted += wanted
        return self.failed

    async def discard(self, connection: str) -> None:
        """See `Mirrors.discard`."""
        self.discarded.append(connection)

    async def contains(self, *, wanted: Wanted, **_asked: Any) -> bool:
        """See `Mirrors.contains`."""
        self.believed.append(wanted)
        return self.is_contained

    async def default_branch(self, _remote: Remote) -> str:
        """See `Mirrors.default_branch`."""
        return "trunk"

    async def read(self, _path: Path, *, paths_since: Base | None, **_asked: Any) -> Commit:
        """See `CommitReader.read`."""
        if self.fails is not None:
            raise self.fails
        self.bases.append(paths_since)
        return self.shown

    async def ready(self, _connection: Connection, _commit: str, _remote: Remote) -> Ready:
        """See `Packages.ready`."""
        if self.package_fails is not None:
            raise self.package_fails
        package = Package(
            id="p1", url="https://push.example/p1", expires_at=NOW, sha256="0" * 64, size=1, format="tar.gz"
        )
        return Ready(package=package, submodules=(), warnings=self.warnings)

    async def of_submodule(self, _connection: Connection, _url: str) -> Remote:
        """See `Remotes.of_submodule`."""
        return REMOTE

    async def of(self, _connection: Connection) -> Remote:
        """See `Remotes.of`."""
        return REMOTE

    @asynccontextmanager
    async def opened(self, _connection: Connection) -> AsyncIterator[Remote]:
        """See `Remotes.opened`."""
        yield REMOTE


def steps(rooms: Rooms) -> FetchAndPlan:
    """Return stages that use these fakes."""
    anything: Any = rooms
    return FetchAndPlan(
        mirrors=anything,
        remotes=anything,
        reader=anything,
        packages=anything,
        max_request_bytes=MAX_REQUEST_BYTES,
    )


def planned(
    rooms: Rooms, update: PendingUpdate = PUSH, *triggers: dict[str, Any], **changes: Any
) -> Settlement:
    """Plan a ref update."""
    connection = made(triggers=list(triggers or [TRAIN]), **changes)
    return asyncio.run(steps(rooms).plan(connection, update))


def fetched(rooms: Rooms) -> object:
    """Fetch a push."""
    return asyncio.run(steps(rooms).fetch(made(), [PUSH], lambda _progress: None))


def test_what_is_asked_for_is_what_was_pushed() -> None:
    """A deletion fetches nothing; failures are returned by update."""
    refused = ObjectUnusable("git refuses it")
    rooms = Rooms(failed={C: refused})
    updates = [
        PUSH,
        replace(PUSH, seq=2, ref="refs/heads/old", after=None),
        replace(PUSH, seq=3, ref="refs/heads/bad", after=C),
        replace(PUSH, seq=4, ref="refs/heads/worse", after=C),
    ]
    found = asyncio.run(steps(rooms).fetch(made(), updates, lambda _progress: None))
    assert [(one.ref, one.id) for one in rooms.wanted] == [
        ("refs/heads/main", B),
        ("refs/heads/bad", C),
        ("refs/heads/worse", C),
    ]
    assert found == {3: refused, 4: refused}


def test_a_request_over_the_operators_limit_is_a_failure() -> None:
    """The reason has both numbers."""
    limited = replace(steps(Rooms()), max_request_bytes=100)
    found = asyncio.run(limited.plan(made(triggers=[TRAIN]), PUSH))
    assert (found.state, found.requests) == ("failed", ())
    assert re.search(r"the message for step train would have \d+ bytes; at most 100 are sent", found.reason)


@pytest.mark.parametrize("call", [planned, fetched])
def test_a_full_disk_is_no_fault_of_the_remote(call: Callable[[Rooms], object]) -> None:
    """Failures of this machine are reported as such."""
    with pytest.raises(LocalFailure, match="No space left"):
        call(Rooms(fails=OSError(errno.ENOSPC, "No space left on device")))


def test_a_deletion_runs_nothing() -> None:
    """The reason names what was deleted."""
    found = planned(Rooms(), replace(PUSH, after=None))
    assert (found.state, found.reason, found.requests) == (
        "planned",
        "the branch was deleted: nothing runs",
        (),
    )


@pytest.mark.parametrize(
    ("error", "kind", "message", "discarded"),
    [
        (LimitReached("out of memory"), ObjectUnusable, "the commit cannot be read: out of memory", []),
        (GitTimedOut("git hangs"), RemoteUnavailable, "the commit cannot be read: git hangs", []),
        (
            GitFailed("bad object"),
            RemoteUnavailable,
            "the mirror was broken and is fetched again (git: bad object)",
            ["c1"],
        ),
    ],
)
def test_a_mirror_is_thrown_away_only_where_it_is_broken(
    error: Exception, kind: type[Exception], message: str, discarded: list[str]
) -> None:
    """A repository of several GB is not fetched again because git was slow, or exceeded a limit."""
    rooms = Rooms(fails=error)
    with pytest.raises(FetchError) as caught:
        planned(rooms)
    assert (type(caught.value), str(caught.value), rooms.discarded) == (kind, message, discarded)


def test_a_push_becomes_a_request_with_its_package() -> None:
    """And its plan inputs are stored, so that it can be planned again."""
    rooms = Rooms(warnings=("a submodule is missing",))
    found = planned(rooms, PUSH, {**TRAIN, "policy": "latest", "lane": "high"}, {**TRAIN, "name": "second"})
    first, second = found.requests
    assert (first.trigger, first.target, first.lane, first.is_latest_only) == ("train", "train", "high", True)
    assert (second.trigger, second.lane, second.is_latest_only) == ("second", None, False)
    assert first.subject == f"acme/digits@{B}"
    assert b"https://push.example/p1" in first.body
    assert (found.state, found.peeled) == ("planned", None)
    assert found.reason.endswith("; a submodule is missing")
    assert found.facts is not None
    assert unpack(found.facts).commit.paths is None
    assert [one["failure"] for one in found.verdicts] == [None, None]


def test_a_request_without_a_name_of_its_repository_has_the_url() -> None:
    """As with a self-hosted hook."""
    [request] = planned(Rooms(), replace(PUSH, repository={})).requests
    assert request.subject == f"https://github.example/acme/digits.git@{B}"


@pytest.mark.parametrize("commit_id", [A, C])
def test_an_annotated_tag_is_reported_with_its_commit(commit_id: str) -> None:
    """Next to its own id, so that a later delivery with the commit is recognized."""
    tag = replace(PUSH, ref="refs/tags/v1", kind="tag", name="v1")
    assert planned(Rooms(shown=commit(commit_id)), tag).peeled == commit_id


def test_a_push_that_no_trigger_wants_is_planned() -> None:
    """Without a package, and with its plan inputs."""
    rooms = Rooms(package_fails=AssertionError("no package is made"))
    found = planned(rooms, PUSH, {**TRAIN, "branches": ["release"]})
    assert (found.state, found.requests) == ("planned", ())
    assert found.facts is not None


def test_a_commit_that_cannot_be_executed_has_failed() -> None:
    """The reason and the trigger's verdict say what is wrong."""
    found = planned(Rooms(shown=commit(manifest=None, manifest_size=None)))
    assert (found.state, found.requests) == ("failed", ())
    assert [bool(one["failure"]) for one in found.verdicts] == [True]


def test_a_commit_of_which_no_package_can_be_made_has_failed() -> None:
    """Each of its triggers has the reason; no facts are stored for a dry run."""
    found = planned(Rooms(package_fails=ObjectUnusable("a name that no file can have")))
    assert (found.state, found.reason) == ("failed", "a name that no file can have")
    assert [one["failure"] for one in found.verdicts] == ["a name that no file can have"]
    assert (found.facts, found.requests) == (None, ())


WITH_PATHS = {**TRAIN, "paths": ["*.py"]}


def test_paths_are_read_only_where_a_trigger_asks_for_them() -> None:
    """Reading them costs more than all the rest."""
    for trigger, base in ((TRAIN, None), (WITH_PATHS, Base(before=A, default_branch="main"))):
        rooms = Rooms(shown=commit(paths=Paths(names=("train.py",), complete=True)))
        found = planned(rooms, PUSH, trigger)
        assert rooms.bases == [base]
        assert len(found.requests) == 1
        assert found.facts is not None
        kept = unpack(found.facts).commit
        assert (kept.paths, kept.paths_complete) == (("train.py",), True)


NEW_BRANCH: dict[str, Any] = {"repository": {}, "before": None, "action": "create"}


@pytest.mark.parametrize(
    ("changes", "branch"),
    [
        (NEW_BRANCH, "trunk"),
        ({**NEW_BRANCH, "repository": {"default_branch": "main"}}, "main"),
        ({"repository": {}}, None),
        ({**NEW_BRANCH, "kind": "tag"}, None),
    ],
)
def test_the_remote_is_asked_for_its_default_branch_where_a_new_branch_needs_it(
    changes: dict[str, Any], branch: str | None
) -> None:
    """Bitbucket's payloads and reconciliations do not name it."""
    rooms = Rooms()
    planned(rooms, replace(PUSH, **changes), WITH_PATHS)
    assert rooms.bases == [Base(before=changes.get("before", A), default_branch=branch)]


PULL_REQUEST = {"number": "5", "source": "topic", "target": "main", "from_fork": False}


@pytest.mark.parametrize(
    ("pull_request", "ref"), [(None, "refs/heads/main"), (PULL_REQUEST, "refs/heads/topic")]
)
def test_an_unsigned_delivery_is_borne_out_by_the_remote(
    pull_request: dict[str, Any] | None, ref: str
) -> None:
    """If the remote's branch does not contain the commit, the delivery may be forged."""
    update = replace(PUSH, pull_request=pull_request)
    rooms = Rooms()
    planned(rooms, update, provider="gitlab")
    assert [(one.ref, one.id) for one in rooms.believed] == [(ref, B)]
    with pytest.raises(Gone, match=f"the remote's {ref} does not contain {B}"):
        planned(Rooms(is_contained=False), update, provider="gitlab")
    signed = Rooms(is_contained=False)
    planned(signed, update, provider="github")
    assert signed.believed == []


def test_credentials_that_cannot_be_opened_are_a_reason() -> None:
    """Such as with another secret key: the push is retried, with the reason."""

    class Closed:
        async def read(self, _work: object, **_arguments: object) -> bytes:
            raise SettingError("the secret key is another one")

    anything: Any = Closed()
    remotes = Remotes(mirrors=anything, database=anything, keyring=anything, sign_in=SignIn({}))
    with pytest.raises(RemoteUnavailable, match="the secret key is another one"):
        asyncio.run(remotes.of(made()))


def test_only_the_events_that_are_asked_for_are_announced() -> None:
    """A successful and a failed push have different events; a deletion has none."""
    announce = Announcer(names=("push.fetched", "delivery.failed"))
    done = Settlement(update=PUSH, state="planned", reason="nothing runs")
    [event] = announce(made(), done).events
    assert (event.name, event.subject, event.delivery) == ("push.fetched", f"acme/digits@{B}", "d1")
    failed = replace(done, state="failed", update=replace(PUSH, after=None, repository={}))
    [event] = announce(made(), failed).events
    assert (event.name, event.subject) == (
        "delivery.failed",
        "https://github.example/acme/digits.git@main",
    )
    assert Announcer(names=("delivery.failed",))(made(), done).events == ()
    assert announce(made(), replace(done, update=replace(PUSH, after=None))).events == ()
