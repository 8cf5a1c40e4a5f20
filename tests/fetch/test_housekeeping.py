"""Mirrors stay quick and within their budget, and lose no objects."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from gateway.fetch.housekeeping import Housekeeper
from gateway.metrics import REGISTRY
from testing.fetching import Fetching
from testing.git_host import WorkTree, git


def housekeeper(fetching: Fetching, *, budget: int = 2**40, idle: float = 0) -> Housekeeper:
    """Return a housekeeper that treats every mirror as idle."""
    return Housekeeper(git=fetching.git, mirrors=fetching.mirrors, budget=budget, idle=idle)


def packs(mirror: Path) -> int:
    """Return how many packs and loose objects a mirror has."""
    counted = git("count-objects", "-v", folder=mirror)
    numbers = dict(line.split(": ") for line in counted.splitlines())
    return int(numbers["packs"]) + int(numbers["count"])


def test_many_fetches_are_packed_into_few(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Each fetch leaves a pack or loose objects; all their objects are still there."""
    pushed = []
    for number in range(25):
        files = {f"{number}/{name}": f"{number} {name}" for name in range(120)}
        pushed.append(tree.commit(f"Number {number}", files))
        tree.push()
        fetching.update(url, ("refs/heads/main", pushed[-1]))
    mirror = fetching.mirrors.path("c1")
    assert packs(mirror) > 20
    fetching.run(housekeeper(fetching).tidy())
    assert packs(mirror) <= 3
    assert git("fsck", "--full", folder=mirror) == ""
    assert all(fetching.has(one) for one in pushed)
    last = tree.commit("After it", {"a": "b"})
    tree.push()
    fetching.update(url, ("refs/heads/main", last))
    assert fetching.has(last)


def test_what_a_killed_fetch_has_left_is_removed(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """After an hour without a change to its pack; a newer one may be of a running fetch."""
    first = tree.commit("First", {"a": "b"})
    tree.push()
    fetching.update(url, ("refs/heads/main", first))
    folder = fetching.mirrors.path("c1") / "objects" / "pack"
    folder.mkdir(exist_ok=True)
    old, new = folder / "tmp_pack_old", folder / "tmp_pack_new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    fetching.run(housekeeper(fetching).tidy())
    assert (old.exists(), new.exists()) == (False, True)
    assert fetching.has(first)


def test_the_least_recently_used_mirrors_go_first(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Until the others fit; the next fetch clones an evicted mirror again."""
    first = tree.commit("First", {"data": os.urandom(300_000).hex()})
    tree.push()
    asked = [("refs/heads/main", first)]
    for connection, age in (("c2", 30), ("c1", 20), ("c3", 10)):
        fetching.update(url, *asked, connection=connection)
        used = time.time() - age
        os.utime(fetching.mirrors.path(connection).with_suffix(".lock"), (used, used))
    evicted = REGISTRY.get_sample_value("pushgate_mirrors_evicted_total") or 0
    fetching.run(housekeeper(fetching, budget=800_000).tidy())
    assert fetching.mirrors.connections() == ["c1", "c3"]
    assert REGISTRY.get_sample_value("pushgate_mirrors_evicted_total") == evicted + 1
    assert REGISTRY.get_sample_value("pushgate_mirrors") == 2
    assert 300_000 < (REGISTRY.get_sample_value("pushgate_mirror_bytes") or 0) <= 800_000
    fetching.update(url, *asked, connection="c2")
    assert fetching.mirrors.connections() == ["c1", "c2", "c3"]


def test_mirrors_in_use_are_kept(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """However small the budget is: a reader may need them."""
    first = tree.commit("First", {"a": "b"})
    tree.push()
    fetching.update(url, ("refs/heads/main", first))
    fetching.run(housekeeper(fetching, budget=1, idle=60).tidy())
    assert fetching.mirrors.connections() == ["c1"]


def test_what_a_killed_clone_left_is_removed(fetching: Fetching) -> None:
    """Also if there never was a complete mirror."""
    left = fetching.mirrors.path("c9").with_name("c9.git.0badcafe.new")
    (left / "objects").mkdir(parents=True)
    fetching.run(housekeeper(fetching).tidy())
    assert not left.exists()


def test_a_long_fetch_delays_no_other_mirror(fetching: Fetching) -> None:
    """A clone may take hours: what it has written so far is no leftover, and the others are tidied."""
    running, left = (
        fetching.mirrors.path(name).with_name(f"{name}.git.0badcafe.new") for name in ("c1", "c2")
    )
    for clone in (running, left):
        clone.mkdir(parents=True)

    async def tidy() -> None:
        async with fetching.mirrors.locked("c1"):
            await replace(housekeeper(fetching), patience=0).tidy()

    fetching.run(tidy())
    assert (running.exists(), left.exists()) == (True, False)


def test_mirrors_are_listed_once_however_many_there_are(fetching: Fetching) -> None:
    """In threads: the event loop answers webhooks meanwhile."""
    for number in range(30):
        (fetching.mirrors.path(f"c{number}") / "objects").mkdir(parents=True)
    folder = str(fetching.mirrors.path("c1").parent)
    listed: list[str] = []
    threads: set[int] = set()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.scandir" and str(arguments[0]).startswith(folder):
            listed.append(str(arguments[0]))
            threads.add(threading.get_ident())

    # It stays for the life of the process, and notes no folder of another test.
    sys.addaudithook(note)
    fetching.run(housekeeper(fetching).tidy())
    assert sorted(listed) == sorted({*listed, folder})
    assert threads.isdisjoint({threading.get_ident()})


def test_a_long_fetch_reports_its_progress(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """By percent and bytes, as git prints them."""
    tree.commit("Many", {f"files/{number}": os.urandom(2000).hex() for number in range(400)})
    tree.push()
    reported: list[str] = []
    fetching.update(url, ("refs/heads/main", tree.head()), progress=reported.append)
    assert any(line.startswith("receiving objects 100 %, ") for line in reported), reported
