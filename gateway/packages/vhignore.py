"""Matches paths against `.vhignore`: patterns in git's syntax, matched as `git check-ignore` matches them.

Pure: bytes in, results out. Paths are bytes, relative to the root of the tree, with `/` between their parts.
The syntax: https://git-scm.com/docs/gitignore#_pattern_format. A property test compares every result with
`git check-ignore`, which decides where the documentation is silent.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_RULES_BYTES = 64 * 1024
"""The size in bytes of the largest `.vhignore` that is read."""

_SPECIAL = frozenset(b"*?[\\")
_STAR, _QUESTION, _OPEN, _CLOSE, _BACKSLASH, _SLASH = b"*?[]\\/"
_BANG, _CARET, _DASH, _COLON = b"!^-:"
_CLASSES = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": b" \\t",
    b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9",
    b"graph": b"!-~",
    b"lower": b"a-z",
    b"print": b" -~",
    b"punct": b"!-/:-@\\[-`{-~",
    # Git has its own: no vertical tab, no form feed.
    b"space": b" \\t\\n\\r",
    b"upper": b"A-Z",
    b"xdigit": b"0-9A-Fa-f",
}


class _NeverMatches(Exception):
    """A malformed pattern: git keeps it, but it matches nothing."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[bytes]
    negated: bool
    folders_only: bool
    by_name: bool


class Rules:
    """The rules of one `.vhignore`. Results for folders are cached: use an instance for one tree only."""

    def __init__(self, text: bytes) -> None:
        """Read the rules; like git, accept any bytes."""
        self._patterns = [pattern for line in _lines(text) if (pattern := _pattern(line)) is not None]
        self._patterns.reverse()  # the last matching pattern wins
        self._folders: dict[bytes, bool] = {}

    def ignores(self, path: bytes, *, is_folder: bool = False) -> bool:
        """Return whether a file, link or folder is ignored. Everything in an ignored folder is."""
        if not self._patterns:
            return False
        end = path.find(b"/")
        while end >= 0:
            if self._ignores_folder(path[:end]):
                return True
            end = path.find(b"/", end + 1)
        return self._ignores_folder(path) if is_folder else self._matches(path, is_folder=False)

    def _ignores_folder(self, path: bytes) -> bool:
        """Return whether a folder is ignored; its parent folders are not."""
        found = self._folders.get(path)
        if found is None:
            found = self._folders[path] = self._matches(path, is_folder=True)
        return found

    def _matches(self, path: bytes, *, is_folder: bool) -> bool:
        name = path.rpartition(b"/")[2]
        for pattern in self._patterns:
            if (is_folder or not pattern.folders_only) and pattern.regex.fullmatch(
                name if pattern.by_name else path
            ):
                return not pattern.negated
        return False


def _lines(text: bytes) -> Iterator[bytes]:
    for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if not line.startswith(b"#"):
            yield _without_trailing_spaces(line.removesuffix(b"\r").partition(b"\0")[0])


def _without_trailing_spaces(line: bytes) -> bytes:
    """Remove the trailing spaces, except a space after a backslash."""
    bare = line.rstrip(b" ")
    backslashes = len(bare) - len(bare.rstrip(b"\\"))
    return line[: len(bare) + 1] if backslashes % 2 else bare


def _pattern(line: bytes) -> _Pattern | None:
    negated = line.startswith(b"!")
    body = line[1:] if negated else line
    folders_only = body.endswith(b"/")
    if folders_only:
        body = body[:-1]
    by_name = b"/" not in body
    try:
        regex = _translate(body) if by_name else _translate_path(body.removeprefix(b"/"))
    except _NeverMatches:
        return None
    return _Pattern(re.compile(regex, re.DOTALL), negated, folders_only, by_name)


def _translate_path(body: bytes) -> bytes:
    """Translate a pattern with a slash in it.

    Git compares the text before the first special character literally, and the rest as a pattern of its own.
    The asterisks of `a**/b` are therefore at the beginning of a pattern, and match any folders.
    """
    plain = next((at for at, byte in enumerate(body) if byte in _SPECIAL), len(body))
    return re.escape(body[:plain]) + _translate(body[plain:])


