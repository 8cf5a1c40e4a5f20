"""Places: how many connections of a process, a project and a git host are worked on at once."""

from datetime import timedelta

import pytest

from gateway.store import claims, reconciliations
from gateway.store.claims import MAX_LEASE_AHEAD, Claims, SilentHosts
from gateway.store.database import Database
from testing.records import NOW, connection
from tests.store.claiming import LEASE, SECOND, claim, finish, next_one, push, release


def test_a_project_has_so_many_workers_and_no_more(database: Database) -> None:
    """Across all processes; a lease that ends or expires makes room."""
    for one in ("c1", "c2", "c3"):
        connection(database, one, project="digits")
    connection(database, "other", project="faces")
    push(database, "c1", "c2", "c3", "other")
    here, there = Claims(process="p1", per_project=2), Claims(process="p2", per_project=2)
    held = [claim(database, here), claim(database, there), claim(database, here)]
    assert sorted(str(one) for one in held)[2] == "other"
    assert claim(database, there) is None
    [mine, *_] = [one for one in held if one not in {None, "other"}]
    finish(database, str(mine))
    assert claim(database, there) is not None
    assert claim(database, there) is None
    # All of them die: each lease counts only until it expires.
    assert claim(database, there, NOW + LEASE) is None
    after = NOW + LEASE + SECOND
    assert [claim(database, there, after) is None for _ in range(4)] == [False, False, False, True]


def test_a_git_host_is_asked_by_so_many_workers_and_no_more(database: Database) -> None:
    """By any of its names and in any project; other hosts are contacted meanwhile."""
    urls = {
        "c1": "https://github.com/acme/digits.git",
        "c2": "ssh://git@ssh.github.com:443/acme/faces.git",
        "c3": "git@github.com:acme/words.git",
        "other": "https://git.example/acme/digits.git",
    }
    for name, url in urls.items():
        connection(database, name, url=url, project=name)
    push(database, *urls)
    process = Claims(process="p1", per_host=2)
    held = {claim(database, process) for _ in range(4)}
    assert len(held) == 4
    assert {"other", None} < held


def test_one_more_place_is_for_hosts_that_hold_none(database: Database) -> None:
    """However many connections wait for a host that hangs; each process has such a place."""
    for number in range(6):
        connection(database, f"hangs{number}", url=f"https://hangs.example/acme/{number}.git")
    for one in ("good", "better"):
        connection(database, one, url=f"https://{one}.example/acme/digits.git")
    push(database, *(f"hangs{number}" for number in range(6)))
    process = Claims(process="p1", places=2)
    assert {str(claim(database, process))[:5] for _ in range(2)} == {"hangs"}
    assert claim(database, process) is None
    push(database, "good", "better")
    process.silent.record("https://good.example/acme/digits.git", answers=True, now=NOW)
    process.silent.record("https://better.example/acme/digits.git", answers=True, now=NOW)
    assert {claim(database, process), claim(database, process)} == {"good", "better"}
    assert claim(database, process) is None
    assert str(claim(database, Claims(process="p2", places=1)))[:5] == "hangs"


def test_the_last_place_is_for_hosts_that_answer(database: Database) -> None:
    """However many unknown hosts arrive at once, and hang."""
    for number in range(6):
        connection(database, f"new{number}", url=f"https://new{number}.example/acme/digits.git")
    connection(database, "known", url="https://known.example/acme/digits.git")
    push(database, *(f"new{number}" for number in range(6)))
    process = Claims(process="p1", places=2)
    process.silent.record("https://known.example/acme/digits.git", answers=True, now=NOW)
    held = [claim(database, process) is not None for _ in range(4)]
    assert held == [True, True, True, False]
    push(database, "known")
    assert claim(database, process) == "known"
    # The number of workers of a process.
    assert held.count(True) + 1 == process.places + claims.RESERVED
    finish(database, "known")
    push(database, "known")
    process.silent.record("https://known.example/acme/digits.git", answers=False, now=NOW)
    assert claim(database, process) is None


def test_a_host_that_timed_out_lately_has_one_place_until_it_answers(database: Database) -> None:
    """By any of its names; after a while without a result it counts as answering."""
    for number in range(3):
        connection(database, f"c{number}", url=f"git@ssh.github.com:acme/{number}.git")
    push(database, "c0", "c1", "c2")
    process = Claims(process="p1", places=4)
    process.silent.record("https://github.com/acme/0.git", answers=False, now=NOW)
    first = claim(database, process)
    assert first is not None
    assert claim(database, process) is None
    finish(database, first)
    assert claim(database, process) is not None
    assert claim(database, process) is None
    process.silent.record("https://github.com/acme/0.git", answers=True, now=NOW)
    assert claim(database, process) is not None
    process.silent.record("https://github.com/acme/0.git", answers=False, now=NOW)
    push(database, "c0", "c1", "c2")
    much_later = NOW + timedelta(hours=1)
    assert [claim(database, process, much_later) is not None for _ in range(3)] == [True] * 3


