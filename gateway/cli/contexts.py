"""The gateways that `pushgate login` has stored, each with its admin token, in one file of the user."""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gateway.errors import Invalid


@dataclass(frozen=True, slots=True)
class Context:
    """A gateway by its base URL, and the admin token for it."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The known contexts by name, and the name of the one that commands use."""

    current: str | None = None
    known: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """Return a context. Raises `Invalid`."""
        if name not in self.known:
            names = ", ".join(self.known) or "none: sign in with `pushgate login URL`"
            raise Invalid(f"there is no context {name}; known are {names}")
        return self.known[name]

    def added(self, name: str, context: Context) -> "Contexts":
        """Return these with one more, or a new one under this name, as the current one."""
        return Contexts(name, {**self.known, name: context})

    def using(self, name: str | None) -> "Contexts":
        """Return these with another current one, or none. Raises `Invalid`."""
        if name is not None:
            self.get(name)
        return replace(self, current=name)

    def without(self, name: str) -> "Contexts":
        """Return these without one. Raises `Invalid`."""
        self.get(name)
        known = {other: context for other, context in self.known.items() if other != name}
        return Contexts(None if self.current == name else self.current, known)

    def token_for(self, url: str) -> str | None:
        """Return the token of the context with this URL."""
        same = (context.token for context in self.known.values() if context.url == url.rstrip("/"))
        return next(same, None)


def contexts_file() -> Path | None:
    """Return the path of the file: `$XDG_CONFIG_HOME/pushgate/contexts.json`, by default in ~/.config.

    Returns None for a user without a home folder.
    """
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        folder = Path(home) if home else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "pushgate" / "contexts.json"


def stored_contexts() -> Contexts:
    """Return what is stored; none if there is no file. Raises `Invalid`."""
    path = contexts_file()
    if path is None:
        return Contexts()
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Contexts()
    if mode & 0o077:
        raise Invalid(f"{path} contains admin tokens, and others can read it: run `chmod 600 {path}`")
    try:
        stored = json.loads(text)
        known = {name: Context(one["url"], one["token"]) for name, one in stored["contexts"].items()}
        return Contexts(stored["current"], known).using(stored["current"])
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without the cause, which may contain a token.
        raise Invalid(f"{path} is damaged: delete it, and sign in again with `pushgate login URL`") from None


def store(contexts: Contexts) -> None:
    """Replace the file, whole or not at all; only its owner can read it. Raises `Invalid`."""
    path = contexts_file()
    if path is None:
        raise Invalid("contexts cannot be stored: you have no home folder; set XDG_CONFIG_HOME")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {name: asdict(context) for name, context in contexts.known.items()}
    # The temporary file has the mode 0600.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".contexts-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"current": contexts.current, "contexts": known}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
