"""The URLs of packages, signed when a request is published or shown."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.errors import Undeliverable, Unroutable
from gateway.messages.packages import PlannedPackage
from gateway.packages.signing import PackageSigner
from gateway.packages.storage import PackageStorage
from gateway.store import packages
from gateway.store.database import Database
from gateway.store.executions import StoredRequest
from gateway.store.packages import Build, KeptPackage
from testing.object_store import S3, run
from testing.records import A, connection
from tests.publish.outbox import request

DAY = timedelta(days=1)
TOKENS = SignedTokens(b"k" * 32, valid=7 * DAY)
ID, FORMAT = "1" * 64, "tar.gz"
PLANNED = PlannedPackage(id=ID, format=FORMAT, sha256="2" * 64, size=10)
OLD_URL = "https://former.example/api/v1/packages/1?format=tar.gz&expires=1&signature=0"


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Return a store with a connection."""
    with closing(Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")) as database:
        connection(database)
        yield database


def signer(database: Database, storage: PackageStorage) -> PackageSigner:
    """Return a signer with the default times."""
    return PackageSigner(
        database=database,
        storage=storage,
        signed_tokens=TOKENS,
        base_url="https://now.example/pushgate",
        valid=7 * DAY,
        keep=90 * DAY,
    )


def kept(database: Database, *, age: timedelta, **changes: Any) -> KeptPackage:
    """Store a package that was built and last used so long ago."""
    at = datetime.now(UTC) - age
    values: dict[str, Any] = {"object": f"{ID}/{'0' * 16}.tar.gz", "sha256": "2" * 64, "size": 10, **changes}
    package = KeptPackage(
        id=ID, format=FORMAT, tar_size=1, files=1, warnings=(), made_at=at, last_used_at=at, **values
    )
    build = Build(connection="c1", commit=A, format=FORMAT, rules="1")
    with database.writing() as conn:
        return packages.keep(conn, package, build)


def stored(package: KeptPackage | None, *, age: timedelta) -> StoredRequest:
    """Return a request that was planned so long ago, with a URL that an earlier version has signed."""
    named = {"id": ID, "url": OLD_URL, "sha256": "2" * 64, "size": 10, "format": FORMAT}
    body = json.dumps({"id": "r1", "package": named, "submodules": []}, separators=(",", ":")).encode()
    return replace(request("r1"), body=body, planned_at=datetime.now(UTC) - age, package=package)


def shown(request: StoredRequest) -> Any:
    """Return the package of a request; nothing else of it has changed."""
    message = json.loads(request.body)
    assert (message["id"], message["submodules"]) == ("r1", [])
    return message["package"]


def test_a_url_is_valid_from_the_moment_of_publishing(database: Database, tmp_path: Path) -> None:
    """At the present PUBLIC_URL, however long ago the request was planned."""
    mine = signer(database, PackageStorage(tmp_path.as_uri()))
    old = stored(kept(database, age=30 * DAY), age=30 * DAY)
    for signed in (run(mine.publishable(old)), run(mine.shown(old))):
        package = shown(signed)
        url = urlsplit(package["url"])
        assert f"{url.scheme}://{url.netloc}{url.path}" == (
            f"https://now.example/pushgate/api/v1/packages/{ID}"
        )
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        token = SignedToken(query["expires"], query["signature"])
        subject = packages.subject(ID, query["format"])
        expires_at = datetime.fromisoformat(package["expires_at"])
        assert TOKENS.is_valid(subject, token, now=expires_at - timedelta(seconds=1))
        assert not TOKENS.is_valid(subject, token, now=expires_at)
        assert 6.9 * DAY < expires_at - datetime.now(UTC) <= 7 * DAY
        assert package["rebuilt"] is False


def test_a_request_without_a_package_needs_no_url(database: Database, tmp_path: Path) -> None:
    """It is published as it was planned."""
    mine = signer(database, PackageStorage(tmp_path.as_uri()))
    plain = replace(stored(None, age=DAY), body=b'{"package":null}')
    assert run(mine.publishable(plain)) is plain
    assert run(mine.shown(plain)) is plain


def test_a_file_that_was_built_again_says_so(database: Database, tmp_path: Path) -> None:
    """Another compressor may have made it: its own digest and size are sent, with the same id."""
    mine = signer(database, PackageStorage(tmp_path.as_uri()))
    again = kept(database, age=DAY, sha256="3" * 64, size=11)
    package = shown(run(mine.publishable(stored(again, age=2 * DAY))))
    assert (package["id"], package["sha256"], package["size"]) == (ID, "3" * 64, 11)
    assert package["rebuilt"] is True


def test_a_package_that_has_expired_cannot_be_published(database: Database, tmp_path: Path) -> None:
    """The reason says what to do; who looks at the request sees a URL that says the same."""
    mine = signer(database, PackageStorage(tmp_path.as_uri()))
    late = stored(None, age=100 * DAY)
    with pytest.raises(Undeliverable, match=r"has expired: replay delivery delivery of r1, which builds"):
        run(mine.publishable(late))
    package = shown(run(mine.shown(late)))
    assert package["url"] == f"https://now.example/pushgate/api/v1/packages/{ID}?format=tar.gz"
    assert datetime.fromisoformat(package["expires_at"]) <= datetime.now(UTC)


def test_a_package_is_kept_for_those_who_are_sent_to_it(database: Database, tmp_path: Path) -> None:
    """If it would soon expire, its time begins again; if it has expired meanwhile, that is the reason."""
    mine = signer(database, PackageStorage(tmp_path.as_uri()))
    nearly = stored(kept(database, age=89 * DAY), age=89 * DAY)
    for _ in range(2):
        expires_at = datetime.fromisoformat(shown(run(mine.publishable(nearly)))["expires_at"])
        assert expires_at - datetime.now(UTC) > 6.9 * DAY
    with database.writing() as conn:
        assert packages.expire(conn, before=datetime.now(UTC) - DAY) == []
        packages.forget(conn, ID, FORMAT)
    with pytest.raises(Undeliverable, match="its package has expired"):
        run(mine.publishable(nearly))


def test_a_url_ends_before_its_package(database: Database, tmp_path: Path) -> None:
    """With a package that is kept for a day, a URL is of no use for a week."""
    mine = replace(signer(database, PackageStorage(tmp_path.as_uri())), keep=DAY)
    package = shown(run(mine.publishable(stored(kept(database, age=timedelta()), age=timedelta()))))
    assert datetime.fromisoformat(package["expires_at"]) - datetime.now(UTC) <= DAY


def test_a_bucket_signs_its_own_urls(database: Database) -> None:
    """Once for all requests of a minute; for a week at most, as long as it may."""
    with S3() as s3:
        mine = replace(signer(database, PackageStorage(s3.bucket("packages", "x"))), valid=30 * DAY)
        old = stored(kept(database, age=30 * DAY), age=30 * DAY)
        first, second = (shown(run(mine.publishable(old))) for _ in range(2))
        assert first["url"].startswith(s3.url)
        assert "X-Amz-Expires=604800" in first["url"]
        assert first == second
        assert 6.9 * DAY < datetime.fromisoformat(first["expires_at"]) - datetime.now(UTC) <= 7 * DAY


def test_a_bucket_that_cannot_sign_is_the_reason_of_its_request(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because the machine's role gives no credentials: it is tried again later."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/nowhere")
    mine = signer(database, PackageStorage("s3://packages"))
    old = stored(kept(database, age=DAY), age=DAY)
    with pytest.raises(Unroutable, match="the URL of its package cannot be signed: the package storage"):
        run(mine.publishable(old))
    assert shown(run(mine.shown(old)))["url"].startswith("https://now.example/pushgate/api/v1/packages/")
