"""History as written by old and odd tools: what `git clone` accepts is fetched and read."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import ObjectUnusable
from gateway.fetch.git_config import TOLERATED
from testing.fetching import Fetching
from testing.git_host import ENVIRONMENT, GitHost
from testing.packing import Packing

MAIN = "refs/heads/main"
PERSON = b"Ada Byron <ada@example.org> 1700000000 +0000"
# Names with which a checkout would leave its folder, or write into its own repository.
DANGEROUS = {"fullPathname", "gitmodulesSymlink", "hasDot", "hasDotdot", "hasDotgit"}
# No git setting permits these.
FATAL = {"nulInHeader", "unterminatedHeader"}
# What newer gits find in refs, and in no object that is fetched.
OF_REFS = (
    *("badRef", "badPackedRef", "badReftable", "emptyPackedRefs", "packedRef", "packedEntry"),
    *("refMissing", "symlinkRef", "symref", "trailingRef"),
)


class Bare:
    """A bare repository that accepts any bytes as an object."""

    def __init__(self, folder: Path) -> None:
        """Begin with one file, and a tree of it."""
        self.folder = folder
        self.blob = self.write("blob", b"x")
        self.tree = self.write("tree", self.entry(b"a"))

    def write(self, kind: str, content: bytes) -> str:
        """Write an object, valid or not; return its id."""
        command = ["git", "hash-object", "-w", "--literally", "-t", kind, "--stdin"]
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT, input=content, check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    def entry(self, name: bytes, *, mode: bytes = b"100644", of: str | None = None) -> bytes:
        """Return an entry of a tree."""
        return mode + b" " + name + b"\0" + bytes.fromhex(of or self.blob)

    def commit(
        self,
        *,
        entries: bytes | None = None,
        author: bytes | None = PERSON,
        committer: bytes | None = PERSON,
        parents: tuple[str, ...] = (),
        message: bytes = b"A message\n",
    ) -> str:
        """Write a commit."""
        tree = self.tree if entries is None else self.write("tree", entries)
        lines = [b"tree " + tree.encode(), *(b"parent " + one.encode() for one in parents)]
        lines += [b"author " + author] if author is not None else []
        lines += [b"committer " + committer] if committer is not None else []
        return self.write("commit", b"\n".join(lines) + b"\n\n" + message)

    def modules(self, text: bytes) -> bytes:
        """Return the tree with a .gitmodules of this text."""
        return self.entry(b".gitmodules", of=self.write("blob", text))

    def tag(self, head: bytes) -> str:
        """Write a commit, and a tag of it with this head behind the object's id; return the commit."""
        commit = self.commit()
        tag = self.write("tag", b"object " + commit.encode() + b"\n" + head + b"\n\nA tag\n")
        (self.folder / "refs/tags/t").write_text(tag + "\n")
        return commit

    def set_main(self, commit: str) -> None:
        """Set main to a commit."""
        (self.folder / MAIN).write_text(commit + "\n")


def by(author: bytes) -> Callable[[Bare], str]:
    """Return a function that makes a commit of this author."""
    return lambda bare: bare.commit(author=author)


