"""The nodes of the broker: how they are connected to, and what their errors mean."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ProbableAuthenticationError,
)

from gateway.errors import BrokerUnavailable, PublishError, SettingError
from gateway.settings import Settings

T = TypeVar("T")

CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_HEARTBEAT_SECONDS = 15
_PORTS = {"amqp": 5672, "amqps": 5671}
_MAX_REASON_LENGTH = 300

# They log every failed attempt; relays and consumers log each outage once.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM form: the trusted CAs, and a client certificate for brokers that require one."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Tls":
        """Return the files that the settings name."""
        return cls(ca=settings.amqp_ca_file, certificate=settings.amqp_cert_file, key=settings.amqp_key_file)

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection. Raises `SettingError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(f"the broker's TLS files cannot be used: {error}") from error
        return context


class _Broker:
    """One address of the broker; `shown` is the part without secrets, for messages."""

    def __init__(self, url: str, tls: Tls) -> None:
        try:
            parts = urlsplit(url)
            self.shown = f"{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"
        except (ValueError, KeyError):
            # Without the cause, which may quote the URL and with it the password.
            raise SettingError(
                "the AMQP URL cannot be read; percent-encode special characters in its password"
            ) from None
        self.url = url
        self.virtual_host = unquote(parts.path[1:]) or "/"
        self.password = unquote(parts.password or "")
        self.context = tls.context() if parts.scheme == "amqps" else None
        self._heartbeat = parse_qs(parts.query).get("heartbeat", [str(_HEARTBEAT_SECONDS)])[0]

    async def connect(self) -> AbstractConnection:
        """Connect. Raises the library's exceptions."""
        url = aio_pika.connection.make_url(self.url, heartbeat=self._heartbeat)
        connection = aio_pika.Connection(
            url, ssl_context=self.context, client_properties={"connection_name": "pushgate"}
        )
        try:
            await connection.connect()
        except BaseException:
            # aio-pika's own `connect` leaves it open, and its finalizer fails on any thread but the loop's.
            await connection.close()
            raise
        return connection


class Brokers:
    """The nodes of a cluster, tried in turn; `within` is how many seconds an attempt may take."""

    def __init__(self, urls: str, tls: Tls, *, within: float = CONNECT_SECONDS) -> None:
        """Read the URLs, separated by commas. Raises `SettingError` if one, or a TLS file, cannot be read."""
        self._nodes = [_Broker(node.strip(), tls) for node in urls.split(",")]
        self._within = within

    @classmethod
    def of(cls, settings: Settings) -> "Brokers | None":
        """Return the nodes that the settings name; None without a broker. Raises `SettingError`."""
        url = settings.amqp_url
        return None if url is None else cls(url.get_secret_value(), Tls.of(settings))

    async def open(self, make: Callable[[AbstractConnection], Awaitable[T]]) -> T:
        """Connect to the first node on whose connection `make` succeeds, and return its result.

        A starting or failing node may refuse what another grants. Raises the first refusal, a `PublishError`;
        or, if no node can be reached, the last node's `BrokerUnavailable`.
        """
        failures: list[PublishError] = []
        for _ in self._nodes:
            try:
                async with self.talking():
                    return await make(await self._nodes[0].connect())
            except PublishError as error:
                failures.append(error)
                # The next attempt, now or after a lost connection, goes to the next node.
                self._nodes.append(self._nodes.pop(0))
        refusals = [error for error in failures if not isinstance(error, BrokerUnavailable)]
        raise (refusals or failures[-1:])[0]

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Translate the library's exceptions in the block into `PublishError`, and bound its time."""
        node = self._nodes[0]
        try:
            async with asyncio.timeout(self._within):
                yield
        except (ProbableAuthenticationError, AuthenticationError) as error:
            raise PublishError(f"the broker at {node.shown} refuses the user or the password") from error
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"the broker at {node.shown} does not answer within {self._within:g} s"
            ) from error
        except CONNECTION_EXCEPTIONS as error:
            if "Connection.Close" in str(error):
                # The answer to our Connection.Open; aiormq passes on no more of it.
                raise PublishError(
                    f"the broker at {node.shown} does not open the virtual host {node.virtual_host!r}:"
                    " it does not exist, is down, or this user has no access"
                ) from error
            raise BrokerUnavailable(
                f"the broker at {node.shown} cannot be reached: {self.text(error)}"
            ) from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise BrokerUnavailable(f"the broker at {node.shown} closed the connection") from None

    def text(self, error: BaseException) -> str:
        """Return the broker's or the network's message, on one line and without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        for password in filter(None, (node.password for node in self._nodes)):
            text = text.replace(password, "***")
        return text[:_MAX_REASON_LENGTH]


async def close(connection: AbstractConnection) -> None:
    """Close a connection; ignore errors, because the broker may be gone."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError):
        return


def is_cancelled() -> bool:
    """Return whether this task was cancelled; the library also cancels waits on what it closes."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
