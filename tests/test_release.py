"""The version of a release stands in several files, which agree."""

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def project_version() -> str:
    """Return the version in pyproject.toml."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert isinstance(found, str)
    return found


def test_the_installed_version_is_that_of_the_project() -> None:
    """It is what `pushgate --version` and the OpenAPI document show."""
    assert version("pushgate") == project_version()


def test_the_changelog_begins_with_the_version() -> None:
    """Its newest release has a date, and the entries of the next release stand above it."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(project_version())}\] - \d{{4}}-\d\d-\d\d", headings[1])


@pytest.mark.parametrize("key", ["version", "appVersion"])
def test_the_chart_installs_the_version(key: str) -> None:
    """Chart and application are released together."""
    chart = yaml.safe_load((ROOT / "helm" / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart[key] == project_version()


def test_the_documents_name_the_version() -> None:
    """The OpenAPI document, and the image on the page about Kubernetes."""
    openapi = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert openapi["info"]["version"] == project_version()
    kubernetes = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert set(re.findall(r"pushgate:(\d+\.\d+\.\d+)", kubernetes)) == {project_version()}
