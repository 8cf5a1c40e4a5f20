"""Print as JSON what the image is made of: Python and its packages, and the packages of Debian.

It runs in the image, with the standard library only: `make sbom` sends it to the image's Python.
"""

import json
import platform
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def python_package(found: Distribution) -> dict[str, object]:
    """Return the name, version and licence, and the names of what it requires."""
    metadata = found.metadata
    classifiers = [
        one.rpartition(" :: ")[2]
        for one in metadata.get_all("Classifier", [])
        if one.startswith("License ::")
    ]
    text = metadata.get("License") or ""
    named = [text] if text and len(text) < 100 and "\n" not in text else classifiers  # noqa: PLR2004 - a name, no text
    expression = metadata.get("License-Expression")
    return {
        "name": metadata["Name"],
        "version": found.version,
        "licenses": [expression] if expression else named,
        "requires": [match[0] for one in found.requires or [] if (match := re.match(r"[\w.-]+", one))],
    }


def debian_packages(root: Path) -> list[dict[str, object]]:
    """Return the installed packages of the dpkg below `root`, with licences from their copyright files."""
    packages: list[dict[str, object]] = []
    for paragraph in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): *(.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            copyright_file = root / "usr/share/doc" / fields["Package"] / "copyright"
            text = copyright_file.read_text("utf-8", "replace") if copyright_file.is_file() else ""
            names = {one.strip() for one in re.findall(r"^License: *(.+)$", text, re.MULTILINE)}
            required = ",".join(fields.get(name, "") for name in ("Pre-Depends", "Depends"))
            packages.append(
                {
                    "name": fields["Package"],
                    "version": fields["Version"],
                    "architecture": fields["Architecture"],
                    "licenses": sorted(names),
                    "requires": re.findall(r"(?:^|[,|]) *([\w.+-]+)", required),
                }
            )
    return packages


def wheel_hashes(file: Path) -> dict[str, str]:
    """Return the SHA-256 of each wheel, by `NAME-VERSION` as in the file's name. The build wrote the file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {"-".join(name.split("-")[:2]): digest for digest, name in (line.split() for line in lines)}


def main() -> None:
    """Print the inventory of the environment in which this runs."""
    release = dict(
        re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    )
    inventory = {
        "python": platform.python_version(),
        "distribution": f"{release['ID']}-{release['VERSION_ID']}",
        "packages": [python_package(one) for one in distributions()],
        "hashes": wheel_hashes(Path(sys.prefix) / "wheels.sha256"),
        "debian": debian_packages(Path("/")),
    }
    print(json.dumps(inventory))  # noqa: T201 - the output


if __name__ == "__main__":
    main()