def test_a_silent_host_is_asked_as_others_after_half_an_hour() -> None:
    """It may not have been contacted since; a host that answers is not silent."""
    silent = SilentHosts()
    for host in ("b.example", "a.example", "c.example"):
        silent.record(f"https://{host}/x.git", answers=False, now=NOW)
    silent.record("git@c.example:y.git", answers=True, now=NOW)
    half_an_hour = timedelta(minutes=30)
    assert silent.timed_out(NOW + half_an_hour - SECOND) == ["a.example", "b.example"]
    assert silent.timed_out(NOW + half_an_hour) == []


def test_of_very_many_hosts_those_that_answered_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is part of each claim, so it is bounded; silent hosts are not on it."""
    monkeypatch.setattr(claims, "_MAX_ANSWERING", 2)
    silent = SilentHosts()
    for host in ("a", "b", "a", "c"):
        silent.record(f"https://{host}.example/x.git", answers=True, now=NOW)
    assert silent.answering() == ["a.example", "c.example"]
    silent.record("https://a.example/x.git", answers=False, now=NOW)
    assert silent.answering() == ["c.example"]
    silent.record("https://b.example/x.git", answers=True, now=NOW)
    assert silent.answering() == ["b.example", "c.example"]


def test_a_look_at_a_host_takes_a_place_until_its_lease_ends(database: Database) -> None:
    """It takes no place at another host; a lease set by a wrong clock takes none."""
    connection(database, created_at=NOW - SECOND)
    connection(database, "other", url="https://other.example/acme/digits.git", created_at=NOW + LEASE)
    push(database, "c1")
    end = NOW + MAX_LEASE_AHEAD - SECOND
    with database.writing() as conn:
        assert reconciliations.claim(conn, now=NOW, until=end) is not None

    process = Claims(process="p1", per_host=1)
    found = [next_one(database, process, now) for now in (NOW - SECOND, NOW, end, end + SECOND)]
    assert found == ["c1", None, None, "c1"]
    push(database, "other")
    assert next_one(database, process, end) == "other"


def test_each_process_has_its_own_places(database: Database) -> None:
    """Leases of others do not reduce a process's places, even at the same host."""
    for number in range(6):
        connection(database, f"c{number}")
    push(database, *(f"c{number}" for number in range(6)))
    for name in ("p2", "p1", "p3"):
        process = Claims(process=name, places=1)
        assert [claim(database, process) is not None for _ in range(2)] == [True, False]


def test_a_place_beside_the_usual_ones_is_one(database: Database) -> None:
    """It is for a host that is not known to answer; a third needs a host that answers."""
    for number in range(4):
        connection(database, f"c{number}", url=f"https://{number}.example/acme/digits.git")
    push(database, *(f"c{number}" for number in range(4)))
    process = Claims(process="p1", places=1)
    assert [claim(database, process) is not None for _ in range(3)] == [True, True, False]
    for number in range(4):
        process.silent.record(f"https://{number}.example/x.git", answers=True, now=NOW)
    assert claim(database, process) is not None


def test_a_silent_host_that_another_process_asks_has_a_place_here_as_well(database: Database) -> None:
    """Each process keeps its own list of silent hosts, so it counts only its own leases."""
    for number in range(3):
        connection(database, f"c{number}")
    push(database, "c0", "c1", "c2")
    assert claim(database, Claims(process="p1")) is not None
    here = Claims(process="p2", places=4)
    here.silent.record("https://github.example/x.git", answers=False, now=NOW)
    assert [claim(database, here) is not None for _ in range(2)] == [True, False]


def test_projects_and_hosts_have_their_own_numbers_of_workers(database: Database) -> None:
    """Work for another project, or at another host, does not count."""
    for one in ("a", "b", "c"):
        for number in range(2):
            url = f"https://{one}.example/acme/{number}.git"
            connection(database, f"{one}{number}", project=one, url=url)
    push(database, *(f"{one}{number}" for one in "abc" for number in range(2)))
    by_host, by_project = Claims(process="p1", per_host=1), Claims(process="p1", per_project=1)
    for process in (by_host, by_project):
        held = [claim(database, process) for _ in range(4)]
        assert [one and one[0] for one in held] == ["a", "b", "c", None]
        for name in held[:3]:
            release(database, str(name), NOW)
    with database.writing() as conn:
        looks = [reconciliations.claim(conn, now=NOW, until=NOW + LEASE, per_host=1) for _ in range(4)]
    assert sorted(one.connection[0] for one in looks if one is not None) == ["a", "b", "c"]
    assert claim(database, by_host) is None
