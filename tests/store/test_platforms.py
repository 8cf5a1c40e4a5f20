"""Platforms that fetch repositories: which is next, with which token, and the record of a fetch."""

from contextlib import ExitStack
from datetime import timedelta

import pytest
import sqlalchemy
from sqlalchemy import select

from gateway.crypto.keyring import Keyring
from gateway.errors import SettingError
from gateway.store import platforms
from gateway.store.database import Database
from gateway.store.platforms import Platform, PlatformFetch
from gateway.store.tables import connections
from testing.records import NOW, connection

TICK = timedelta(microseconds=1)
LEASE = timedelta(minutes=2)
PLATFORM = Platform(url="https://platform.example", project="1")
ALL = ("c0", "c1", "c2")


@pytest.fixture
def named(database: Database, keyring: Keyring) -> Database:
    """Return a store whose connections each have a platform with its own token."""
    for name in ALL:
        connection(database, name)
        with database.writing() as conn:
            platforms.name(conn, keyring, name, PLATFORM, f"token of {name}")
    return database


def make_due(database: Database, *names: str, later: timedelta = timedelta()) -> None:
    """Request fetches by the platforms, so much later than NOW."""
    with database.writing() as conn:
        for name in names:
            platforms.make_due(conn, name, now=NOW + later)


def claim(database: Database, keyring: Keyring, *, later: timedelta = timedelta()) -> PlatformFetch | None:
    """Take a fetch that is due, so much later than NOW."""
    with database.writing() as conn:
        return platforms.claim(conn, keyring, now=NOW + later, until=NOW + later + LEASE)


def claimed(database: Database, keyring: Keyring, *, later: timedelta = timedelta()) -> PlatformFetch:
    """Take the fetch that is due, so much later than NOW."""
    fetch = claim(database, keyring, later=later)
    assert fetch is not None
    return fetch


def record(
    database: Database,
    fetch: PlatformFetch,
    reason: str | None = None,
    *,
    retry_after: timedelta | None = None,
) -> None:
    """Record the result of a fetch that ended at NOW."""
    next_at = None if retry_after is None else NOW + retry_after
    with database.writing() as conn:
        platforms.record(conn, fetch, now=NOW, reason=reason, next_at=next_at)


def of(database: Database, *names: str) -> dict[str, Platform]:
    """Return the stored records of these connections' platforms."""
    with database.reading() as conn:
        return platforms.of(conn, names)


def tokens(conn: sqlalchemy.Connection) -> dict[str, bytes | None]:
    """Return the sealed token of each connection."""
    rows = conn.execute(select(connections.c.id, connections.c.platform_token))
    return {row.id: row.platform_token for row in rows}


def test_only_who_was_asked_fetches_and_once(named: Database, keyring: Keyring) -> None:
    """With the connection's own token; the others fetch for their own pushes."""
    assert claim(named, keyring) is None
    make_due(named, "c1")
    assert claimed(named, keyring) == PlatformFetch(
        connection="c1",
        url="https://platform.example",
        project="1",
        token="token of c1",
        attempts=0,
        due_at=NOW + LEASE,
    )
    assert claim(named, keyring) is None


def test_who_has_waited_longest_is_first(named: Database, keyring: Keyring) -> None:
    """No platform is left out, whatever the order of the connections."""
    for minutes, name in ((-3, "c1"), (-1, "c0"), (-2, "c2")):
        make_due(named, name, later=timedelta(minutes=minutes))
    assert [claimed(named, keyring).connection for _ in range(3)] == ["c1", "c2", "c0"]
    assert claim(named, keyring) is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (timedelta(), True),
        (-TICK, True),
        (TICK, False),
        (timedelta(minutes=20), False),
        (timedelta(minutes=20) + TICK, True),
    ],
)
def test_a_fetch_is_due_from_its_moment_on(
    named: Database, keyring: Keyring, *, after: timedelta, expected: bool
) -> None:
    """A time beyond any delay is due too: a wrong clock must not postpone a fetch for ever."""
    with named.reading() as conn:
        assert not platforms.is_due(conn, now=NOW)
    make_due(named, "c1", later=after)
    with named.reading() as conn:
        assert platforms.is_due(conn, now=NOW) is expected
    assert (claim(named, keyring) is not None) is expected


def test_a_fetch_whose_process_died_is_taken_again(named: Database, keyring: Keyring) -> None:
    """Once its lease is over."""
    make_due(named, "c1")
    claimed(named, keyring)
    assert claim(named, keyring, later=LEASE - TICK) is None
    assert claimed(named, keyring, later=LEASE).connection == "c1"


def test_a_fetch_that_is_given_back_is_due_at_once(named: Database, keyring: Keyring) -> None:
    """It counts as no try. Others, and a fetch that a push requested meanwhile, keep their times."""
    make_due(named, "c0", "c1", "c2")
    fetches = {fetch.connection: fetch for fetch in (claimed(named, keyring) for _ in ALL)}
    make_due(named, "c0", later=2 * LEASE)
    with named.writing() as conn:
        for name in ("c0", "c1"):
            platforms.give_back(conn, fetches[name], now=NOW + TICK)
    assert claim(named, keyring) is None
    again = claimed(named, keyring, later=TICK)
    assert (again.connection, again.attempts) == ("c1", 0)
    record(named, again)
    assert claim(named, keyring, later=TICK) is None
    assert claimed(named, keyring, later=LEASE).connection == "c2"
    assert claimed(named, keyring, later=2 * LEASE).connection == "c0"


