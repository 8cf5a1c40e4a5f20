"""The warning about a webhook URL that the provider cannot reach."""

import pytest

from gateway.api.public_url import unreachable_hook

GITHUB = "git@github.com:acme/digits.git"


@pytest.mark.parametrize(
    ("base_url", "repository", "expected"),
    [
        ("http://127.0.0.1:8080", GITHUB, "github.com cannot reach 127.0.0.1, the host of the webhook URL"),
        ("http://[::1]:8080", "https://[2001:db8::7]/a/b", "2001:db8::7 cannot reach ::1"),
        ("http://localhost", "https://10.0.0.7/acme/digits", "10.0.0.7 cannot reach localhost"),
        (
            "https://10.1.2.3",
            GITHUB,
            "10.1.2.3, the host of the webhook URL, can be reached only from inside",
        ),
        ("https://pushgate.corp", "https://git.example.com/a/b.git", "if git.example.com is outside of it"),
        ("http://pushgate", GITHUB, "pushgate, the host of the webhook URL"),
        ("http://pushgate.default.svc:8080", GITHUB, "only from inside its private network"),
    ],
)
def test_a_webhook_url_of_this_machine_or_network_is_warned_of(
    base_url: str, repository: str, expected: str
) -> None:
    """The sentence names both hosts and the setting."""
    found = unreachable_hook(base_url, repository)
    assert found is not None
    assert expected in found
    assert "set PUSHGATE_PUBLIC_URL" in found


@pytest.mark.parametrize(
    ("base_url", "repository"),
    [
        ("https://pushgate.example.com", GITHUB),
        ("http://127.0.0.1:8080", "http://127.0.0.1:3000/acme/digits.git"),
        ("https://10.1.2.3", "https://10.0.0.7/acme/digits.git"),
        ("http://pushgate.default.svc", "git@gitea:acme/digits.git"),
    ],
)
def test_no_webhook_url_is_warned_of_that_the_provider_may_reach(base_url: str, repository: str) -> None:
    """A self-hosted provider may be on the same machine or network."""
    assert unreachable_hook(base_url, repository) is None
