"""Sends mail by SMTP, always encrypted."""

import smtplib
import socket
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from http import HTTPStatus
from typing import Literal

from gateway.errors import RemoteUnavailable
from gateway.provider_apis.client import Connector
from gateway.provider_apis.operation import ApiRefused, ApiUnavailable
from gateway.threads import MAIL

_SECONDS = 15.0
_PERMANENT = 500
_MAX_SAID = 200

Security = Literal["starttls", "tls"]
"""`starttls` encrypts an open connection, usually on port 587; `tls` begins encrypted, usually on 465."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """A mail server, and the account there; without `user`, it takes mail without one."""

    host: str
    port: int
    security: Security
    user: str | None = None
    password: str = field(default="", repr=False)


async def send_mail(mail: EmailMessage, server: MailServer, connector: Connector) -> None:
    """Send a mail. Raise `ApiUnavailable` if a retry may succeed, `ApiRefused` if it cannot."""
    try:
        address = await connector.checked_address("smtp", server.host, server.port)
    except RemoteUnavailable as error:
        raise ApiUnavailable(str(error)) from None
    await MAIL.run(_send, mail, server, address or server.host)


def _send(mail: EmailMessage, server: MailServer, address: str) -> None:
    try:
        context = ssl.create_default_context()
        with _connected(server, address, context) as smtp:
            if server.security == "starttls":
                smtp.starttls(context=context)
            if server.user is not None:
                smtp.login(server.user, server.password)
            refused = smtp.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise _failed(server, min(codes), f"it refuses {', '.join(error.recipients)}") from None
    except smtplib.SMTPResponseException as error:
        raise _failed(server, error.smtp_code, _text(error.smtp_error)) from None
    except smtplib.SMTPNotSupportedError as error:
        raise _failed(server, _PERMANENT, str(error)) from None
    except smtplib.SMTPException as error:
        raise ApiUnavailable(f"{server.host} broke off: {error}; try again later") from None
    except ssl.SSLError as error:
        raise ApiUnavailable(f"no TLS with {server.host}: {error.reason}") from None
    except OSError as error:
        raise ApiUnavailable(f"cannot reach {server.host} ({error}); try again later") from None
    if refused:
        # The others have it, so it must not be sent again.
        raise ApiRefused(f"{server.host} refuses {', '.join(refused)}", status=HTTPStatus.BAD_REQUEST)


def _connected(server: MailServer, address: str, context: ssl.SSLContext) -> smtplib.SMTP:
    """Return a connection to the address that was checked; the certificate is still that of the name."""
    if server.security == "tls":
        return _ImplicitTls(address, server, context)
    return _Plain(address, server)


class _Plain(smtplib.SMTP):
    def __init__(self, address: str, server: MailServer) -> None:
        self._address = address
        super().__init__(server.host, server.port, timeout=_SECONDS)

    def _get_socket(self, _host: str, port: int, timeout: float) -> socket.socket:
        return socket.create_connection((self._address, port), timeout)


class _ImplicitTls(smtplib.SMTP_SSL):
    def __init__(self, address: str, server: MailServer, context: ssl.SSLContext) -> None:
        self._address = address
        super().__init__(server.host, server.port, timeout=_SECONDS, context=context)

    def _get_socket(self, host: str, port: int, timeout: float) -> ssl.SSLSocket:
        plain = socket.create_connection((self._address, port), timeout)
        return self.context.wrap_socket(plain, server_hostname=host)


def _failed(server: MailServer, code: int, said: str) -> Exception:
    """Return the error of an answer of the server: 4xx is temporary, 5xx permanent."""
    text = f"{server.host} answered {code} ({said})"
    if code < _PERMANENT:
        return ApiUnavailable(f"{text}; try again later")
    return ApiRefused(text, status=code, said=said)


def _text(said: bytes | str) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:_MAX_SAID]
