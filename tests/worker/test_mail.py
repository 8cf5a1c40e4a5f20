"""Mail over a real server: TLS, accounts, and which refusals are final."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.provider_apis.apis import CheckedAddresses
from gateway.provider_apis.operation import ApiRefused, ApiUnavailable
from gateway.worker.mail import MailServer, send_mail
from gateway.worker.notification_texts import as_mail, of_test
from testing.certificate import Certified, make_certificate
from testing.mail_server import PASSWORD, USER, Mailbox, mail_server
from testing.ports import free_ports
from testing.records import NOW

OPS, BOSS = "ops@example.org", "boss@example.org"


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """Return a certificate for 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("mail"))


@pytest.fixture(autouse=True)
def trusted(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the authority of that certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certified.authority))


@pytest.fixture
def mailbox(certified: Certified) -> Iterator[Mailbox]:
    """Serve mail with STARTTLS."""
    with mail_server(certified) as mailbox:
        yield mailbox


def server(mailbox: Mailbox) -> MailServer:
    """Return the server and the account."""
    return MailServer(host="127.0.0.1", port=mailbox.port, security="starttls", user=USER, password=PASSWORD)


def send(to: MailServer, *recipients: str, allow_loopback: bool = True) -> None:
    """Send a mail."""
    body = of_test("grün", base_url="https://pushgate.example", now=NOW)
    mail = as_mail([body], sender=USER, recipients=recipients or (OPS,), message_id="n1-1", now=NOW)
    asyncio.run(send_mail(mail, to, CheckedAddresses(allow_loopback=allow_loopback)))


def test_mail_arrives_with_starttls(mailbox: Mailbox) -> None:
    """In plain text, with a link, and marked so that nobody's absence is answered."""
    send(server(mailbox), OPS, BOSS)
    [mail] = mailbox.mails
    assert mail["Subject"] == "[Pushgate] A test of the notification channel grün"
    assert (mail["From"], mail["To"]) == (USER, f"{OPS}, {BOSS}")
    assert (mail["Message-ID"], mail["Auto-Submitted"]) == ("<n1-1@example.org>", "auto-generated")
    assert mail.get_content().splitlines() == [
        "A test of the notification channel grün",
        "If you can read this, notifications arrive here.",
        "https://pushgate.example/",
    ]


def test_mail_arrives_with_tls_from_the_start(certified: Certified) -> None:
    """As on port 465."""
    with mail_server(certified, is_implicit=True) as mailbox:
        send(replace(server(mailbox), security="tls"))
    assert len(mailbox.mails) == 1


def test_a_wrong_password_is_final(mailbox: Mailbox) -> None:
    """Nobody but the administrator can repair it."""
    with pytest.raises(ApiRefused, match=r"127\.0\.0\.1 answered 535") as refused:
        send(replace(server(mailbox), password="wrong"))
    assert "wrong" not in str(refused.value)


def test_an_answer_to_the_recipients_decides_whether_a_retry_can_help(mailbox: Mailbox) -> None:
    """4xx is temporary, 5xx permanent. Where somebody has it, it is not sent again."""
    mailbox.answers = {OPS: "450 mailbox busy"}
    with pytest.raises(ApiUnavailable, match=f"450 .it refuses {OPS}.; try again"):
        send(server(mailbox))
    mailbox.answers = {OPS: "550 no such user"}
    with pytest.raises(ApiRefused, match=f"550 .it refuses {OPS}"):
        send(server(mailbox))
    with pytest.raises(ApiRefused, match=f"refuses {OPS}"):
        send(server(mailbox), OPS, BOSS)
    assert len(mailbox.mails) == 1


def test_nothing_is_sent_without_tls(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor to a server whose certificate nobody here trusts, nor to an address that is forbidden."""
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(tmp_path).authority))
    with pytest.raises(ApiUnavailable, match=r"no TLS with 127\.0\.0\.1"):
        send(server(mailbox))
    with pytest.raises(ApiUnavailable, match="never connects to"):
        send(server(mailbox), allow_loopback=False)
    with pytest.raises(ApiUnavailable, match=r"cannot reach 127\.0\.0\.1"):
        send(replace(server(mailbox), port=free_ports(1)[0]))
    assert mailbox.mails == []
