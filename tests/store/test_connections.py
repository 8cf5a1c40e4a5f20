"""Connections: which may coexist, and what happens to a deleted one's pushes."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, Invalid, NotFound, SettingError
from gateway.store import accept, connections, deliveries, other_repositories, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.deliveries import REPLAYABLE
from gateway.store.other_repositories import OtherRepository
from gateway.store.tables import connections as table
from gateway.store.tables import leases, reconciliations, secrets
from gateway.store.work_queue import Settlement
from testing import records
from testing.records import NOW, A, B, arrival, move

LATER = NOW + timedelta(minutes=1)


def add(database: Database, connection_id: str, *, is_forced: bool = False, **changes: Any) -> str:
    """Connect a repository as the API does; return its name."""
    wanted = records.made(connection_id, **changes)
    with database.writing() as conn:
        kept = connections.add_another(conn, wanted, is_named="name" in changes, is_forced=is_forced)
    return kept.name


def test_a_repository_is_connected_to_a_project_once(database: Database) -> None:
    """By any of its URLs; more often only with force; other projects may connect it freely."""
    assert add(database, "c1") == "acme/digits"
    for url in (
        "https://github.example/acme/digits/",
        "https://GitHub.example/acme/digits.git/",
        "ssh://git@github.example:22/acme/digits",
        "git@github.example:acme/digits.git",
        "git@github.example:/Acme/digits",
    ):
        with pytest.raises(Conflict, match=r"connected to project digits already, as acme/digits \(c1\)"):
            add(database, "c2", url=url)
    assert add(database, "c2", is_forced=True) == "acme/digits (digits)"
    assert add(database, "c3", is_forced=True) == "acme/digits (digits) 2"
    assert add(database, "c4", project="vision") == "acme/digits (vision)"


def test_a_name_is_given_once(database: Database) -> None:
    """Also when it is changed; a deleted connection's name is free, and an old duplicate still works."""
    add(database, "c1", name="digits")
    elsewhere: dict[str, Any] = {"url": "https://github.example/acme/other.git"}
    with pytest.raises(Conflict, match="the name digits is taken, by connection c1"):
        add(database, "c2", name="digits", is_forced=True, **elsewhere)
    add(database, "c2", name="other", **elsewhere)
    with pytest.raises(Conflict, match="taken"), database.writing() as conn:
        connections.change(conn, records.made("c2", name="digits", **elsewhere))
    records.connection(database, "old", name="digits")
    with database.writing() as conn:
        connections.change(conn, records.made("old", name="digits", yaml_path="other.yaml"))
        connections.remove(conn, "c1", now=NOW)
        connections.remove(conn, "old", now=NOW)
        connections.change(conn, records.made("c2", name="digits", **elsewhere))


def test_a_deleted_connection_leaves_nothing_pending(database: Database) -> None:
    """Its pushes end with the reason, and no longer count as waiting; a worker that had them continues."""
    records.connection(database)
    sent = arrival(move(A, B))
    with database.writing() as conn:
        accept.record(conn, [sent])
        Claims(process="p1").claim(conn, owner="w1", now=NOW, until=NOW + timedelta(seconds=60))
        [update] = work_queue.pending(conn, "c1", limit=9)
        connections.remove(conn, "c1", now=NOW)
        work_queue.record_progress(conn, [update], "fetching")
        work_queue.release(conn, "c1", owner="w1", now=NOW)
        backlog = work_queue.backlog(conn)
        [ended] = deliveries.get(conn, sent.id).updates
    assert (backlog.updates, backlog.oldest) == (0, None)
    assert (ended.state, ended.reason, ended.settled_at) == ("failed", "the connection was deleted", NOW)


ELSEWHERE = "https://github.example/acme/{}.git"


def test_a_connection_is_kept_as_it_was_made(database: Database) -> None:
    """Also after each change."""
    made = records.made(
        auth={"header": "X-Token"},
        triggers=[{"name": "train"}],
        repository_id="17",
        networks=("10.0.0.0/8",),
        follows=("main",),
        package_format="zip",
        deploy_key="ssh-ed25519 AAAA",
    )
    later = replace(made, name="new", project="faces", yaml_path="other.yaml", follows=(), updated_at=LATER)
    with database.writing() as conn:
        connections.add(conn, made)
        assert connections.get(conn, "c1") == made
        connections.change(conn, later)
        assert connections.get(conn, "c1") == later


def test_a_new_connection_is_worked_on_and_reconciled_from_the_beginning(database: Database) -> None:
    """Otherwise its pushes would never be fetched."""
    records.connection(database, created_at=LATER)
    with database.reading() as conn:
        assert conn.execute(leases.select()).one().due_at == LATER
        assert work_queue.attempts(conn, "c1") == 0
        assert conn.execute(reconciliations.select()).one().due_at == LATER


