"""The content of a package: only the commit's tree and its submodules, except ignored files."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.errors import Invalid, ObjectUnusable, RemoteUnavailable
from gateway.packages.submodules import submodule_url
from gateway.packages.symlinks import check_links
from gateway.packages.tree import shown
from testing.fetching import Fetching
from testing.git_host import GitHost, WorkTree
from testing.packing import Packing, add_submodule, names

BASE = "https://host.example/group/project.git"


@pytest.fixture
def packing(fetching: Fetching, tmp_path: Path) -> Packing:
    """Return a packer of commits."""
    return Packing(fetching, tmp_path)


def test_submodules_are_part_of_the_tree(
    packing: Packing, githost: GitHost, tree: WorkTree, tmp_path: Path
) -> None:
    """Also one within another, by relative URLs, at the recorded commits."""
    inner = WorkTree(tmp_path / "inner", githost.create("acme/inner.git"))
    inner_commit = inner.commit("Inner", {"deep.txt": "deep"})
    inner.push()
    outer = WorkTree(tmp_path / "outer", githost.create("libs/outer.git"))
    add_submodule(outer, path="in/ner", url="../../acme/inner.git", commit=inner_commit)
    outer_commit = outer.commit("Outer", {"lib.py": "lib"})
    outer.push()
    inner.commit("Later", {"deep.txt": "later"})
    inner.push()
    add_submodule(tree, path="vendor/outer", url="../../libs/outer.git", commit=outer_commit)
    commit = tree.commit(
        "First", {"vendor/outer.txt": "beside", "a": "1", ".vhignore": "vendor/outer/lib.py\n"}
    )
    tree.push()

    found = packing.tree(githost.url("acme/digits.git"), commit)
    assert names(found) == [
        ".gitmodules",
        ".vhignore",
        "a",
        "vendor/outer.txt",
        "vendor/outer/.gitmodules",
        "vendor/outer/in/ner/deep.txt",
    ]
    assert [(one.path, one.url, one.commit) for one in found.modules] == [
        ("vendor/outer", githost.url("libs/outer.git"), outer_commit),
        ("vendor/outer/in/ner", githost.url("acme/inner.git"), inner_commit),
    ]
    assert packing.unpacked(found)["vendor/outer/in/ner/deep.txt"] == b"deep"


@pytest.mark.parametrize("rule", ["ml/", "*.yaml", "**", "ml/valohai.yaml"])
def test_the_manifest_is_packed_even_if_it_is_ignored(
    packing: Packing, tree: WorkTree, url: str, rule: str
) -> None:
    """And of its folder nothing else: a runner reads the same file as the planner."""
    files = {"ml/valohai.yaml": "[]", "ml/other.yaml": "x", ".vhignore": f"{rule}\n"}
    commit = tree.commit("First", files)
    tree.push()
    assert "ml/valohai.yaml" not in names(packing.tree(url, commit))
    packed = packing.tree(url, commit, manifest="ml/valohai.yaml")
    assert "ml/valohai.yaml" in names(packed)
    assert ("ml/other.yaml" in names(packed)) == (rule == "ml/valohai.yaml")


def test_an_ignored_submodule_is_not_fetched(packing: Packing, tree: WorkTree, url: str) -> None:
    """Its URL does not matter."""
    add_submodule(tree, path="vendor/x", url="http://127.0.0.1:9/none.git", commit="d" * 40)
    commit = tree.commit("First", {"a": "1", ".vhignore": "vendor/\n"})
    tree.push()
    assert names(packing.tree(url, commit)) == [".gitmodules", ".vhignore", "a"]


def test_a_submodule_of_no_url_is_an_empty_folder(packing: Packing, tree: WorkTree, url: str) -> None:
    """As in a checkout; a warning names it."""
    add_submodule(tree, path="nested", url=None, commit="d" * 40)
    commit = tree.commit("First", {})
    tree.push()
    found = packing.tree(url, commit)
    assert found.warnings == ["nested is a submodule that .gitmodules does not name; its folder is empty"]
    assert packing.unpacked(found) == {"nested": None}


@pytest.mark.parametrize(
    ("module_url", "reason"),
    [
        ("file:///etc", r"submodule x cannot be fetched from .file:///etc.: it must be https"),
        ("ext::sh -c id", "submodule x cannot be fetched from"),
        ("https://ada:s3cret@host.example/x.git", "remove the user name and the password from it"),
        ("https://ghp_0123456789@host.example/x.git", "remove the user name and the password from it"),
        ("../../../../x.git", "its relative URL leads out of the host"),
        ("/srv/x.git", "it must be https"),
    ],
)
def test_urls_of_submodules_are_not_believed(
    packing: Packing, tree: WorkTree, url: str, module_url: str, reason: str
) -> None:
    """Each is a reason that names the submodule, and holds no password."""
    add_submodule(tree, path="x", url=module_url, commit="d" * 40)
    commit = tree.commit("First", {})
    tree.push()
    with pytest.raises(ObjectUnusable, match=reason) as caught:
        packing.tree(url, commit)
    assert "s3cret" not in str(caught.value)


def test_a_submodule_that_is_not_there_is_reported(
    packing: Packing, githost: GitHost, tree: WorkTree, tmp_path: Path
) -> None:
    """Denied access and a commit that was never pushed are final; an unavailable host is not."""
    url = githost.url("acme/digits.git")
    lib = WorkTree(tmp_path / "lib", githost.create("lib.git"))
    lib.commit("Lib", {"a": "1"})
    lib.push()
    for module_url, error, reason in (
        ("../none.git", ObjectUnusable, r"submodule x \(.*/acme/none.git\): .*the repository does not exist"),
        ("../../lib.git", ObjectUnusable, f"its remote has no commit {'d' * 40}"),
        ("http://127.0.0.1:9/x.git", RemoteUnavailable, r"submodule x .*the host cannot be reached"),
    ):
        add_submodule(tree, path="x", url=module_url, commit="d" * 40)
        commit = tree.commit("Another", {})
        tree.push()
        with pytest.raises(error, match=reason):
            packing.tree(url, commit)


def test_submodules_end_somewhere(packing: Packing, githost: GitHost, tree: WorkTree, tmp_path: Path) -> None:
    """A chain of more than ten is refused."""
    below = WorkTree(tmp_path / "s0", githost.create("s0.git"))
    commit = below.commit("s0", {"a": "1"})
    below.push()
    for number in range(1, 12):
        above = tree if number == 11 else WorkTree(tmp_path / f"s{number}", githost.create(f"s{number}.git"))
        add_submodule(above, path="s", url=githost.url(f"s{number - 1}.git"), commit=commit)
        commit = above.commit(f"s{number}", {})
        above.push()
    with pytest.raises(ObjectUnusable, match="at most 100 submodules, 10 deep"):
        packing.tree(githost.url("acme/digits.git"), commit)


def test_gitmodules_that_no_git_can_read_is_a_reason(packing: Packing, tmp_path: Path) -> None:
    """Also in a mirror that was fetched before git refused such files."""
    work = WorkTree(tmp_path / "work", "none")
    add_submodule(work, path="x", url="../x.git", commit="d" * 40)
    commit = work.commit("First", {".gitmodules": "[submodule\nnonsense"})
    with pytest.raises(ObjectUnusable, match=r"\.gitmodules cannot be read"):
        packing.tree_in(work.folder / ".git", commit)


@pytest.mark.parametrize("option", ["include.path", "includeIf.gitdir:/.path"])
def test_gitmodules_reads_no_file_of_this_machine(packing: Packing, tmp_path: Path, option: str) -> None:
    """An include exposes neither lines nor submodules of another file."""
    work = WorkTree(tmp_path / "work", "none")
    private = tmp_path / "private"
    private.write_text('[submodule "secret"]\n\tpath = x\n\turl = file:///secret\nroot:x:0:0\n')
    add_submodule(work, path="x", url=None, commit="d" * 40)
    work.git("config", "--file", ".gitmodules", option, str(private))
    commit = work.commit("First", {})
    found = packing.tree_in(work.folder / ".git", commit)
    assert found.warnings == ["x is a submodule that .gitmodules does not name; its folder is empty"]


def test_an_error_in_gitmodules_names_its_line_and_repeats_nothing(packing: Packing, tmp_path: Path) -> None:
    """Pushed text, or a file that it names, does not belong in the reason."""
    work = WorkTree(tmp_path / "work", "none")
    add_submodule(work, path="x", url="../x.git", commit="d" * 40)
    commit = work.commit("First", {".gitmodules": '[submodule "x"]\n\tpath = x\n\ts3cret-%$ = 1\n'})
    with pytest.raises(ObjectUnusable) as caught:
        packing.tree_in(work.folder / ".git", commit)
    assert str(caught.value) == ".gitmodules cannot be read: line 3 is not valid git configuration"


def test_gitmodules_with_a_byte_order_mark_is_read(
    packing: Packing, githost: GitHost, tree: WorkTree, tmp_path: Path
) -> None:
    """Editors on Windows write one, and git skips it in a checkout."""
    library = WorkTree(tmp_path / "library", githost.create("acme/library.git"))
    recorded = library.commit("Library", {"lib.py": "lib"})
    library.push()
    add_submodule(tree, path="lib", url="../library.git", commit=recorded)
    modules = (tree.folder / ".gitmodules").read_text()
    commit = tree.commit("First", {".gitmodules": "\ufeff" + modules})
    tree.push()
    found = packing.tree(githost.url("acme/digits.git"), commit)
    assert [(one.path, one.url) for one in found.modules] == [("lib", githost.url("acme/library.git"))]


def test_a_submodule_that_is_never_updated_is_an_empty_folder(
    packing: Packing, tree: WorkTree, url: str
) -> None:
    """A checkout respects `update = none` in .gitmodules; so does a package, with a warning."""
    add_submodule(tree, path="data", url="http://127.0.0.1:9/none.git", commit="d" * 40)
    tree.git("config", "--file", ".gitmodules", "submodule.data.update", "none")
    commit = tree.commit("First", {})
    tree.push()
    found = packing.tree(url, commit)
    assert found.warnings == ["data is a submodule with `update = none` in .gitmodules; its folder is empty"]
    assert packing.unpacked(found) == {"data": None, ".gitmodules": packing.unpacked(found)[".gitmodules"]}


def test_names_that_no_folder_can_hold_are_refused(packing: Packing, tmp_path: Path) -> None:
    """Git refuses them at a fetch too; this test is for a mirror that has them already."""
    work = WorkTree(tmp_path / "work", "none")
    blob = work.git("rev-parse", work.commit("First", {"a": "1"}) + ":a")
    for name in ("..", ".git", ".GIT"):
        tree_id = packing.mktree(work, f"100644 blob {blob}\t{name}\0")
        outer = packing.mktree(work, f"040000 tree {tree_id}\tdir\0")
        commit = work.git("commit-tree", "-m", "evil", outer)
        with pytest.raises(ObjectUnusable, match="a path that is not allowed in a folder"):
            packing.tree_in(work.folder / ".git", commit)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("../lib.git", "https://host.example/group/lib.git"),
        ("../../other/lib.git/", "https://host.example/other/lib.git"),
        ("./lib.git", "https://host.example/group/project.git/lib.git"),
        ("git@host.example:group/lib.git", "git@host.example:group/lib.git"),
        ("https://contoso@host.example/a/_git/lib", "https://host.example/a/_git/lib"),
        ("https://ada@[fd00::1]:8443/lib.git", "https://[fd00::1]:8443/lib.git"),
        ("git@host.example:/srv/git/lib.git", "git@host.example:/srv/git/lib.git"),
    ],
)
def test_relative_urls_are_resolved_as_git_does(given: str, expected: str) -> None:
    """https://git-scm.com/docs/git-submodule#Documentation/git-submodule.txt-add."""
    assert submodule_url(given, parent=BASE, allow_http=False, hosts=()) == expected


