"""Packages as records, their files in a folder and in S3, and their signed URLs for runners."""

import os
import stat
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.crypto.signed_tokens import SignedTokens
from gateway.errors import NotFound, PackageStorageUnavailable, SettingError
from gateway.packages.expiry import Expiry
from gateway.packages.storage import PackageStorage
from gateway.store import packages
from gateway.store.database import Database
from gateway.store.packages import Build, KeptPackage
from testing.object_store import S3, run
from testing.records import NOW, A, B, connection

ID = "1" * 64
PACKAGE = KeptPackage(
    id=ID,
    format="tar.gz",
    object=f"{ID}/{'0' * 16}.tar.gz",
    sha256="2" * 64,
    size=10,
    tar_size=1024,
    files=1,
    warnings=("mind this",),
    made_at=NOW,
    last_used_at=NOW,
)
MODULE = {"path": "lib", "url": "https://host.example/lib.git", "commit": B}
BUILD = Build(connection="c1", commit=A, format="tar.gz", rules="1", submodules=(MODULE,))
DAY = timedelta(days=1)
FAR = NOW + 10_000 * DAY


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PackageStorage]:
    """Return an object storage; all kinds act the same."""
    if request.param == "folder":
        yield PackageStorage((tmp_path / "storage").as_uri())
    else:
        with S3() as s3:
            yield PackageStorage(s3.bucket("packages", "some/folder"))


def find(database: Database, **changes: Any) -> tuple[KeptPackage, Build] | None:
    """Look for the package of the commit."""
    asked = {"connection": "c1", "commit": A, "package_format": "tar.gz", "rules": "1", "now": NOW, **changes}
    with database.writing() as conn:
        return packages.use(conn, **asked)


def keep(database: Database, package: KeptPackage = PACKAGE, build: Build = BUILD) -> KeptPackage:
    """Store a package."""
    with database.writing() as conn:
        return packages.keep(conn, package, build)


def test_a_package_is_found_by_what_it_was_built_from(database: Database) -> None:
    """The commit, the connection, the format and the rules, all four."""
    connection(database)
    assert find(database) is None
    assert keep(database) == PACKAGE
    assert find(database) == (PACKAGE, BUILD)
    for other in ({"commit": B}, {"connection": "c2"}, {"package_format": "tar.zst"}, {"rules": "2"}):
        assert find(database, **other) is None


def test_the_same_package_is_kept_once(database: Database) -> None:
    """Of two builds the first one counts, with its own file; both commits lead to it."""
    connection(database)
    keep(database)
    late = replace(PACKAGE, object=f"{ID}/{'9' * 16}.tar.gz", sha256="3" * 64, last_used_at=NOW + DAY)
    kept = keep(database, late, replace(BUILD, commit=B))
    assert kept == replace(PACKAGE, last_used_at=NOW + DAY)
    assert find(database, now=NOW + DAY) == (kept, BUILD)
    assert find(database, commit=B, now=NOW + DAY) == (kept, replace(BUILD, commit=B))


def test_a_commit_may_get_another_package(database: Database) -> None:
    """With other rules."""
    connection(database)
    keep(database)
    other = replace(PACKAGE, id="4" * 64)
    keep(database, other, replace(BUILD, rules="2"))
    assert find(database) is None
    assert find(database, rules="2") == (other, replace(BUILD, rules="2"))


def test_what_is_used_does_not_expire(database: Database) -> None:
    """Each use restarts its time."""
    connection(database)
    keep(database)
    find(database, now=NOW + 10 * DAY)
    with database.writing() as conn:
        assert packages.expire(conn, before=NOW + 9 * DAY) == []
        [expired] = packages.expire(conn, before=NOW + 11 * DAY)
    assert expired.id == ID
    assert find(database) is None
    with database.reading() as conn, pytest.raises(NotFound, match="packages expire"):
        packages.get(conn, ID, "tar.gz")


# Keys that sort before and after those of the commit's package.
NEIGHBOURS: list[dict[str, Any]] = [
    {"connection": "c0"},
    {"connection": "c2"},
    {"commit": "0" * 40},
    {"commit": "f" * 40},
    {"format": "tar"},
    {"format": "tar.zst"},
]


