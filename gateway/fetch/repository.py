"""The files of a bare repository, without starting git: https://git-scm.com/docs/gitrepository-layout."""

import re
from pathlib import Path

_OBJECT_FORMAT = re.compile(rb"^\s*objectformat\s*=\s*(\w+)", re.IGNORECASE | re.MULTILINE)


def make_repository(folder: Path, hash_function: str) -> None:
    """Make an empty bare repository, as `git init` does."""
    version, extensions = 0, ""
    if hash_function != "sha1":
        version, extensions = 1, f"[extensions]\n\tobjectformat = {hash_function}\n"
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (folder / name).mkdir(parents=True)
    config = f"[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = true\n{extensions}"
    (folder / "config").write_text(config, encoding="utf-8")
    (folder / "HEAD").write_text("ref: refs/heads/master\n", encoding="utf-8")


def object_format(mirror: Path) -> str | None:
    """Return the object format of a mirror, or None if there is no mirror; we wrote its configuration."""
    if not (mirror / "HEAD").exists():
        return None
    try:
        found = _OBJECT_FORMAT.search((mirror / "config").read_bytes())
    except OSError:
        return "sha1"  # a broken mirror: git finds that as well
    return found[1].decode() if found else "sha1"