def test_a_name_is_made_up_that_nobody_has(database: Database) -> None:
    """However many there are already; characters special to SQL are ordinary in a name."""
    for number in range(4):
        add(database, f"c{number}", url=ELSEWHERE.format(number))
    with database.reading() as conn:
        names = [one.name for one in connections.page(conn, after=None, limit=9)]
    assert names == [
        "acme/digits",
        "acme/digits (digits)",
        "acme/digits (digits) 2",
        "acme/digits (digits) 3",
    ]


def test_the_same_repository_is_found_among_others_of_its_host(database: Database) -> None:
    """Not by its host alone, and not where it was deleted."""
    add(database, "c1")
    add(database, "c2", url=ELSEWHERE.format("other"))
    with database.writing() as conn:
        connections.remove(conn, "c1", now=NOW)
    assert add(database, "c3") == "acme/digits"
    with pytest.raises(Conflict, match=r"\(c3\)"):
        add(database, "c4")


def test_pages_hold_each_connection_once(database: Database) -> None:
    """The oldest first, by id if made at the same time; a deleted one still marks the position."""
    made = {"b": NOW, "a": NOW, "d": LATER, "c": NOW, "e": LATER}
    for name, created_at in made.items():
        records.connection(database, name, name=name, created_at=created_at)

    def page(after: str | None, limit: int = 2, name: str | None = None) -> list[str]:
        with database.reading() as conn:
            return [one.id for one in connections.page(conn, after=after, limit=limit, name=name)]

    assert [page(None), page("b"), page("d"), page("e")] == [["a", "b"], ["c", "d"], ["e"], []]
    assert page(None, limit=9) == ["a", "b", "c", "d", "e"]
    assert [page(None, name="d"), page("d", name="d"), page(None, name="x")] == [["d"], [], []]
    with database.writing() as conn:
        connections.remove(conn, "b", now=NOW)
    assert [page("b"), page(None)] == [["c", "d"], ["a", "c"]]
    with pytest.raises(Invalid):
        page("never")


def test_a_connection_is_found_by_its_id_or_its_name(database: Database) -> None:
    """A deleted one by its id only; several with one name are listed by creation."""
    for name, created_at in (("c2", NOW), ("c1", NOW), ("c0", LATER)):
        records.connection(database, name, created_at=created_at)
    records.connection(database, "c3", name="only")
    with database.writing() as conn:
        assert connections.find(conn, "only") == "c3"
        assert connections.find(conn, "c2") == "c2"
        with pytest.raises(Invalid, match=r"\(c1, c2, c0\)"):
            connections.find(conn, "acme/digits")
        connections.remove(conn, "c3", now=NOW)
        assert connections.find(conn, "c3") == "c3"
        for text in ("only", "never"):
            with pytest.raises(NotFound, match=text):
                connections.find(conn, text)
        with pytest.raises(NotFound):
            connections.get(conn, "c3")
        with pytest.raises(NotFound):
            connections.remove(conn, "c3", now=NOW)


def test_addresses_are_those_of_connections_that_are_not_deleted(database: Database) -> None:
    """By one name of each host, the oldest connection first, which takes precedence."""
    for name, created_at in (("c2", NOW), ("c1", LATER), ("c3", NOW)):
        records.connection(database, name, url="git@github.example:acme/digits.git", created_at=created_at)
    with database.writing() as conn:
        connections.remove(conn, "c3", now=NOW)
        found = connections.addresses(conn)
    assert list(found.items()) == [(name, "github.example/acme/digits") for name in ("c2", "c1")]


def test_a_change_of_a_connection_that_was_deleted_is_refused(database: Database) -> None:
    """The client has not seen the deletion yet."""
    made = records.connection(database)
    with database.writing() as conn:
        connections.remove(conn, "c1", now=NOW)
        with pytest.raises(NotFound):
            connections.change(conn, replace(made, yaml_path="other.yaml"))


def test_a_deleted_connections_secrets_are_forgotten(database: Database, keyring: Keyring) -> None:
    """Those of its webhook and of its remote, at once."""
    for name in ("c0", "c1", "c2"):
        records.connection(database, name)
        with database.writing() as conn:
            connections.add_secret(conn, keyring, name, b"hook", now=NOW)
            connections.keep_credentials(conn, keyring, name, b"token")
    with database.writing() as conn:
        connections.remove(conn, "c1", now=LATER)
        assert connections.live_secrets(conn, keyring, "c1") == []
        assert connections.credentials(conn, keyring, "c1") is None
        for name in ("c0", "c2"):
            assert [one.value for one in connections.live_secrets(conn, keyring, name)] == [b"hook"]
            assert connections.credentials(conn, keyring, name) == b"token"
            assert connections.get(conn, name).has_credentials
        row = conn.execute(table.select().where(table.c.id == "c1")).one()
    assert (row.deleted_at, row.updated_at) == (LATER, LATER)


