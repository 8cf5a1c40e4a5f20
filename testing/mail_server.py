"""A mail server that requires TLS and an account, and keeps the mails that it takes."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from testing.certificate import Certified
from testing.ports import free_ports

USER, PASSWORD = "pushgate@example.org", "canary-mail-5d1f"


@dataclass(slots=True)
class Mailbox:
    """The `mails` of the server at `port`. `answers` are the server's to a recipient, by the address."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)

    async def handle_RCPT(  # noqa: N802 - the library's interface
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient, or answer what a test wants."""
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - the same
        """Keep a mail."""
        content: Any = envelope.content
        self.mails.append(message_from_bytes(content, policy=policy.default))
        return "250 Message accepted for delivery"


@contextmanager
def mail_server(certified: Certified, *, is_implicit: bool = False) -> Iterator[Mailbox]:
    """Serve mail within the block, with STARTTLS or with TLS from the start."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certified.certificate, certified.key)
    mailbox = Mailbox(port=free_ports(1)[0])
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=mailbox.port,
        ssl_context=context if is_implicit else None,
        tls_context=None if is_implicit else context,
        require_starttls=not is_implicit,
        authenticator=_authenticate,
        # The library does not see that TLS is around it.
        auth_required=not is_implicit,
        auth_require_tls=not is_implicit,
    )
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _how: str, given: Any) -> AuthResult:
    is_right = isinstance(given, LoginPassword) and (given.login, given.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    # Not handled yet: the library answers.
    return AuthResult(success=is_right, handled=False)
