"""Write the SBOM of the image, in CycloneDX, from the inventory that the image's own Python prints.

    python -m testing.sbom < inventory.json > sbom.json

`make sbom` runs both.
"""

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name


def sbom(inventory: dict[str, Any]) -> str:
    """Return the SBOM. Raises `ValueError` if it does not follow the schema of CycloneDX 1.6.

    A package depends on those packages of the image that it names, optional ones included.
    """
    debian, python = inventory["debian"], inventory["packages"]
    hashes = {_key(name): digest for name, digest in inventory["hashes"].items()}
    packages: dict[str, tuple[Component, list[str]]] = {
        canonicalize_name(one["name"]): (
            _python_component(one, hashes.get(_key(f"{one['name']}-{one['version']}"))),
            [canonicalize_name(name) for name in one["requires"]],
        )
        for one in python
    }
    root, _ = packages.pop("pushgate")
    root.type = ComponentType.APPLICATION
    interpreter = _interpreter(inventory["python"])
    bom = Bom()
    bom.metadata.component = root
    # Debian's names are apart from Python's: `python3-yaml` there is no `pyyaml` here.
    systems = {
        one["name"]: (_debian_component(one, inventory["distribution"]), one["requires"]) for one in debian
    }
    for named in (packages, systems):
        for component, required in named.values():
            bom.components.add(component)
            found = {name: named[name][0] for name in required if name in named}
            bom.register_dependency(component, found.values())
    bom.components.add(interpreter)
    bom.register_dependency(root, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the SBOM does not follow its schema: {error}")
    return text


def _key(name_and_version: str) -> str:
    """Return one spelling for a distribution and for its wheel, whose name has `_` for `-`."""
    return re.sub(r"[-_.]+", "-", name_and_version).lower()


def _python_component(package: dict[str, Any], digest: str | None) -> Component:
    """Return the component of an installed distribution, with the SHA-256 of the wheel."""
    purl = PackageURL("pypi", name=canonicalize_name(package["name"]), version=package["version"])
    component = _component(package, purl, licenses=package["licenses"])
    if digest is not None:
        component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
    return component


def _debian_component(package: dict[str, Any], distribution: str) -> Component:
    """Return the component of a package of Debian."""
    qualifiers = {"arch": package["architecture"], "distro": distribution}
    purl = PackageURL("deb", "debian", package["name"], package["version"], qualifiers)
    return _component(package, purl, licenses=package["licenses"])


def _interpreter(version: str) -> Component:
    """Return Python itself, which no package manager has installed, as scanners look for it."""
    purl = PackageURL("generic", name="python", version=version)
    component = _component({"name": "python", "version": version}, purl, licenses=["PSF-2.0"])
    component.cpe = f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"
    return component


def _component(package: dict[str, Any], purl: PackageURL, *, licenses: Iterable[str]) -> Component:
    factory = LicenseFactory()
    names = list(licenses)
    # An expression must be alone.
    found = (
        [factory.make_from_string(names[0])]
        if len(names) == 1
        else [factory.make_with_name(name) for name in names]
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=package["name"],
        version=package["version"],
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=found,
    )


def main() -> None:
    """Write the SBOM of the inventory on standard input to standard output."""
    print(sbom(json.load(sys.stdin)))  # noqa: T201 - the output


if __name__ == "__main__":
    main()