def test_failures_are_counted_until_a_fetch_succeeds(named: Database, keyring: Keyring) -> None:
    """The reason is shown meanwhile, and the time of the last fetch is kept."""
    make_due(named, "c0", "c2")
    make_due(named, "c1", later=-timedelta(minutes=1))
    for attempts in range(3):
        fetch = claimed(named, keyring)
        assert (fetch.connection, fetch.attempts) == ("c1", attempts)
        record(named, fetch, "it is away", retry_after=-timedelta(minutes=1))
    assert of(named, "c1")["c1"].reason == "it is away"
    assert of(named, "c1")["c1"].fetched_at is None
    fetch = claimed(named, keyring)
    record(named, fetch, retry_after=-timedelta(minutes=1))
    assert of(named, "c1")["c1"] == Platform(url=PLATFORM.url, project="1", fetched_at=NOW)
    fetch = claimed(named, keyring)
    assert (fetch.connection, fetch.attempts) == ("c1", 0)
    record(named, fetch, "it is away", retry_after=timedelta(minutes=1))
    assert of(named, "c1")["c1"] == Platform(
        url=PLATFORM.url, project="1", fetched_at=NOW, reason="it is away"
    )
    # The others are unchanged: they are due as before, without a reason.
    assert of(named, "c0", "c2") == {"c0": PLATFORM, "c2": PLATFORM}
    assert {claimed(named, keyring).connection for _ in range(2)} == {"c0", "c2"}


def test_a_push_starts_the_count_over(named: Database, keyring: Keyring) -> None:
    """It is a new reason to try, and at once."""
    make_due(named, "c1")
    record(named, claimed(named, keyring), "it is away", retry_after=timedelta(minutes=10))
    assert claim(named, keyring) is None
    make_due(named, "c1")
    assert claimed(named, keyring).attempts == 0


def test_what_is_done_is_not_due_again(named: Database, keyring: Keyring) -> None:
    """Nor is a fetch that must not be retried."""
    make_due(named, "c1")
    record(named, claimed(named, keyring))
    assert claim(named, keyring, later=LEASE) is None
    make_due(named, "c1")
    record(named, claimed(named, keyring), "it refuses us")
    assert claim(named, keyring, later=LEASE) is None


@pytest.mark.parametrize("later", [timedelta(), 2 * LEASE])
def test_a_push_during_a_fetch_asks_for_another_one(
    named: Database, keyring: Keyring, later: timedelta
) -> None:
    """The fetch may not have seen it, whether it ends in time or after its lease."""
    make_due(named, "c1")
    fetch = claimed(named, keyring)
    make_due(named, "c1", later=later)
    record(named, fetch)
    assert claimed(named, keyring, later=later).connection == "c1"


def test_a_platform_that_moves_keeps_its_token(named: Database, keyring: Keyring) -> None:
    """Unless a new one is given; other connections' platforms are unchanged."""
    moved = Platform(url="https://moved.example", project="2")
    for token, expected in ((None, "token of c1"), ("another", "another")):
        with named.writing() as conn:
            platforms.name(conn, keyring, "c1", moved, token)
        make_due(named, "c1")
        fetch = claimed(named, keyring)
        assert (fetch.url, fetch.project, fetch.token) == (moved.url, "2", expected)
    assert of(named, *ALL) == {"c0": PLATFORM, "c1": moved, "c2": PLATFORM}
    make_due(named, "c0", "c2")
    assert {claimed(named, keyring).token for _ in range(2)} == {"token of c0", "token of c2"}


def test_a_platform_that_is_forgotten_leaves_no_token(named: Database, keyring: Keyring) -> None:
    """And gets no more requests; others do."""
    with named.writing() as conn:
        platforms.name(conn, keyring, "c1", None, None)
        sealed = tokens(conn)
    assert sealed.pop("c1") is None
    assert None not in sealed.values()
    assert of(named, *ALL) == {"c0": PLATFORM, "c2": PLATFORM}
    make_due(named, *ALL)
    assert {claimed(named, keyring).connection for _ in range(2)} == {"c0", "c2"}
    assert claim(named, keyring) is None


def test_tokens_are_rewrapped_each_for_its_connection(named: Database, keyring: Keyring) -> None:
    """After that the previous secret key is no longer needed."""
    connection(named, "without")
    with named.writing() as conn:
        assert platforms.rewrap(conn, Keyring("n" * 32, "k" * 32)) == 3
    make_due(named, *ALL)
    with pytest.raises(SettingError):
        claim(named, keyring)
    new = Keyring("n" * 32)
    fetches = [claimed(named, new) for _ in range(3)]
    assert {(one.connection, one.token) for one in fetches} == {(name, f"token of {name}") for name in ALL}


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_two_processes_take_two_fetches(named: Database, keyring: Keyring) -> None:
    """On a server neither waits for the other."""
    make_due(named, "c1", "c2")
    with ExitStack() as stack:
        both = [stack.enter_context(named.writing()) for _ in range(2)]
        both[1].exec_driver_sql("SET LOCAL lock_timeout = 1000")
        found = [platforms.claim(one, keyring, now=NOW, until=NOW + LEASE) for one in both]
    assert {one.connection for one in found if one} == {"c1", "c2"}
