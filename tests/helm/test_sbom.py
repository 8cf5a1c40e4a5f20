"""The SBOM of the image, made of what is installed here."""

import importlib.util
import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from testing.sbom import sbom
from tests.helm.chart import ROOT

# It is no package: the image's own Python runs the file.
_SPEC = importlib.util.spec_from_file_location("inventory", ROOT / "docker" / "inventory.py")
assert _SPEC is not None
assert _SPEC.loader is not None
INVENTORY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(INVENTORY)

DIGEST = "ab" * 32
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12
Depends: libgcc-s1

Package: git
Status: install ok installed
Architecture: amd64
Version: 1:2.47.3-0+deb13u1
Pre-Depends: nothing-here
Depends: libc6 (>= 2.38), perl | libpcre2-8-0

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_the_sbom_follows_its_schema_and_names_every_package(tmp_path: Path) -> None:
    """With licences, hashes of wheels, and what depends on what; `sbom` validates it."""
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    copyright_file = tmp_path / "usr/share/doc/git/copyright"
    copyright_file.parent.mkdir(parents=True)
    copyright_file.write_text("Files: *\nLicense: GPL-2\n\nFiles: x/*\nLicense: ISC\n")
    wheels = tmp_path / "wheels.sha256"
    wheels.write_text(f"{DIGEST}  pydantic_core-{distribution('pydantic-core').version}-cp311-linux.whl\n")
    names = ("pushgate", "pydantic", "pydantic-core", "typing-extensions")
    text = sbom(
        {
            "python": "3.11.15",
            "distribution": "debian-13",
            "packages": [INVENTORY.python_package(distribution(name)) for name in names],
            "hashes": INVENTORY.wheel_hashes(wheels),
            "debian": INVENTORY.debian_packages(tmp_path),
        }
    )
    made: dict[str, Any] = json.loads(text)
    components = {one["purl"].partition("?")[0].rpartition("@")[0]: one for one in made["components"]}
    assert made["metadata"]["component"]["name"] == "pushgate"
    assert set(components) == {
        "pkg:generic/python",
        "pkg:pypi/pydantic",
        "pkg:pypi/pydantic-core",
        "pkg:pypi/typing-extensions",
        "pkg:deb/debian/git",
        "pkg:deb/debian/libc6",
    }
    core, git = components["pkg:pypi/pydantic-core"], components["pkg:deb/debian/git"]
    assert core["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert core["licenses"] == [{"license": {"id": "MIT"}}]
    assert [one["license"]["name"] for one in git["licenses"]] == ["GPL-2", "ISC"]
    depends = {one["ref"]: one.get("dependsOn", []) for one in made["dependencies"]}
    assert depends[git["bom-ref"]] == [components["pkg:deb/debian/libc6"]["bom-ref"]]
    assert core["bom-ref"] in depends[components["pkg:pypi/pydantic"]["bom-ref"]]