def test_credentials_can_be_taken_away(database: Database, keyring: Keyring) -> None:
    """A repository that became public needs none."""
    records.connection(database)
    with database.writing() as conn:
        assert connections.credentials(conn, keyring, "c1") is None
        connections.keep_credentials(conn, keyring, "c1", b"")
        assert connections.credentials(conn, keyring, "c1") == b""
        connections.keep_credentials(conn, keyring, "c1", None)
        assert connections.credentials(conn, keyring, "c1") is None
        assert not connections.get(conn, "c1").has_credentials


def test_the_two_newest_secrets_are_live(database: Database, keyring: Keyring) -> None:
    """The newest first, with their dates; older ones are deleted."""
    for name in ("c0", "c1", "c2"):
        records.connection(database, name)
    times = [NOW, LATER, LATER + timedelta(minutes=1)]
    with database.writing() as conn:
        for number, now in enumerate(times):
            for name in ("c0", "c1", "c2"):
                connections.add_secret(conn, keyring, name, f"{name} {number}".encode(), now=now)
            live = connections.live_secrets(conn, keyring, "c1")
            expected = [f"c1 {one}".encode() for one in range(number, max(-1, number - 2), -1)]
            assert [one.value for one in live] == expected
        dates = connections.secret_dates(conn, ["c1", "c2", "none"])
        kept = conn.execute(secrets.select().where(secrets.c.connection == "c1")).all()
    assert {name: [one.created_at for one in found] for name, found in dates.items()} == {
        "c1": times[:0:-1],
        "c2": times[:0:-1],
        "none": [],
    }
    assert len(kept) == 2


def test_a_secret_that_another_key_sealed_is_passed_over(database: Database, keyring: Keyring) -> None:
    """A rotation of the secret repairs the connection; until then, the error names the reason."""
    records.connection(database)
    with database.writing() as conn:
        connections.add_secret(conn, Keyring("o" * 32), "c1", b"old", now=NOW)
        with pytest.raises(SettingError):
            connections.live_secrets(conn, keyring, "c1")
        connections.add_secret(conn, keyring, "c1", b"new", now=NOW)
        assert [one.value for one in connections.live_secrets(conn, keyring, "c1")] == [b"new"]


def test_every_sealed_value_is_rewrapped(database: Database) -> None:
    """Webhook secrets and credentials, those of each connection under its own id."""
    old, both, new = Keyring("o" * 32), Keyring("n" * 32, "o" * 32), Keyring("n" * 32)
    for name in ("c2", "c0", "c1", "c3"):
        records.connection(database, name)
        with database.writing() as conn:
            connections.add_secret(conn, old, name, f"hook of {name}".encode(), now=NOW)
            if name != "c0":
                connections.keep_credentials(conn, old, name, f"token of {name}".encode())
    with database.writing() as conn:
        assert connections.rewrap(conn, both) == 7
        for name in ("c0", "c1", "c2", "c3"):
            [secret] = connections.live_secrets(conn, new, name)
            assert secret.value == f"hook of {name}".encode()
        for name in ("c1", "c2", "c3"):
            assert connections.credentials(conn, new, name) == f"token of {name}".encode()


def test_a_name_is_taken_whoever_has_it(database: Database) -> None:
    """Whether by an older or a newer connection; each may keep its own name."""
    for name in ("c1", "c2", "c3"):
        records.connection(database, name, name=name)
    for taken in ("c1", "c3"):
        with pytest.raises(Conflict, match=f"by connection {taken}"), database.writing() as conn:
            connections.change(conn, records.made("c2", name=taken))
    with database.writing() as conn:
        connections.change(conn, records.made("c2", name="new"))
        connections.change(conn, records.made("c2", name="c2"))
        assert connections.get(conn, "c2").name == "c2"


def test_what_had_ended_stays_as_it_was_when_its_connection_is_deleted(database: Database) -> None:
    """The history of its pushes can still be looked up."""
    records.connection(database)
    with database.writing() as conn:
        for number in range(3):
            sent = arrival(move(A, B, f"refs/heads/{number}"), id=f"d{number}")
            accept.record(conn, [sent])
        Claims(process="p1").claim(conn, owner="w1", now=NOW, until=LATER)
        updates = work_queue.pending(conn, "c1", limit=9)
        settled = [
            Settlement(update=update, state=state, reason="so it is")
            for update, state in zip(updates, REPLAYABLE, strict=True)
        ]
        work_queue.settle(conn, "c1", settled, owner="w1", now=NOW)
        connections.remove(conn, "c1", now=LATER)
        found = [deliveries.get(conn, f"d{number}").updates[0] for number in range(3)]
    assert [(one.state, one.reason, one.settled_at) for one in found] == [
        (state, "so it is", NOW) for state in REPLAYABLE
    ]


