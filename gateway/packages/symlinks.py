"""Checks symbolic links. Packages are unpacked on other machines, so no link may lead out of its package."""

from collections.abc import Mapping

from gateway.errors import ObjectUnusable
from gateway.packages.tree import shown

# As many links as Linux follows on one path: path_resolution(7).
_MAX_LINKS = 40


def check_links(links: Mapping[bytes, bytes]) -> None:
    """Raise `ObjectUnusable` for the first link that leads out of the tree. `links` has all of its links.

    Follow links as the kernel does: `a/..` is not the parent of `a` if `a` is a link. Dangling links and
    loops do not lead out.
    """
    for path, target in sorted(links.items()):
        if _leaves(path, links):
            raise ObjectUnusable(
                f"the link {shown(path)} leads out of the tree, to {shown(target)}: remove it, or list it in"
                " .vhignore"
            )


def _leaves(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    remaining = path.split(b"/")[::-1]
    at: list[bytes] = []
    followed = 0
    while remaining:
        step = remaining.pop()
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
            remaining += target.split(b"/")[::-1]
    return False