def _translate(body: bytes) -> bytes:
    """Return a regular expression that takes at most quadratic time for any pattern and path.

    Each asterisk but the last may stop at the first match of the text after it (as in Python's fnmatch),
    because the next asterisk matches the rest. The same holds for `**`.
    """
    blocks: list[tuple[bytes, list[list[bytes]]]] = [(b"", [[]])]
    for kind, part in _tokens(body):
        if kind == "deep":
            blocks.append((part, [[]]))
        elif kind == "star":
            blocks[-1][1].append([])
        else:
            blocks[-1][1][-1].append(part)
    return b"".join(
        _block(deep, parts, last=block is blocks[-1]) for block in blocks for deep, parts in [block]
    )


def _block(deep: bytes, parts: list[list[bytes]], *, last: bool) -> bytes:
    texts = [b"".join(part) for part in parts]
    made = texts[0]
    for text in texts[1:-1]:
        made += b"(?>[^/]*?" + text + b")"
    if len(texts) > 1:
        made += b"[^/]*" + texts[-1]
    if not deep or last:
        return deep + made
    return b"(?>" + deep.replace(b".*", b".*?").replace(b")?", b")??") + made + b")"


def _tokens(body: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(body):
        byte = body[at]
        if byte == _STAR:
            end = at
            while end < len(body) and body[end] == _STAR:
                end += 1
            token, at = _stars(body, at, end)
            yield token
        elif byte == _QUESTION:
            yield "one", b"[^/]"
            at += 1
        elif byte == _OPEN:
            made, at = _bracket(body, at + 1)
            yield "one", made
        else:
            if byte == _BACKSLASH:
                at += 1
                if at == len(body):
                    raise _NeverMatches
            yield "one", re.escape(body[at : at + 1])
            at += 1


def _stars(body: bytes, at: int, end: int) -> tuple[tuple[str, bytes], int]:
    """Return the token for asterisks, and the position after them."""
    rest = body[end:]
    is_deep = end - at > 1 and (at == 0 or body[at - 1] == _SLASH)
    if is_deep and rest.startswith(b"/"):
        return ("deep", b"(?:.*/)?"), end + 1
    if is_deep and (not rest or rest.startswith(b"\\/")):
        return ("deep", b".*"), end
    return ("star", b""), end


def _bracket(body: bytes, at: int) -> tuple[bytes, int]:
    """Return the character class after a bracket, and the position after it."""
    negated = at < len(body) and body[at] in (_BANG, _CARET)
    at += negated
    members: list[bytes] = []
    before: int | None = None
    first = True
    while first or _byte(body, at) != _CLOSE:
        first = False
        byte = _byte(body, at)
        if byte == _OPEN and body[at + 1 : at + 2] == b":":
            end = body.find(b"]", at + 2)
            if end < 0:
                raise _NeverMatches
            if body[end - 1] == _COLON and end - 1 >= at + 2:
                members.append(_named(body[at + 2 : end - 1]))
                before, at = None, end + 1
                continue
        if byte == _DASH and before is not None and body[at + 1 : at + 2] not in {b"", b"]"}:
            low, (high, at) = before, _literal(body, at + 1)
            if low <= high:
                members.append(_escape(low) + b"-" + _escape(high))
            before = None
            continue
        before, at = _literal(body, at)
        members.append(_escape(before))
    inside = b"".join(members)
    if negated:
        return b"[^/" + inside + b"]", at + 1
    return b"(?!/)[" + inside + b"]" if inside else b"(?!)", at + 1


def _named(name: bytes) -> bytes:
    if name not in _CLASSES:
        raise _NeverMatches
    return _CLASSES[name]


def _literal(body: bytes, at: int) -> tuple[int, int]:
    if _byte(body, at) == _BACKSLASH:
        at += 1
    return _byte(body, at), at + 1


def _byte(body: bytes, at: int) -> int:
    if at >= len(body):
        raise _NeverMatches
    return body[at]


def _escape(byte: int) -> bytes:
    return b"\\x%02x" % byte
