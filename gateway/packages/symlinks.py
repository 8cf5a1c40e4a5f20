"""Where symbolic links lead. A package is unpacked on other machines: none of its links may leave it."""

from collections.abc import Mapping

from gateway.errors import ObjectUnusable
from gateway.packages.tree import shown

# As many links as Linux follows on one path: path_resolution(7).
_MAX_LINKS = 40


def check_links(links: Mapping[bytes, bytes]) -> None:
    """Raise `ObjectUnusable` for the first link that leads out of the tree. `links` are all of its links.

    Links are followed as the kernel would: `a/..` is not where `a` is if `a` is a link. What is not there, or
    goes in circles, leads nowhere, and so not out.
    """
    for path, target in sorted(links.items()):
        if _leaves(path, links):
            raise ObjectUnusable(
                f"the link {shown(path)} leads out of the tree, to {shown(target)}: remove it, or name it in"
                " .vhignore"
            )


def _leaves(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    to_go = path.split(b"/")[::-1]
    at: list[bytes] = []
    followed = 0
    while to_go:
        step = to_go.pop()
        if step in {b"", b"."}:
            continue
        if step == b"..":
            if not at:
                return True
            at.pop()
            continue
        at.append(step)
        target = links.get(b"/".join(at))
        if target is not None:
            followed += 1
            if followed > _MAX_LINKS:
                return False
            if target.startswith(b"/"):
                return True
            at.pop()
            to_go += target.split(b"/")[::-1]
    return False