OTHER = OtherRepository(id="18", name="acme/digits", delivery="d1", refs={"refs/heads/main": B})


@pytest.mark.parametrize(
    ("refs", "shown", "is_learned"),
    [
        ({"main": B}, {"main": B, "topic": A}, True),
        ({"main": B, "gone": None}, {"main": B, "gone": None}, True),
        ({"main": B, "topic": A}, {"main": B}, False),
        ({"main": B, "topic": A}, {"main": A, "topic": A}, False),
        ({"gone": None}, {}, False),
        ({}, {"main": B}, False),
    ],
    ids=["all", "deleted", "one is missing", "one differs", "not shown", "nothing reported"],
)
def test_a_repository_is_replaced_if_the_remote_confirms_all_refs(
    database: Database, refs: dict[str, str | None], shown: dict[str, str | None], *, is_learned: bool
) -> None:
    """A delivery of another repository with some of the same refs is not enough."""
    records.connection(database, repository_id="17")
    other = replace(OTHER, refs=refs)
    with database.writing() as conn:
        other_repositories.relearn(conn, "c1", shown)
        assert connections.get(conn, "c1").repository_id == "17"
        other_repositories.claim(conn, "c1", other)
        assert connections.get(conn, "c1").other_repository == other
        other_repositories.relearn(conn, "c1", shown)
        found = connections.get(conn, "c1")
    expected = ("18", None) if is_learned else ("17", other)
    assert (found.repository_id, found.other_repository) == expected


def test_a_repository_can_be_forgotten(database: Database) -> None:
    """The next delivery with our address teaches it; a deleted connection has none."""
    records.connection(database, repository_id="17")
    with database.writing() as conn:
        other_repositories.claim(conn, "c1", OTHER)
        other_repositories.forget(conn, "c1")
        found = connections.get(conn, "c1")
        assert (found.repository_id, found.other_repository) == (None, None)
        connections.remove(conn, "c1", now=NOW)
        with pytest.raises(NotFound):
            other_repositories.forget(conn, "c1")


OF_ONE: dict[str, Callable[[sqlalchemy.Connection, Keyring], object]] = {
    "change": lambda t, _: connections.change(t, records.made("c1", name="new", repository_id="17")),
    "remove": lambda t, _: connections.remove(t, "c1", now=LATER),
    "claim": lambda t, _: other_repositories.claim(t, "c1", replace(OTHER, id="19")),
    "relearn": lambda t, _: other_repositories.relearn(t, "c1", OTHER.refs),
    "forget": lambda t, _: other_repositories.forget(t, "c1"),
    "credentials": lambda t, keyring: connections.keep_credentials(t, keyring, "c1", b"new"),
    "secret": lambda t, keyring: connections.add_secret(t, keyring, "c1", b"new", now=LATER),
}


@pytest.mark.parametrize("what", OF_ONE)
def test_what_is_done_with_a_connection_leaves_all_others_alone(
    database: Database, keyring: Keyring, what: str
) -> None:
    """Secrets, credentials, pending pushes, and the repositories' ids."""
    for name in ("c0", "c1", "c2"):
        records.connection(database, name, repository_id=f"of {name}")
        with database.writing() as conn:
            accept.record(conn, [arrival(move(A, B), connection=name)])
            other = OTHER if name == "c1" else replace(OTHER, refs={})
            other_repositories.claim(conn, name, other)
            connections.keep_credentials(conn, keyring, name, b"token")
            for number in range(2):
                connections.add_secret(conn, keyring, name, b"%d" % number, now=NOW)
    with database.writing() as conn:
        before = records.rows_of_others(conn, "c1"), records.rows_of_others(conn, "")
        OF_ONE[what](conn, keyring)
        assert records.rows_of_others(conn, "c1") == before[0]
        assert records.rows_of_others(conn, "") != before[1]


def test_a_name_is_free_however_many_are_taken(database: Database) -> None:
    """Many projects may have the same repository, and projects of one name may be on several platforms."""
    with database.writing() as conn:
        for number in range(50):
            same = records.made(
                f"c{number}", repository_id=str(number), url=f"https://git{number}.example/acme/digits"
            )
            named = connections.add_another(conn, same, is_named=False, is_forced=False)
    assert named.name == "acme/digits (digits) 49"
