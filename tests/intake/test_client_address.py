"""Source networks: which addresses may send, and which proxies are trusted."""

from pathlib import Path

import pytest

from gateway.intake.client_address import client_address
from testing.service import Project, Service, run_pushgate


def test_source_networks_are_kept(service: Service, project: Project) -> None:
    """A connection with source networks refuses all other addresses, even with its secret."""
    elsewhere = service.connect(project.url, networks=["192.0.2.0/24", "2001:db8::/32"])
    here = service.connect(project.url, networks=["127.0.0.0/8"])
    body = project.payload(None, project.first)
    status, answer = service.deliver(elsewhere, body, x_forwarded_for="192.0.2.7")
    assert (status, answer["detail"]) == (401, "the address 127.0.0.1 is not in this connection's networks")
    assert service.deliver(here, body)[0] == 202
    assert service.api.get("/deliveries", connection=elsewhere["id"])["items"] == []


def test_a_trusted_proxy_is_believed(tmp_path: Path, project: Project) -> None:
    """The entry that the proxy has written counts, and nothing before it."""
    with Service(tmp_path / "data", TRUSTED_PROXIES="1") as service:
        made = service.connect(project.url, networks=["192.0.2.0/24"])
        body = project.payload(None, project.first)
        assert service.deliver(made, body, x_forwarded_for="192.0.2.7, 198.51.100.1")[0] == 401
        assert service.deliver(made, body, x_forwarded_for="198.51.100.1, 192.0.2.7")[0] == 202


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "192.0.2.7", "127.0.0.1"),
        (1, "192.0.2.7", "192.0.2.7"),
        (1, "[2001:db8::7]:4711", "2001:db8::7"),
        (1, "2001:db8::7", "2001:db8::7"),
        (1, "192.0.2.7:4711", "192.0.2.7"),
        (1, "::ffff:192.0.2.7", "192.0.2.7"),
        (1, "192.0.2.7, 198.51.100.1", "198.51.100.1"),
        (2, "192.0.2.7, 198.51.100.1", "192.0.2.7"),
        (2, "203.0.113.9, 192.0.2.7, 198.51.100.1", "192.0.2.7"),
        (2, "192.0.2.7", None),
        (1, "", None),
        (1, "nonsense", None),
    ],
)
def test_the_address_is_read_from_the_right(proxies: int, forwarded: str, address: str | None) -> None:
    """Skip as many entries from the right as we have proxies; None if the address is unknown."""
    scope = {"client": ("127.0.0.1", 4711)}
    found = client_address(scope, {"x-forwarded-for": forwarded}, trusted_proxies=proxies)
    assert (str(found) if found else None) == address


def test_a_peer_without_an_address_has_none() -> None:
    """As on a Unix socket."""
    assert client_address({"client": None}, {}, trusted_proxies=0) is None


def test_a_network_that_is_none_is_refused(service: Service) -> None:
    """When the connection is made, with a sentence that names the fault."""
    done = run_pushgate(
        "connect", "https://github.example/a/b.git", "--provider", "github", "--project", "p",
        "--network", "192.0.2.1/99", service=service,
    )  # fmt: skip
    assert done.returncode == 1
    assert "networks" in done.stderr
