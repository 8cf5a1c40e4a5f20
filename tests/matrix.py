"""The tests with every supported Python that is on this machine: `python -m tests.matrix`, or `make matrix`.

Each interpreter gets a clone of the commit and a virtual environment of its own below build/matrix, and runs
the tests with only what the README requires: a minimal PATH, no variables but HOME and the settings of pip
and npm, and, where root runs it, an ordinary user. MATRIX="3.11.2 3.13" chooses interpreters by the
beginnings of their versions, and the arguments are pytest's.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "matrix"
# In addition to PATH: pyenv's, uv's and hand-made ones.
PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "/opt/*/bin",
    "/opt/*/*/bin",
    "~/.pyenv/versions/*/bin",
    "~/.local/share/uv/python/*/bin",
)
MINIMAL_PATH = "/usr/bin:/bin"
# Has no home, no group and no rights on any Linux.
_NOBODY = 65534
# The settings of pip and npm name mirrors and authorities, which they may need to reach an index. Some tests
# install generators of clients by them.
_OF_INSTALLERS = ("PIP_", "NPM_CONFIG_", "NODE_EXTRA_CA_CERTS")
_OF_NETWORK = ("SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python of this machine."""

    path: Path
    version: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The version, as the name of its folder."""
        return ".".join(map(str, self.version))


def interpreters(folders: Sequence[str]) -> list[Interpreter]:
    """Return the newest and the oldest of each minor version: patch releases differ in features."""
    found: dict[tuple[int, int, int], Interpreter] = {}
    for path in _programs(folders):
        version = _version(path)
        if version is not None and version[:2] >= OLDEST:
            found.setdefault(version, Interpreter(path=path, version=version))
    minors = sorted({version[:2] for version in found})
    chosen = {
        version
        for minor in minors
        for of_minor in [sorted(one for one in found if one[:2] == minor)]
        for version in (of_minor[0], of_minor[-1])
    }
    return [found[version] for version in sorted(chosen)]


def _programs(folders: Sequence[str]) -> Iterator[Path]:
    for pattern in folders:
        expanded = Path(pattern).expanduser()
        for folder in sorted(Path("/").glob(str(expanded).lstrip("/"))):
            yield from sorted(
                one for one in folder.glob("python3*") if re.fullmatch(r"python3(\.\d+)?", one.name)
            )


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return an interpreter's version; None if it is no Python, or cannot make an environment."""
    code = (
        "import ensurepip, sys, venv; print(*sys.version_info[:3]); sys.exit(sys.prefix != sys.base_prefix)"
    )
    try:
        done = subprocess.run(
            [path, "-c", code], capture_output=True, text=True, check=True, timeout=30, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, micro = map(int, done.stdout.split())
    return major, minor, micro


def run(interpreter: Interpreter, arguments: Sequence[str]) -> str:
    """Run the tests with it, and return a short result."""
    folder = FOLDER / interpreter.name
    shutil.rmtree(folder / "tree", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder / "tree")]
    subprocess.run(clone, check=True)
    (folder / "home").mkdir(exist_ok=True)
    user = _user(interpreter, folder)
    began = time.monotonic()
    make = ["make", f"PYTHON={interpreter.path}", f"VENV={folder / 'venv'}"]
    target = [f"{folder / 'venv'}/.dev"]
    if _run([*make, *target], folder, user, installs=True) != 0:
        return "could not be installed"
    # Users who may not install have everything already, or get a message that says what is missing.
    status = _run([*make, "test", f"PYTEST={' '.join(arguments)}"], folder, user)
    who = "as an ordinary user" if user else f"as uid {os.getuid()}"
    return f"{'passed' if status == 0 else 'FAILED'} {who} in {time.monotonic() - began:.0f} s"


def _user(interpreter: Interpreter, folder: Path) -> list[str]:
    """Return the command prefix that runs a command as an ordinary user; empty if that is impossible.

    Root changes the owner of the folder for that. An interpreter or tree in root's home is not accessible to
    other users.
    """
    if os.getuid() != 0:
        return []
    user = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    for reached in (interpreter.path.resolve(), folder):
        if subprocess.run([*user, "test", "-x", reached], check=False, cwd="/").returncode != 0:
            return []
    subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", folder], check=True)
    return user


def _run(command: Sequence[str], folder: Path, user: Sequence[str], *, installs: bool = False) -> int:
    passed_on = _OF_INSTALLERS + (_OF_NETWORK if installs else ())
    environment = {name: value for name, value in os.environ.items() if name.startswith(passed_on)}
    environment |= {"PATH": MINIMAL_PATH, "HOME": str(folder / "home")}
    return subprocess.run(
        [*user, *command], cwd=folder / "tree", env=environment, check=False, stdin=subprocess.DEVNULL
    ).returncode


def main(arguments: Sequence[str]) -> int:
    """Run all chosen interpreters, one after the other; return how many failed."""
    wanted = tuple(os.environ.get("MATRIX", "").split()) or ("3",)
    folders = [*PLACES, *os.environ.get("PATH", "").split(os.pathsep)]
    chosen = [one for one in interpreters(folders) if _is_wanted(one, wanted)]
    _say(f"Python {', '.join(one.name for one in chosen) or '(none found)'}")
    results = {}
    for interpreter in chosen:
        _say(f"\n== Python {interpreter.name}, {interpreter.path}")
        results[interpreter.name] = run(interpreter, arguments)
    _say("")
    for name, result in results.items():
        _say(f"{name:10} {result}")
    return sum("passed" not in result for result in results.values()) if results else 1


def _is_wanted(interpreter: Interpreter, wanted: Sequence[str]) -> bool:
    return any(f"{interpreter.name}.".startswith(f"{one}.") for one in wanted)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
