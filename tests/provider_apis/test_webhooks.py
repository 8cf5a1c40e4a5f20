"""Which webhooks are ours, and what brings them in order."""

from dataclasses import replace

import pytest

from gateway.provider_apis.webhooks import RegisteredWebhook, Webhook, compare

WANTED = Webhook(url="https://gate.example/hooks/c1", secret="s", events=frozenset({"push", "tag"}))
GOOD = RegisteredWebhook(id="1", url=WANTED.url, events=WANTED.events, has_secret=True)
FOREIGN = RegisteredWebhook(id="9", url="https://other.example/hooks/c1", events=frozenset({"push"}))


def test_a_webhook_in_order_needs_nothing() -> None:
    """It may have more events than are needed; a foreign one is no concern of ours."""
    more = replace(GOOD, events=GOOD.events | {"star"})
    found = compare([FOREIGN, more], WANTED)
    assert (found.differences, found.keep, found.remove) == ((), more, ())


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"is_active": False}, "switched off"),
        ({"url": "http://gate.example/hooks/c1"}, "wrong URL"),
        ({"url": "https://gate.example:8443/hooks/c1/"}, "wrong URL"),
        ({"url": "https://old.example/hooks/c1"}, "wrong URL"),
        ({"has_secret": False}, "no secret"),
        ({"events": frozenset({"push"})}, "missing events"),
        ({"is_filtered": True}, "branch filter"),
    ],
)
def test_each_difference_is_named(changes: dict[str, object], difference: str) -> None:
    """The webhook is kept, and changed."""
    changed = replace(GOOD, **changes)  # type: ignore[arg-type]
    found = compare([FOREIGN, changed], WANTED, earlier_urls=["https://old.example/hooks/c1"])
    assert (found.keep, found.remove, found.differences) == (changed, (), (difference,))


def test_a_secret_in_the_field_for_plain_ones_is_found() -> None:
    """A signing secret has to sign; for a plain one there is nothing else."""
    plain = replace(GOOD, has_signing_secret=False)
    signing = replace(WANTED, secret="whsec_c2VjcmV0")
    assert compare([plain], signing).differences == ("wrong secret",)
    assert compare([plain], WANTED).differences == ()
    assert compare([replace(plain, has_signing_secret=True)], signing).differences == ()


def test_a_missing_webhook_is_created() -> None:
    """Also where there are only foreign ones."""
    assert compare([FOREIGN], WANTED).differences == ("missing",)
    assert compare([FOREIGN], WANTED).keep is None


def test_of_doubled_webhooks_the_best_is_kept() -> None:
    """The others are removed, and no foreign one."""
    off = replace(GOOD, id="2", is_active=False)
    found = compare([off, FOREIGN, GOOD], WANTED)
    assert (found.keep, found.remove, found.differences) == (GOOD, (off,), ("doubled",))