HARMLESS: dict[str, Callable[[Bare], str]] = {
    "missingSpaceBeforeEmail": by(b"Ada<ada@example.org> 1 +0000"),
    "missingEmail": by(b"Ada 1 +0000"),
    "badEmail": by(b"Ada <ada<b> 1 +0000"),
    "badName": by(b"Ada> <ada@example.org> 1 +0000"),
    "missingNameBeforeEmail": by(b"<ada@example.org> 1 +0000"),
    "missingSpaceBeforeDate": by(b"Ada <ada@example.org>1 +0000"),
    "badDate": by(b"Ada <ada@example.org> x +0000"),
    "badDateOverflow": by(b"Ada <ada@example.org> 99999999999999999999 +0000"),
    "zeroPaddedDate": by(b"Ada <ada@example.org> 01 +0000"),
    "badTimezone": by(b"Ada <ada@example.org> 1 +00:00"),
    "missingAuthor": lambda bare: bare.commit(author=None),
    "missingCommitter": lambda bare: bare.commit(committer=None),
    "multipleAuthors": by(PERSON + b"\nauthor " + PERSON),
    "nulInCommit": lambda bare: bare.commit(message=b"a\0b\n"),
    "duplicateEntries": lambda bare: bare.commit(entries=bare.entry(b"a") + bare.entry(b"a")),
    "treeNotSorted": lambda bare: bare.commit(entries=bare.entry(b"b") + bare.entry(b"a")),
    "zeroPaddedFilemode": lambda bare: bare.commit(entries=bare.entry(b"a", mode=b"0100644")),
    "badFilemode": lambda bare: bare.commit(entries=bare.entry(b"a", mode=b"100600")),
    "gitignoreSymlink": lambda bare: bare.commit(
        entries=bare.entry(b".gitignore", mode=b"120000") + bare.entry(b"x")
    ),
    "gitmodulesParse": lambda bare: bare.commit(entries=bare.modules(b"[broken\n")),
    "gitmodulesName": lambda bare: bare.commit(
        entries=bare.modules(b'[submodule "../x"]\n\tpath = x\n\turl = ../x\n')
    ),
    "gitmodulesUrl": lambda bare: bare.commit(
        entries=bare.modules(b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    ),
    "gitmodulesUpdate": lambda bare: bare.commit(
        entries=bare.modules(b'[submodule "x"]\n\tpath = x\n\turl = ../x\n\tupdate = !id\n')
    ),
    "gitattributesLineLength": lambda bare: bare.commit(
        entries=bare.entry(b".gitattributes", of=bare.write("blob", b"a" * 3000 + b" x\n"))
    ),
    "missingTaggerEntry": lambda bare: bare.tag(b"type commit\ntag t"),
    "badTagName": lambda bare: bare.tag(b"type commit\ntag t..\ntagger " + PERSON),
}
EVIL: dict[str, Callable[[Bare], str]] = {
    "fullPathname": lambda bare: bare.commit(entries=bare.entry(b"a/b")),
    "hasDotdot": lambda bare: bare.commit(entries=bare.entry(b"..", mode=b"40000", of=bare.tree)),
    "hasDotgit": lambda bare: bare.commit(entries=bare.entry(b".git", mode=b"40000", of=bare.tree)),
    "gitmodulesSymlink": lambda bare: bare.commit(entries=bare.entry(b".gitmodules", mode=b"120000")),
}


@pytest.fixture
def bare(githost: GitHost, url: str, tree: object) -> Bare:
    """Return the server's repository."""
    assert tree is not None  # that call has made the repository
    return Bare(githost.folder / url.split("/", 3)[3])


def test_each_problem_that_the_installed_git_knows_was_decided_about() -> None:
    """A git with further checks needs a review."""
    command = ["git", "help", "--config-for-completion"]
    listed = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    found = {line.removeprefix("fsck.") for line in listed.split() if line.startswith("fsck.")}
    found = {one for one in found if one and not one.startswith(OF_REFS)} - {"skipList"}
    assert found
    assert found - {*TOLERATED} - DANGEROUS - FATAL == set()
    assert {*TOLERATED} & (DANGEROUS | FATAL) == set()
    assert {*HARMLESS} <= {*TOLERATED}
    assert {*EVIL} <= DANGEROUS


@pytest.mark.parametrize("problem", HARMLESS)
def test_what_git_clone_takes_is_taken(
    fetching: Fetching, bare: Bare, url: str, tmp_path: Path, problem: str
) -> None:
    """As the newest commit and in history; it is read, and packed if its .gitmodules is empty."""
    odd = HARMLESS[problem](bare)
    bare.set_main(odd)
    clone = ["git", "clone", "--quiet", "--no-checkout", url, str(tmp_path / "referee")]
    assert subprocess.run(clone, env=ENVIRONMENT, check=False).returncode == 0
    fetching.update(url, (MAIN, odd))
    assert fetching.read(odd).id == odd
    packing = Packing(fetching, tmp_path)
    assert packing.unpacked(packing.tree(url, odd))
    later = bare.commit(parents=(odd,))
    bare.set_main(later)
    fetching.update(url, (MAIN, later))
    assert fetching.read(later, before=odd).parents == (odd,)


@pytest.mark.parametrize("problem", EVIL)
def test_names_that_a_checkout_must_not_have_are_refused(
    fetching: Fetching, bare: Bare, url: str, problem: str
) -> None:
    """Whatever else is in the history."""
    evil = EVIL[problem](bare)
    bare.set_main(evil)
    with pytest.raises(ObjectUnusable, match=problem):
        fetching.update(url, (MAIN, evil))


def test_a_bad_gitmodules_matters_only_where_it_is_used(fetching: Fetching, bare: Bare, url: str) -> None:
    """In the packed commit, not in an earlier one: https://nvd.nist.gov/vuln/detail/CVE-2018-17456."""
    text = b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'
    link = bare.entry(b"x", mode=b"160000", of="d" * 40)
    evil = bare.commit(entries=bare.modules(text) + link)
    good = bare.commit(parents=(evil,))
    bare.set_main(good)
    packing = Packing(fetching, fetching.mirrors.path("c1").parent)
    assert [entry.path for entry in packing.tree(url, good).entries] == [b"a"]
    with pytest.raises(ObjectUnusable, match=r"submodule x cannot be fetched from '-u./payload'"):
        packing.tree(url, evil)


def test_a_file_that_is_a_folder_as_well_cannot_be_packed(fetching: Fetching, bare: Bare, url: str) -> None:
    """Git stores such a tree, but it cannot be unpacked."""
    both = bare.entry(b"a") + bare.entry(b"a", mode=b"40000", of=bare.tree)
    commit = bare.commit(entries=both)
    bare.set_main(commit)
    with pytest.raises(ObjectUnusable, match=r"both a file and a folder named a$"):
        Packing(fetching, fetching.mirrors.path("c1").parent).tree(url, commit)