def test_relative_urls_have_ssh_parents_too() -> None:
    """Git's short form included."""
    for parent, expected in (
        ("git@host.example:group/project.git", "git@host.example:group/lib.git"),
        ("ssh://git@host.example:2222/group/project.git", "ssh://git@host.example:2222/group/lib.git"),
        ("git@host.example:/srv/git/project.git", "git@host.example:/srv/git/lib.git"),
    ):
        assert submodule_url("../lib.git", parent=parent, allow_http=False, hosts=()) == expected


def test_submodules_come_from_allowed_hosts_only() -> None:
    """The same hosts as for connections."""
    with pytest.raises(Invalid, match="FETCH_HOSTS"):
        submodule_url("https://evil.example/x", parent=BASE, allow_http=False, hosts=("host.example",))


@pytest.mark.parametrize(
    "links",
    [
        {b"a": b"b"},
        {b"d/a": b"../b"},
        {b"d/a": b"./..//d/../b"},
        {b"a": b"a"},
        {b"a": b"b", b"b": b"a"},
        {b"a": b"d/e", b"x": b"a/../../y"},
        {b"a": b"."},
        {b"a": b"missing/b"},
    ],
)
def test_links_within_the_tree_are_fine(links: Mapping[bytes, bytes]) -> None:
    """Also those that lead nowhere, or in circles."""
    check_links(links)


@pytest.mark.parametrize(
    "links",
    [
        {b"a": b"/etc/passwd"},
        {b"a": b"../x"},
        {b"d/a": b"../../x"},
        {b"a": b"d/../../x"},
        {b"d/a": b".", b"d/b": b"a/../../x"},
        {b"d/a": b"..", b"b": b"d/a/../x"},
        {b"a": b"b/..", b"b": b"c", b"c": b".."},
    ],
)
def test_links_that_leave_the_tree_are_refused(links: Mapping[bytes, bytes]) -> None:
    """Also by way of other links, which make `..` mean another folder."""
    with pytest.raises(ObjectUnusable, match="leads out of the tree"):
        check_links(links)


def test_paths_are_shown_on_one_line() -> None:
    """Whatever bytes they are made of."""
    assert shown("ü/a\nb".encode() + b"\xff") == "ü/a\\nb\\xff"
