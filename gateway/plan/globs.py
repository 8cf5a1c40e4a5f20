"""Globs over the names of branches and tags: `*` and `?` do not match a slash, `**` does.

Matched without regular expressions, in bounded time for any glob and any name.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

_PIECES = re.compile(r"\*\*+|\*|\?|[^*?]+")
# No ref can contain these (https://git-scm.com/docs/git-check-ref-format): such a glob matches nothing.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:\[\\]")


def check_glob(glob: str) -> str:
    """Return the glob, or raise `ValueError` if it can never match a name."""
    bare = glob.removeprefix("!")
    if not bare:
        raise ValueError("a glob is empty")
    if bare.startswith("refs/"):
        raise ValueError(f"{glob} has to be a short name, such as main or v1.0, without refs/")
    if found := _FORBIDDEN.search(bare):
        raise ValueError(
            f"{glob} contains {found[0]!r}, which no branch or tag can contain;"
            " globs support only * ** ? and !"
        )
    return glob


def matches(globs: Sequence[str], name: str) -> bool:
    """Return whether a name matches at least one glob and none of those that begin with `!`.

    If all globs are exclusions, every other name matches.
    """
    wanted = [glob for glob in globs if not glob.startswith("!")]
    if any(_matches_glob(glob[1:], name) for glob in globs if glob.startswith("!")):
        return False
    return not wanted or any(_matches_glob(glob, name) for glob in wanted)


def _matches_glob(glob: str, name: str) -> bool:
    """Return whether a name matches one glob.

    Track, piece by piece, every position in the name that the glob can have reached.
    """
    reached = {0}
    for piece in _pieces(glob):
        if piece.startswith("**"):
            reached = set(range(min(reached), len(name) + 1))
        elif piece == "*":
            reached = _within_part(reached, name)
        elif piece == "?":
            reached = {at + 1 for at in reached if at < len(name) and name[at] != "/"}
        else:
            reached = {at + len(piece) for at in reached if name.startswith(piece, at)}
        if not reached:
            return False
    return len(name) in reached


def _within_part(reached: set[int], name: str) -> set[int]:
    after: set[int] = set()
    for at in range(min(reached), len(name) + 1):
        if at in reached or (at - 1 in after and name[at - 1] != "/"):
            after.add(at)
    return after


@lru_cache(maxsize=1024)
def _pieces(glob: str) -> tuple[str, ...]:
    return tuple(_PIECES.findall(glob))
