"""The attacks: each a context manager that goes on until its block ends. All of it stays on loopback.

What they send is bounded in size and rate: this tests how the gateway handles them, not how much a machine
can send.
"""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count as counting
from pathlib import Path
from typing import Any

from gateway.cli.api_client import ApiError
from testing.git_host import ENVIRONMENT, GitHost, WorkTree
from testing.github import push_payload
from testing.service import VALOHAI_YAML, Service
from tests.intake import attacks

_MIB = 1024 * 1024
_SENDERS = 4
_IDLE = 600
_HANGING = 12


@dataclass(slots=True)
class Count:
    """How often an attack was made."""

    made: int = 0


Attack = Callable[[Service, Path, Count], AbstractContextManager[None]]


@contextmanager
def headers(service: Service, _folder: Path, count: Count) -> Iterator[None]:
    """Send requests with endless or thousands of lines, headers or trailers, or that announce 10 GB."""
    path, address = "/hooks/none", attacks.address_of(service.url)
    shapes: list[Callable[[], bytes | Iterator[bytes]]] = [
        lambda: attacks.many_headers(path, 12_000),
        lambda: attacks.endless_headers(path, 8 * _MIB),
        lambda: attacks.endless_header(path, 8 * _MIB),
        lambda: attacks.endless_url(8 * _MIB),
        lambda: attacks.endless_line_ends(8 * _MIB),
        lambda: attacks.endless_trailers(path, 8 * _MIB),
        lambda: attacks.endless_extension(path, 8 * _MIB),
        lambda: attacks.tiny_chunks(path, _MIB),
        lambda: attacks.announced(path, 10_000_000_000),
    ]
    turns = counting()

    def send() -> None:
        attacks.attack(address, shapes[next(turns) % len(shapes)](), seconds=10)
        count.made += 1

    with _repeated(send, every=0.05, threads=_SENDERS):
        yield


@contextmanager
def idle_connections(service: Service, _folder: Path, count: Count) -> Iterator[None]:
    """Hold connections that send nothing, half a header, or part of a body, and replace those that end."""
    address = attacks.address_of(service.url)
    begun = [b"", attacks.head("/hooks/none") + b"X-Half: ", attacks.announced("/hooks/none", 1000, b"{")]
    held: list[socket.socket] = []

    def hold() -> None:
        held[:] = [one for one in held if not attacks.is_closed(one)]
        for number in range(min(50, _IDLE - len(held))):
            one = socket.create_connection(address, timeout=5)
            held.append(one)
            one.sendall(begun[number % len(begun)])
            count.made += 1
        for one in held[::10]:
            attacks.dribble(one)

    try:
        with _repeated(hold, every=0.5):
            yield
    finally:
        for one in held:
            one.close()


@contextmanager
def hanging_hosts(service: Service, _folder: Path, count: Count) -> Iterator[None]:
    """Deliver pushes to git hosts that accept a connection and never answer."""
    with ExitStack() as stack:
        targets = []
        for number in range(_HANGING):
            # Each has its own address, so each is a host of its own.
            listener = stack.enter_context(socket.create_server((f"127.0.1.{number + 1}", 0), backlog=64))
            host, port = listener.getsockname()
            url = f"http://{host}:{port}/acme/hangs.git"
            targets.append(_connected(service, stack, url, f"hangs-{number}"))

        def push() -> None:
            for url, connection in targets:
                _deliver(service, connection, url, after=f"{count.made + 1:040x}")
                count.made += 1

        with _repeated(push, every=2):
            yield


@contextmanager
def bombs(service: Service, folder: Path, count: Count) -> Iterator[None]:
    """Push trees that unpack to billions of files, and a manifest whose aliases expand to many megabytes."""
    with GitHost(folder / "bombs") as host, ExitStack() as stack:
        url = host.create("acme/bombs.git")
        tree = WorkTree(folder / "bomber", url)
        first = tree.commit("First", {"valohai.yaml": VALOHAI_YAML})
        tree.push()
        _, connection = _connected(service, stack, url, "bombs")
        commits = [_tree_bomb(tree), _yaml_bomb(tree)]
        tree.push(*(f"{commit}:refs/heads/bomb-{number}" for number, commit in enumerate(commits)))

        def push() -> None:
            # A new branch each time: a repeated move would be a duplicate.
            for commit in commits:
                branch = f"refs/heads/bomb-{count.made}"
                tree.push(f"{commit}:{branch}")
                _deliver(service, connection, url, before=first, after=commit, ref=branch)
                count.made += 1

        with _repeated(push, every=3):
            yield


@contextmanager
def full_disk(service: Service, _folder: Path, count: Count) -> Iterator[None]:
    """Fill the small file system of the data folder."""
    filler = service.data / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
                count.made += 1

    try:
        with _repeated(fill, every=0.2):
            yield
    finally:
        filler.unlink(missing_ok=True)


def _connected(service: Service, stack: ExitStack, url: str, name: str) -> tuple[str, Any]:
    """Connect a repository until the exit stack closes."""
    connection = service.connect(url, "train@*", name=name)
    stack.callback(service.api.send, "DELETE", f"/connections/{connection['id']}")
    return url, connection


def _deliver(
    service: Service,
    connection: Any,
    url: str,
    *,
    after: str,
    before: str | None = None,
    ref: str = "refs/heads/main",
) -> None:
    name = url.rsplit("/", 2)[-2] + "/" + url.rsplit("/", 1)[-1].removesuffix(".git")
    body = push_payload(url=url, full_name=name, ref=ref, before=before, after=after)
    service.deliver(connection, body)


def _tree_bomb(tree: WorkTree, *, deep: int = 14, wide: int = 10) -> str:
    """Return a commit of nested folders, with this depth and width: a few KB that name 10 ** 14 files."""
    blob = tree.git("rev-parse", "HEAD:valohai.yaml")
    inner = f"100644 blob {blob}"
    for _ in range(deep):
        inner = "040000 tree " + _mktree(tree, [f"{inner}\tf{number}" for number in range(wide)])
    root = _mktree(tree, [f"{inner}\tbomb", f"100644 blob {blob}\tvalohai.yaml"])
    return tree.git("commit-tree", "-p", "HEAD", "-m", "A tree that is a bomb", root)


def _mktree(tree: WorkTree, entries: Sequence[str]) -> str:
    done = subprocess.run(
        ["git", "mktree"],
        input="".join(f"{entry}\n" for entry in entries),
        cwd=tree.folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def _yaml_bomb(tree: WorkTree) -> str:
    """Return a commit whose manifest has one line of 80 KB, and 300 aliases of it: 24 MB."""
    command = f"command:\n      - &c '{'x' * 80_000}'\n" + "      - *c\n" * 300
    manifest = VALOHAI_YAML.replace("command: python train.py {parameters}\n", command)
    commit = tree.commit("A manifest that is a bomb", {"valohai.yaml": manifest})
    tree.git("reset", "--quiet", "--hard", "HEAD^")
    return commit


@contextmanager
def _repeated(act: Callable[[], None], *, every: float, threads: int = 1) -> Iterator[None]:
    """Repeat an action in threads until the block ends. A refusal by the gateway is no error."""
    end = threading.Event()

    def run() -> None:
        while not end.wait(every):
            with suppress(ApiError, OSError):
                act()

    running = [threading.Thread(target=run, name=f"attack {number}") for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in running:
            thread.join()
