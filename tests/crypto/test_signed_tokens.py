"""Signed tokens: what a token allows, and for how long."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.crypto.signed_tokens import SignedToken, SignedTokens

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
DAY = timedelta(days=1)
TOKENS = SignedTokens(b"k" * 32, valid=DAY)


def test_a_token_is_valid_until_the_second_in_which_it_expires() -> None:
    """From that second on it is refused, as its `expires` states."""
    token = TOKENS.issue("a package", now=NOW)
    assert token.expires == str(int((NOW + DAY).timestamp()))
    for later in (timedelta(), DAY / 2, DAY - timedelta(seconds=1)):
        assert TOKENS.is_valid("a package", token, now=NOW + later)
    for later in (DAY, DAY + timedelta(seconds=1), 2 * DAY):
        assert not TOKENS.is_valid("a package", token, now=NOW + later)


def test_a_token_that_was_changed_or_signed_elsewhere_is_refused() -> None:
    """The signature covers the expiry and the subject."""
    token = TOKENS.issue("a package", now=NOW)
    assert not TOKENS.is_valid("another", token, now=NOW)
    assert not TOKENS.is_valid("a package", replace(token, expires=str(int(token.expires) + 1)), now=NOW)
    assert not TOKENS.is_valid("a package", replace(token, signature="0" * 64), now=NOW)
    assert not SignedTokens(b"x" * 32, valid=DAY).is_valid("a package", token, now=NOW)


@pytest.mark.parametrize(
    "expires", ["", "-1", "1e9", "never", "\u0661" * 10, "\u00b2" * 10, "9" * 13, "9" * 5000]
)
def test_a_time_that_is_no_number_of_seconds_is_refused(expires: str) -> None:
    """Even a signed one: no input raises an error or takes long to read."""
    signed = SignedToken(expires, TOKENS._sign("a package", expires))  # noqa: SLF001 - nobody else can sign it
    assert not TOKENS.is_valid("a package", signed, now=NOW)


def test_a_token_may_be_valid_for_thousands_of_years() -> None:
    """An expiry of twelve digits is accepted."""
    signed = SignedToken("9" * 12, TOKENS._sign("a package", "9" * 12))  # noqa: SLF001 - nobody lives to issue it
    assert TOKENS.is_valid("a package", signed, now=NOW)
