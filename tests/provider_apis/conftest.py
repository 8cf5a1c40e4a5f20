"""Fixtures for the clients of providers' APIs."""

from pathlib import Path

import pytest

from testing.certificate import make_certificate


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the certificate of an authority."""
    return make_certificate(tmp_path_factory.mktemp("authority")).authority


@pytest.fixture(autouse=True)
def trusted(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust one authority: to read the system's takes most of the time of a short test."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
