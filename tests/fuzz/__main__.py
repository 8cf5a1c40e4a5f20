"""Fuzz: `python -m tests.fuzz --seconds 600` all targets in turn, `… TARGET --seconds 60` one.

Findings are in build/fuzz/, with the inputs that reached new code, from which the next run continues.
`python -m tests.fuzz TARGET FILE` reproduces a finding, without a fuzzer.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path("build/fuzz")
TARGETS = ("webhooks", "parsers", "proofs", "urls", "keys", "ignore", "manifests", "triggers")
# Longer than any seed; an input that takes longer than this to read is a finding as well.
_LONGEST = 8192
_SECONDS_FOR_ONE = 30
_MEGABYTES = 2048


def main() -> int:
    """Return the number of targets with findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    if asked.file is not None:
        play(asked.target, asked.file)
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris has no wheel for this Python or machine: there is nothing to fuzz with")
    names = TARGETS if asked.target is None else (asked.target,)
    return sum(finds(name, asked.seconds / len(names), asked.folder) for name in names)


def finds(name: str, seconds: float, folder: Path) -> bool:
    """Fuzz one target in a process of its own, forked from this one; return whether it found anything.

    So the code is instrumented once for all targets: that takes ten seconds.
    """
    instrument()
    process = os.fork()
    if process == 0:
        fuzz(name, seconds, folder)
    _, status = os.waitpid(process, 0)
    return status != 0


def instrument() -> None:
    """Import the targets so that the fuzzer sees which code an input reaches."""
    import atheris  # noqa: PLC0415 - not for every machine

    with atheris.instrument_imports(include=["gateway", "providers", "valohai_yaml"]):
        importlib.import_module("tests.fuzz.targets")


def play(name: str, file: Path) -> None:
    """Run a target on one input."""
    from tests.fuzz.targets import TARGETS as BY_NAME  # noqa: PLC0415 - only once it is needed

    BY_NAME[name].run(file.read_bytes())


def fuzz(name: str, seconds: float, folder: Path) -> None:
    """Fuzz one target. Does not return: the fuzzer ends the process, with 0 if nothing was found."""
    import atheris  # noqa: PLC0415 - not for every machine

    from tests.fuzz.targets import TARGETS as BY_NAME  # noqa: PLC0415 - instrumented by now

    own = BY_NAME[name]
    seeds, kept = folder / name / "seeds", folder / name / "kept"
    for one in (seeds, kept):
        one.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(own.seeds()):
        (seeds / f"{number:03}").write_bytes(seed)
    options = {
        "max_total_time": max(1, round(seconds)),
        "max_len": _LONGEST,
        "timeout": _SECONDS_FOR_ONE,
        "report_slow_units": _SECONDS_FOR_ONE,
        "rss_limit_mb": _MEGABYTES,
        "artifact_prefix": f"{folder / name}/found-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([f"fuzz {name}", *flags, str(kept), str(seeds)], own.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