@pytest.fixture
def neighbours(database: Database) -> list[tuple[KeptPackage, Build]]:
    """Store packages with nearly the same keys as that of the tests."""
    for name in ("c0", "c1", "c2"):
        connection(database, name)
    builds = [replace(BUILD, **changes) for changes in NEIGHBOURS]
    # Packages of a lower and a higher id, and in other formats.
    made = [replace(PACKAGE, id="0" * 64), replace(PACKAGE, id="2" * 64), PACKAGE, PACKAGE]
    made += [replace(PACKAGE, format="tar"), replace(PACKAGE, format="tar.zst")]
    return [(keep(database, package, build), build) for package, build in zip(made, builds, strict=True)]


def kept(
    database: Database, neighbours: list[tuple[KeptPackage, Build]]
) -> list[tuple[KeptPackage, Build] | None]:
    """Return the stored records of these packages."""
    return [
        find(database, connection=build.connection, commit=build.commit, package_format=build.format)
        for _, build in neighbours
    ]


def test_a_package_is_found_by_exactly_what_it_was_built_from(
    database: Database, neighbours: list[tuple[KeptPackage, Build]]
) -> None:
    """Not by nearly equal keys, nor by rules before or after those it was packed with."""
    assert find(database) is None
    assert kept(database, neighbours) == neighbours
    keep(database)
    assert find(database) == (PACKAGE, BUILD)
    assert find(database, rules="0") is None
    assert find(database, rules="2") is None


def test_another_build_of_a_commit_takes_the_place_of_its_own_only(
    database: Database, neighbours: list[tuple[KeptPackage, Build]]
) -> None:
    """The builds of other commits, connections and formats stay."""
    keep(database)
    again = replace(BUILD, rules="2")
    keep(database, PACKAGE, again)
    assert find(database) is None
    assert find(database, rules="2") == (PACKAGE, again)
    assert kept(database, neighbours) == neighbours


def test_only_the_package_that_is_lost_is_forgotten(database: Database) -> None:
    """With all its builds; packages with nearly the same id, and in other formats, stay."""
    connection(database)
    others = [
        (replace(PACKAGE, id="0" * 64), replace(BUILD, commit="0" * 40)),
        (replace(PACKAGE, id="2" * 64), replace(BUILD, commit="f" * 40)),
        (replace(PACKAGE, format="tar"), replace(BUILD, format="tar")),
        (replace(PACKAGE, format="tar.zst"), replace(BUILD, format="tar.zst")),
    ]
    for package, build in [*others, (PACKAGE, BUILD), (PACKAGE, replace(BUILD, commit=B))]:
        keep(database, package, build)
    with database.writing() as conn:
        packages.forget(conn, ID, "tar.gz")
    assert kept(database, others) == others
    assert find(database) is None
    assert find(database, commit=B) is None
    with database.reading() as conn:
        assert {packages.get(conn, one.id, one.format) == one for one, _ in others} == {True}
        with pytest.raises(NotFound):
            packages.get(conn, ID, "tar.gz")


def test_a_use_renews_no_other_package(
    database: Database, neighbours: list[tuple[KeptPackage, Build]]
) -> None:
    """Otherwise a cache would never shrink."""
    keep(database)
    find(database, now=NOW + 10 * DAY)
    with database.writing() as conn:
        expired = packages.expire(conn, before=NOW + DAY)
        left = packages.objects(conn)
    # Two of the neighbours are the same package.
    assert {(one.id, one.format) for one in expired} == {
        (one.id, one.format) for one, _ in neighbours if one != PACKAGE
    }
    assert left == {PACKAGE.object}


def test_a_package_expires_when_its_time_is_over_and_not_before(database: Database) -> None:
    """A package used exactly at the limit is kept."""
    connection(database)
    keep(database)
    with database.writing() as conn:
        assert packages.expire(conn, before=NOW) == []
        assert packages.expire(conn, before=NOW + timedelta(microseconds=1)) == [PACKAGE]
        assert packages.expire(conn, before=FAR) == []


