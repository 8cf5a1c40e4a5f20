"""What GitHub sends back with a new App: only what a page of ours has begun, within an hour, and once."""

import asyncio
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from starlette.requests import Request

from gateway.api.sources import Sources
from gateway.crypto.signed_tokens import SignedTokens
from gateway.dashboard.app_pages import AppPages
from gateway.dashboard.rendering import Renderer
from gateway.errors import Conflict, Invalid
from gateway.intake.connection_cache import ConnectionCache
from gateway.store import source_apps, sources
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.source_apps import CODE_VALID
from gateway.store.sources import Source
from tests.intake.local import KEYRING

BASE_URL = "https://gateway.example"


class Browser:
    """A browser on the pages of the App of a source."""

    def __init__(self, database: Database) -> None:
        """Add two sources."""
        self.database = database
        self.pages = AppPages(
            sources=Sources(
                database=database,
                keyring=KEYRING,
                cache=ConnectionCache(database, KEYRING),
                pushes=Notifier(),
                base_url=BASE_URL,
                allow_http=False,
                hosts=(),
            ),
            renderer=Renderer(BASE_URL, KEYRING.session_key()),
        )
        for name in ("acme", "other"):
            source = Source(
                id=name,
                name=name,
                provider="github",
                url=f"https://github.com/{name}",
                scope="owner",
                rules=(),
                auth={},
                networks=(),
                identity=None,
                created_at=datetime.now(UTC),
                updated_at=datetime.now(UTC),
            )
            with database.writing() as conn:
                sources.add(conn, source)

    def state(self, source: str = "acme") -> str:
        """Return the state that the page of a source gives to GitHub."""
        shown = asyncio.run(self.pages.show(_request(source))).body
        [address, of_user] = re.findall(r'action="(https://github\.com/[^"]+)"', bytes(shown).decode())
        assert address.startswith(f"https://github.com/organizations/{source}/settings/apps/new?state=")
        assert of_user.startswith("https://github.com/settings/apps/new?state=")
        return str(parse_qs(urlsplit(address).query)["state"][0])

    def returns(self, state: str, code: str = "c0de", source: str = "acme") -> str:
        """Come back from GitHub; return where the browser is sent."""
        answer = asyncio.run(self.pages.created(_request(source, state=state, code=code)))
        return str(answer.headers["location"])

    def exchange(self, source: str = "acme") -> Any:
        """Return what is known of the code of a source."""
        with self.database.reading() as conn:
            return source_apps.of(conn, [source]).get(source)


def _request(source: str, **query: str) -> Request:
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "path_params": {"id": source},
            "query_string": urlencode(query).encode(),
            "headers": [],
        }
    )


@pytest.fixture
def browser(migrated: Path, tmp_path: Path) -> Any:
    """Return a browser on a new database."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield Browser(database)
    database.close()


def test_a_state_is_accepted_once(browser: Browser) -> None:
    """Also if two pages were open; the next page has another state."""
    state, twin = browser.state(), browser.state()
    assert browser.returns(state) == "/sources/acme/app"
    assert browser.exchange().is_pending
    for used in (state, twin):
        with pytest.raises(Conflict, match="was used already"):
            browser.returns(used, "another")
    with browser.database.writing() as conn:
        claimed = source_apps.claim(conn, KEYRING, now=datetime.now(UTC), until=datetime.now(UTC))
        assert claimed is not None
        assert (claimed.code, "c0de" in repr(claimed)) == ("c0de", False)
        source_apps.fail(conn, claimed, reason="GitHub said no")
    assert browser.exchange().reason == "GitHub said no"
    assert browser.returns(browser.state()) == "/sources/acme/app"


def test_what_was_not_requested_here_is_refused(browser: Browser) -> None:
    """A forged, old or foreign state, and a code that cannot be one."""
    of_round, expires, signature = browser.state().split(".")
    now = datetime.now(UTC)
    old = SignedTokens(KEYRING.app_state_key(), valid=CODE_VALID).issue(
        "App of acme\n0", now=now - timedelta(hours=1, seconds=1)
    )
    session = SignedTokens(KEYRING.session_key(), valid=CODE_VALID).issue("App of acme\n0", now=now)
    for state in (
        "",
        "0",
        f"{of_round}.{int(expires) + 1}.{signature}",
        f"1.{expires}.{signature}",
        f"{of_round}.{expires}.{signature[:-1]}",
        f"0.{old.expires}.{old.signature}",
        f"0.{session.expires}.{session.signature}",
        browser.state("other"),
    ):
        with pytest.raises(Invalid, match="is older than an hour, or was not requested here"):
            browser.returns(state)
    for code in ("", "c" * 256, "c\n", "é"):
        with pytest.raises(Invalid):
            browser.returns(browser.state(), code)
    assert browser.exchange() is None
