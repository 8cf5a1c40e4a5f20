"""Packages of a running gateway: made with a request, fetched by runners, refused with a reason."""

import gzip
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from gateway.store.database import Database
from gateway.store.tables import leases, packages
from testing.git_host import GitHost, WorkTree
from testing.object_store import S3
from testing.packing import add_submodule
from testing.service import ADMIN_TOKEN, Project, Service, wait_for

TRAIN = {"train.py": "print(2)\n", "notes.txt": "not for runners\n", ".vhignore": "*.txt\n"}
BEARER = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


def push(service: Service, project: Project, connection: Any, files: dict[str, str] = TRAIN) -> Any:
    """Push, deliver, and return the settled ref update."""
    before = project.tree.head()
    pushed = project.push("Another model", files)
    _, answer = service.deliver(connection, project.payload(before, pushed))
    return service.settled(answer["delivery"])["updates"][0]


def message(service: Service) -> Any:
    """Return the newest request."""
    return service.api.get("/executions")["items"][0]["message"]


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    """Send a GET as any HTTP client does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)  # noqa: S310 - on loopback
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - on loopback
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def names(content: bytes) -> list[str]:
    """Return the names in a package."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        return archive.getnames()


def test_a_request_names_its_package(service: Service, project: Project) -> None:
    """A runner needs nothing but the message: URL, digests, and the code behind it."""
    connection = service.connect(project.url, "train@main")
    assert push(service, project, connection)["reason"] == "1 execution request"
    package = message(service)["package"]
    status, headers, content = get(package["url"])
    assert (status, headers["content-type"], len(content)) == (200, "application/gzip", package["size"])
    assert hashlib.sha256(content).hexdigest() == package["sha256"]
    assert hashlib.sha256(gzip.decompress(content)).hexdigest() == package["id"]
    assert package["format"] == "tar.gz"
    assert names(content) == [".vhignore", "train.py", "valohai.yaml"]


def test_a_package_has_the_valohai_yaml_even_if_vhignore_excludes_it(
    service: Service, project: Project
) -> None:
    """A runner that reads it finds it at the request's `yaml_path`."""
    connection = service.connect(project.url, "train@main")
    push(service, project, connection, {"train.py": "print(3)\n", ".vhignore": "*\n"})
    request = message(service)
    _, _, content = get(request["package"]["url"])
    assert names(content) == [request["yaml_path"]] == ["valohai.yaml"]


def test_packages_are_fetched_as_http_has_it(service: Service, project: Project) -> None:
    """Ranges, entity tags, HEAD."""
    push(service, project, service.connect(project.url, "train@main"))
    url = message(service)["package"]["url"]
    _, headers, whole = get(url)
    size, etag = len(whole), headers["etag"]

    def part(value: str, **more: str) -> tuple[int, str | None, bytes]:
        status, headers, content = get(url, Range=value, **more)
        return status, headers["content-range"], content

    assert part("bytes=10-19") == (206, f"bytes 10-19/{size}", whole[10:20])
    assert part("bytes=10-") == (206, f"bytes 10-{size - 1}/{size}", whole[10:])
    assert part("bytes=-5") == (206, f"bytes {size - 5}-{size - 1}/{size}", whole[-5:])
    assert part("bytes=0-999999999") == (206, f"bytes 0-{size - 1}/{size}", whole)
    assert part("bytes=1-2", If_Range=etag) == (206, f"bytes 1-2/{size}", whole[1:3])
    assert part("bytes=1-2", If_Range='"another"') == (200, None, whole)
    assert part("bytes=1-2,4-5") == (200, None, whole)
    assert part(f"bytes={size}-")[:2] == (416, f"bytes */{size}")
    assert part("bytes=-0")[:2] == (416, f"bytes */{size}")
    assert get(url, If_None_Match=etag)[::2] == (304, b"")
    assert get(url, If_None_Match='"another"')[::2] == (200, whole)
    status, headers, content = get(url, "HEAD")
    assert (status, headers["content-length"], headers["etag"], content) == (200, str(size), etag, b"")


def test_only_who_may_gets_a_package(service: Service, project: Project) -> None:
    """By the signature of the URL, or the token of the API."""
    push(service, project, service.connect(project.url, "train@main"))
    package = message(service)["package"]
    plain = f"{service.url}/api/v1/packages/{package['id']}"
    assert get(plain)[0] == 401
    assert get(plain, **BEARER)[0] == 200
    assert get(f"{plain}?format=tar.zst", **BEARER)[0] == 404
    assert get(f"{service.url}/api/v1/packages/none", **BEARER)[0] == 404
    assert get(package["url"].replace("signature=", "signature=0"))[0] == 403
    assert get(package["url"].replace(package["id"], "0" * 64))[0] == 403


def test_a_package_is_built_once(service: Service, project: Project) -> None:
    """The same commit on another branch uses the same package; so does the same tree."""
    connection = service.connect(project.url, "train@main", "train@other")
    push(service, project, connection)
    first = message(service)["package"]
    head = project.tree.head()
    project.tree.push("HEAD:refs/heads/other")
    _, answer = service.deliver(connection, project.payload(None, head, "refs/heads/other"))
    service.settled(answer["delivery"])
    assert message(service)["ref"]["name"] == "other"
    assert message(service)["package"]["id"] == first["id"]
    assert len([line for line in service.log() if line["event"] == "package built"]) == 1


