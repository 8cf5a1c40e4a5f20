"""Sources in the store: pages of repositories, and what is left of a deleted source."""

from datetime import timedelta

from gateway.crypto.keyring import Keyring
from gateway.store import registrations, source_repositories, sources
from gateway.store.database import Database
from gateway.store.source_repositories import Seen
from gateway.store.sources import Source
from testing.records import NOW

LATER = NOW + timedelta(minutes=5)
ACME = Source(
    id="5" * 24,
    name="acme",
    provider="github",
    url="https://github.example/acme",
    scope="owner",
    rules=(),
    auth={},
    networks=(),
    identity=None,
    created_at=NOW,
    updated_at=NOW,
)


def seen(repository: str, name: str) -> Seen:
    """Return a repository of the source."""
    url = f"https://github.example/acme/{name}.git"
    return Seen(
        source=ACME.id, repository=repository, full_name=f"acme/{name}", url=url, default_branch="main"
    )


def test_repositories_of_one_name_are_on_one_page_each(database: Database) -> None:
    """A repository that was deleted and made again has another id and the same name."""
    with database.writing() as conn:
        sources.add(conn, ACME)
        found = (seen("2", "digits"), seen("3", "a"), seen("1", "digits"), seen("4", "letters"))
        source_repositories.see(conn, found, now=NOW)
        listed, after = [], None
        while page := source_repositories.page(conn, ACME.id, state="due", after=after, limit=1):
            after = page[0].repository
            listed.append(after)
    assert listed == ["3", "1", "2", "4"]


def test_a_deleted_source_leaves_its_place_for_the_removal_of_its_webhook(
    database: Database, keyring: Keyring
) -> None:
    """A delivery that arrives meanwhile leaves no repository that would be claimed again and again."""
    with database.writing() as conn:
        sources.add(conn, ACME)
        registrations.request(conn, ACME.id, "register", now=NOW)
        sources.remove(conn, ACME.id, now=NOW)
        registrations.request_removal(conn, ACME.id, now=NOW)
        source_repositories.see(conn, [seen("1", "digits")], now=NOW)
        assert source_repositories.claim(conn, now=NOW, until=LATER) is None
        assert source_repositories.counts(conn, [ACME.id]) == {ACME.id: {}}
        assert sources.claim(conn, now=NOW, until=LATER) is None
        claimed = registrations.claim(conn, keyring, now=NOW, until=LATER)
        assert claimed is not None
        assert (claimed.task, claimed.scope, claimed.connection.url) == ("remove", "owner", ACME.url)
