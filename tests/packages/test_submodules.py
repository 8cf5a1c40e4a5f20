"""Private submodules: fetched with their connection's credentials, which no other host gets."""

import json
import tarfile
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest

from gateway.fetch.credentials import Bearer, Login, Remote, make_deploy_key
from gateway.packages.submodules import submodule_remote
from testing.git_host import GitHost, WorkTree
from testing.service import Project, Service
from testing.ssh import SshHost

KEY = make_deploy_key("github", comment="test")
LOGIN = Login(user="ada", password="secret-of-ada")
BEARER = Bearer(token="token-of-ada")
HERE = "https://git.example/acme/digits.git"


@pytest.mark.parametrize(
    ("remote", "url", "opened"),
    [
        (Remote(url=HERE, credentials=LOGIN), "https://git.example/acme/lib.git", True),
        (Remote(url=HERE, credentials=LOGIN), "https://evil.example/acme/lib.git", False),
        (Remote(url=HERE, credentials=BEARER), "https://git.example/acme/lib.git", True),
        (Remote(url=HERE, credentials=BEARER), "https://evil.example/acme/lib.git", False),
        (Remote(url=HERE, credentials=LOGIN), "https://git.example:8443/acme/lib.git", False),
        (Remote(url=HERE, credentials=LOGIN), "http://git.example/acme/lib.git", False),
        (Remote(url=HERE, credentials=LOGIN), "git@git.example:acme/lib.git", False),
        (Remote(url="git@git.example:acme/digits.git", credentials=KEY), "git@other.example:a/b.git", True),
        (Remote(url="git@git.example:acme/digits.git", credentials=KEY), HERE, False),
    ],
)
def test_a_password_stays_where_it_belongs(remote: Remote, url: str, *, opened: bool) -> None:
    """Another host gains nothing from a key's proof; a password sent to it is lost."""
    found = submodule_remote(remote, url)
    assert (found.credentials is not None) == opened
    assert found.url == url


def test_one_deploy_key_opens_the_submodules_too(
    service: Service, project: Project, githost: GitHost, tmp_path: Path
) -> None:
    """Over ssh, by a relative URL; the package holds their files, and the request names their commits."""
    library = WorkTree(tmp_path / "library", githost.create("acme/library.git"))
    commit = library.commit("A library", {"lib.py": "answer = 42\n"})
    library.push()
    with SshHost(githost.folder, []) as host:
        connection = service.connect(host.url("acme/digits.git"), "train@main")
        host.authorize(connection["deploy_key"])
        tree = project.tree
        tree.git(
            "-c",
            "protocol.allow=always",
            "submodule",
            "add",
            "--quiet",
            githost.url("acme/library.git"),
            "lib",
        )
        modules = '[submodule "lib"]\n\tpath = lib\n\turl = ../library.git\n'
        pushed = project.push("With a library", {".gitmodules": modules})
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned", update
        url = host.url("acme/library.git")
    [execution] = service.api.get("/executions")["items"]
    message = execution["message"]
    assert message["submodules"] == [{"path": "lib", "url": url, "commit": commit}]
    with (
        urllib.request.urlopen(message["package"]["url"]) as answered,  # noqa: S310 - our own gateway
        tarfile.open(fileobj=BytesIO(answered.read()), mode="r:gz") as archive,
    ):
        found = archive.extractfile("lib/lib.py")
        assert found is not None
        assert found.read() == b"answer = 42\n"
    assert "PRIVATE" not in json.dumps(message)