def test_a_lost_file_is_built_again(service: Service, project: Project) -> None:
    """The folder of packages is a cache, and may be emptied."""
    connection = service.connect(project.url, "train@main", "train@other")
    push(service, project, connection)
    [file] = (service.data / "packages").glob("*/*")
    file.unlink()
    assert get(message(service)["package"]["url"])[0] == 404
    head = project.tree.head()
    project.tree.push("HEAD:refs/heads/other")
    _, answer = service.deliver(connection, project.payload(None, head, "refs/heads/other"))
    service.settled(answer["delivery"])
    assert get(message(service)["package"]["url"])[0] == 200


def test_a_connection_may_want_another_format(service: Service, project: Project) -> None:
    """zstd, if the runners support it."""
    connection = service.connect(project.url, "train@main", package_format="tar.zst")
    push(service, project, connection)
    package = message(service)["package"]
    status, headers, content = get(package["url"])
    assert (status, headers["content-type"]) == (200, "application/zstd")
    assert (package["format"], content[:4]) == ("tar.zst", b"\x28\xb5\x2f\xfd")


def test_what_cannot_be_packed_is_a_reason(service: Service, project: Project) -> None:
    """A link that leaves the tree; the next push is served all the same."""
    connection = service.connect(project.url, "train@main")
    (project.tree.folder / "data").symlink_to("/mnt/data")
    ended = push(service, project, connection)
    assert ended["state"] == "failed"
    assert "the link data leads out of the tree, to /mnt/data" in ended["reason"]
    (project.tree.folder / "data").unlink()
    assert push(service, project, connection, {"a": "1"})["state"] == "planned"


def test_submodules_are_named_in_the_request(
    service: Service, project: Project, githost: GitHost, tmp_path: Path
) -> None:
    """With their URLs and commits; a private one is a reason."""
    lib = WorkTree(tmp_path / "lib", githost.create("acme/lib.git"))
    commit = lib.commit("Lib", {"lib.py": "1"})
    lib.push()
    connection = service.connect(project.url, "train@main")
    add_submodule(project.tree, path="lib", url="../lib.git", commit=commit)
    assert push(service, project, connection)["state"] == "planned"
    asked = message(service)
    assert asked["submodules"] == [{"path": "lib", "url": githost.url("acme/lib.git"), "commit": commit}]
    assert "lib/lib.py" in names(get(asked["package"]["url"])[2])
    add_submodule(project.tree, path="more", url="../private.git", commit="d" * 40)
    ended = push(service, project, connection, {"b": "1"})
    assert ended["state"] == "failed"
    assert "submodule more (" in ended["reason"]


def test_warnings_are_shown_with_the_push(service: Service, project: Project) -> None:
    """Where people look first."""
    connection = service.connect(project.url, "train@main")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    ended = push(service, project, connection, {"model.bin": pointer})
    assert ended["state"] == "planned"
    assert ended["reason"].endswith("the package has Git LFS pointers in place of these files: model.bin")


def test_a_bucket_serves_runners_by_itself(tmp_path: Path, project: Project) -> None:
    """The URL is the bucket's own, presigned; the API serves the package as well."""
    with S3() as s3, Service(tmp_path / "data", PACKAGES_URL=s3.bucket("packages", "x")) as service:
        push(service, project, service.connect(project.url, "train@main"))
        package = message(service)["package"]
        assert package["url"].startswith(s3.url)
        status, _, content = get(package["url"])
        assert (status, hashlib.sha256(content).hexdigest()) == (200, package["sha256"])
        plain = f"{service.url}/api/v1/packages/{package['id']}"
        assert get(plain, Range="bytes=3-5", **BEARER)[2] == content[3:6]


def test_a_bucket_that_is_down_is_waited_for(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push shows what it waits for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with Service(tmp_path / "data", PACKAGES_URL="s3://packages") as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Another", TRAIN)
        _, answer = service.deliver(connection, project.payload(project.first, pushed))

        def reason() -> str | None:
            [found] = service.api.get(f"/deliveries/{answer['delivery']}")["updates"]
            return found["reason"] if found["state"] == "pending" else None

        assert "the package cannot be stored" in wait_for(reason, "the push says why it waits")


# Precedes git on PATH: while the file `hold` exists, queries wait once the packing has begun.
WAITING_GIT = """\
#!/bin/sh
here=${0%/*}
PATH=${PATH#*:}
case "$*" in *" cat-file --batch-command --buffer")
    while read -r query; do
        while [ -e "$here/hold" ] && ls "$here"/../data/packing/*.part >/dev/null 2>&1; do sleep 0.02; done
        echo "$query"
    done | git "$@"
    exit ;;
esac
exec git "$@"
"""


def test_a_kill_leaves_no_half_package(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while it is being packed; the next start completes it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").write_text(WAITING_GIT)
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (programs / "hold").touch()
    service = Service(tmp_path / "data")
    with service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", TRAIN)
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        wait_for(lambda: list((service.data / "packing").glob("*.part")), "the packing has begun")
        service.kill()
    (programs / "hold").unlink()
    database = Database(f"sqlite:///{service.data / 'pushgate.db'}")
    assert list((service.data / "packages").glob("*/*.tar.gz")) == []
    with database.writing() as conn:
        assert conn.execute(select(func.count()).select_from(packages)).scalar() == 0
        # As if the lease's minute were over.
        conn.execute(update(leases).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    database.close()
    with service:
        service.settled(answer["delivery"])
        package = message(service)["package"]
        assert hashlib.sha256(get(_here(service, package["url"]))[2]).hexdigest() == package["sha256"]
    assert len(list((service.data / "packages").glob("*/*"))) == 1


def _here(service: Service, url: str) -> str:
    """Return a package's URL with the service's present port."""
    return service.url + url[url.index("/api/") :]
