"""Signed tickets: what one is good for, and for how long."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.crypto.signed_tokens import Ticket, Tickets

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
DAY = timedelta(days=1)
TICKETS = Tickets(b"k" * 32, valid=DAY)


def test_a_ticket_holds_until_the_second_in_which_it_ends() -> None:
    """From then on it is refused, as its holder was told when it was issued."""
    ticket = TICKETS.issue("a package", now=NOW)
    assert ticket.expires == str(int((NOW + DAY).timestamp()))
    for later in (timedelta(), DAY / 2, DAY - timedelta(seconds=1)):
        assert TICKETS.holds("a package", ticket, now=NOW + later)
    for later in (DAY, DAY + timedelta(seconds=1), 2 * DAY):
        assert not TICKETS.holds("a package", ticket, now=NOW + later)


def test_a_ticket_that_was_changed_or_signed_elsewhere_is_refused() -> None:
    """Its time, its signature and its subject hold together."""
    ticket = TICKETS.issue("a package", now=NOW)
    assert not TICKETS.holds("another", ticket, now=NOW)
    assert not TICKETS.holds("a package", replace(ticket, expires=str(int(ticket.expires) + 1)), now=NOW)
    assert not TICKETS.holds("a package", replace(ticket, signature="0" * 64), now=NOW)
    assert not Tickets(b"x" * 32, valid=DAY).holds("a package", ticket, now=NOW)


@pytest.mark.parametrize(
    "expires", ["", "-1", "1e9", "never", "\u0661" * 10, "\u00b2" * 10, "9" * 13, "9" * 5000]
)
def test_a_time_that_is_no_number_of_seconds_is_refused(expires: str) -> None:
    """Even where it is signed: no input raises an error or takes long to read."""
    signed = Ticket(expires, TICKETS._sign("a package", expires))  # noqa: SLF001 - nobody else can sign it
    assert not TICKETS.holds("a package", signed, now=NOW)


def test_a_ticket_may_be_valid_for_thousands_of_years() -> None:
    """Twelve digits of seconds are taken."""
    signed = Ticket("9" * 12, TICKETS._sign("a package", "9" * 12))  # noqa: SLF001 - nobody lives to issue it
    assert TICKETS.holds("a package", signed, now=NOW)