def test_objects_come_back_as_they_went(storage: PackageStorage, tmp_path: Path) -> None:
    """Whole or in part; a missing object is an error."""
    content = bytes(range(256)) * 50_000
    (tmp_path / "file").write_bytes(content)
    run(storage.put("a/b.tar.gz", tmp_path / "file"))
    assert run(storage.size("a/b.tar.gz")) == len(content)
    assert run(read(storage, 0, len(content))) == content
    assert run(read(storage, 1000, 2001)) == content[1000:2001]
    assert run(storage.names(before=FAR)) == ["a/b.tar.gz"]
    assert run(storage.names(before=NOW - 100 * DAY)) == []
    run(storage.delete("a/b.tar.gz"))
    run(storage.delete("a/b.tar.gz"))
    assert run(storage.size("a/b.tar.gz")) is None
    with pytest.raises(NotFound, match="the package's file was deleted"):
        run(read(storage, 0, 1))


def test_a_folder_is_made_for_its_owner_only_and_used_again(tmp_path: Path) -> None:
    """With all its parents; the second start finds the objects of the first."""
    url = (tmp_path / "not yet" / "storage").as_uri()
    (tmp_path / "file").write_bytes(b"content")
    run(PackageStorage(url).put("a/b.tar.gz", tmp_path / "file"))
    folder = tmp_path / "not yet" / "storage"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    again = PackageStorage(url)
    assert run(read(again, 0, 7)) == b"content"
    run(again.delete("a/b.tar.gz"))
    # Nor is there a folder for each package ever stored.
    assert list(folder.iterdir()) == []


def test_what_a_folder_holds_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and its parent folders: a package is recorded only after that."""
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    (tmp_path / "file").write_bytes(b"content")
    run(PackageStorage((tmp_path / "storage").as_uri()).put("a/b.tar.gz", tmp_path / "file"))
    storage = str(tmp_path / "storage")
    assert {f"{storage}/a/b.tar.gz", f"{storage}/a", storage} <= set(synced)


def test_objects_are_large_and_read_in_parts(tmp_path: Path) -> None:
    """Each part follows the last one, up to the requested end."""
    content = bytes(range(251)) * 40_000
    (tmp_path / "file").write_bytes(content)
    storage = PackageStorage((tmp_path / "storage").as_uri())
    run(storage.put("a/b.tar.gz", tmp_path / "file"))
    for start, end in ((0, len(content)), (123, 9_000_001), (4 * 1024 * 1024, len(content)), (5, 6)):
        assert run(read(storage, start, end)) == content[start:end]


def test_what_is_old_is_so_to_the_moment(tmp_path: Path) -> None:
    """Objects by their time of storing, and incomplete files of a killed process."""
    storage = PackageStorage((tmp_path / "storage").as_uri())
    (tmp_path / "file").write_bytes(b"content")
    for number, name in enumerate(("old", "now", "new")):
        run(storage.put(f"a/{name}", tmp_path / "file"))
        half = tmp_path / "storage" / "a" / f"{name}#1"
        half.touch()
        for path in (half, tmp_path / "storage" / "a" / name):
            os.utime(path, (NOW.timestamp(), NOW.timestamp() + number - 1))
    assert run(storage.names(before=NOW)) == ["a/old"]
    run(storage.discard_unfinished(before=NOW))
    left = sorted(path.name for path in (tmp_path / "storage" / "a").iterdir())
    assert left == ["new", "new#1", "now", "now#1", "old"]


def test_a_file_that_is_gone_cannot_be_kept(tmp_path: Path) -> None:
    """It is an outage of the storage, which is retried, not a bug."""
    storage = PackageStorage((tmp_path / "storage").as_uri())
    with pytest.raises(PackageStorageUnavailable, match="the package storage cannot be used"):
        run(storage.put("a", tmp_path / "gone"))


@pytest.mark.parametrize(("days", "seconds"), [(30, 604_800), (7, 604_800), (6, 518_400)])
def test_a_url_of_a_bucket_holds_as_long_as_it_may(
    monkeypatch: pytest.MonkeyPatch, days: int, seconds: int
) -> None:
    """As long as requested, at most for a week, S3's limit."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the tests'")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no secret")
    url = run(PackageStorage("s3://packages/folder").presign("a", days * DAY))
    assert url is not None
    assert f"X-Amz-Expires={seconds}&" in f"{url}&"


