"""People as payloads and commits name them, in the form in which they are searched."""

_MAX_LENGTH = 200


def person_key(name: str | None) -> str | None:
    """Return a name for comparisons that ignore case; None for no name."""
    folded = (name or "").strip().casefold()[:_MAX_LENGTH]
    return folded or None