def test_a_bucket_that_fails_for_a_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores answer 503 when they are busy; a single one delays no push."""
    answers = [503, 200]

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", "7")
            self.send_header("Last-Modified", "Mon, 23 Nov 2026 09:00:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server, ThreadPoolExecutor(1) as threads:
        serving = threads.submit(server.serve_forever, poll_interval=0.01)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the tests'")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no secret")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            assert run(PackageStorage("s3://packages").size("a")) == 7
        finally:
            server.shutdown()
        serving.result()
    assert answers == []


@pytest.mark.parametrize("url", ["ftp://host/folder", "nonsense", "s3://", "az://container"])
def test_a_url_that_no_store_takes_is_a_wrong_setting(url: str, tmp_path: Path) -> None:
    """Nor is it read as a folder."""
    with pytest.raises(SettingError, match=r"PUSHGATE_PACKAGES_URL cannot be used: .") as refused:
        PackageStorage(url)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_buckets_give_signed_urls(tmp_path: Path) -> None:
    """Signed URLs need no credentials; a folder has none."""
    (tmp_path / "file").write_bytes(b"content")
    with S3() as s3:
        storage = PackageStorage(s3.bucket("packages", "folder"))
        run(storage.put("a", tmp_path / "file"))
        url = run(storage.presign("a", 30 * DAY))
        assert url is not None
        assert "X-Amz-Expires=604800" in url
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - on loopback
            assert answer.read() == b"content"
    assert run(PackageStorage(tmp_path.as_uri()).presign("a", DAY)) is None


def test_a_storage_that_is_out_of_reach_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the credentials that were used."""
    with S3():
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        storage = PackageStorage("s3://packages")
        with pytest.raises(PackageStorageUnavailable, match="the package storage cannot be used") as caught:
            run(storage.size("a"))
    assert "\n" not in str(caught.value)


def test_a_storage_that_cannot_be_is_a_wrong_setting(tmp_path: Path) -> None:
    """At the start of the gateway."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="PUSHGATE_PACKAGES_URL cannot be used"):
        PackageStorage((tmp_path / "file" / "folder").as_uri())


def test_expiry_removes_what_nobody_needs(
    database: Database, storage: PackageStorage, tmp_path: Path
) -> None:
    """Expired packages, and incomplete files of dead processes; nothing else."""
    connection(database)
    now = datetime.now(UTC)
    old = replace(PACKAGE, last_used_at=now)
    kept = replace(PACKAGE, id="5" * 64, object=f"{'5' * 64}/{'0' * 16}.tar.gz", last_used_at=now + 5 * DAY)
    left = f"{'6' * 64}/{'0' * 16}.tar.zst"
    (tmp_path / "file").write_bytes(b"content")
    for name in (old.object, kept.object, left, "somebody/elses.tar.gz"):
        run(storage.put(name, tmp_path / "file"))
    keep(database, old)
    keep(database, kept, replace(BUILD, commit=B))
    (tmp_path / "packing").mkdir()
    (tmp_path / "packing" / "half.part").touch()
    expiry = Expiry(database=database, storage=storage, folder=tmp_path / "packing", keep=30 * DAY)
    run(expiry.run(now + 34 * DAY))
    assert sorted(run(storage.names(before=FAR))) == [kept.object, "somebody/elses.tar.gz"]
    assert list((tmp_path / "packing").iterdir()) == []


def test_a_signed_token_is_valid_for_one_package_and_until_it_expires() -> None:
    """No part of it can be changed."""
    tokens = SignedTokens(b"k" * 32, valid=DAY)
    token = tokens.issue(packages.subject(ID, "tar.gz"), now=NOW)

    def is_valid(
        *, of: str = ID, form: str = "tar.gz", later: timedelta = timedelta(), **changes: str
    ) -> bool:
        return tokens.is_valid(packages.subject(of, form), replace(token, **changes), now=NOW + later)

    assert is_valid()
    assert not is_valid(later=DAY)
    assert not is_valid(expires=str(int(token.expires) + 1))
    assert not is_valid(signature="0" * 64)
    assert not is_valid(signature="ü")
    assert not is_valid(of="2" * 64)
    assert not is_valid(form="tar.zst")
    other = SignedTokens(b"x" * 32, valid=DAY)
    assert not other.is_valid(packages.subject(ID, "tar.gz"), token, now=NOW)


async def read(storage: PackageStorage, start: int, end: int) -> bytes:
    """Read a part of the object."""
    return b"".join([part async for part in await storage.read("a/b.tar.gz", start, end)])
