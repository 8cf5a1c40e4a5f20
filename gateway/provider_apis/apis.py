"""The API clients of a process: which module speaks to which provider, and what they share."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from gateway.fetch.addresses import reachable_addresses
from gateway.provider_apis import azure_devops, bitbucket, bitbucket_server, gitea, github, gitlab, gogs
from gateway.provider_apis.budget import Budget, WriteLimit
from gateway.provider_apis.client import ApiClient, Identity, http_client
from gateway.provider_apis.delivery_log import DeliveryLog
from gateway.provider_apis.operation import Operation, T
from gateway.provider_apis.webhooks import ProviderApi, Scope

APIS: Mapping[str, ProviderApi] = {
    "azure-devops": azure_devops,
    "bitbucket": bitbucket,
    "bitbucket-server": bitbucket_server,
    "forgejo": gitea,
    "gitea": gitea,
    "github": github,
    "gitlab": gitlab,
    "gogs": gogs,
}
"""The API of each provider that has one."""

LOGS: Mapping[str, DeliveryLog] = {"github": github, "gitlab": gitlab}
"""The API of each provider that keeps a log of deliveries, and sends one again on request."""


def log_of(provider: str, scope: Scope) -> DeliveryLog | None:
    """Return the API of the log of a webhook, if it has one."""
    log = LOGS.get(provider)
    return log if log is not None and scope in log.LOG_SCOPES else None


class LimitedIdentity(Identity, Protocol):
    """An identity and the limits of its requests."""

    @property
    def requests_per_hour(self) -> int:
        """Return how many requests it may send to one host in an hour."""

    @property
    def write_limits(self) -> Sequence[WriteLimit]:
        """Return how many of them may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAddresses:
    """Connects only to addresses that git may connect to as well."""

    allow_loopback: bool

    async def checked_address(self, scheme: str, host: str, port: int) -> str | None:
        """Return the address to connect to, or None if a proxy resolves the host."""
        found = await reachable_addresses(scheme, host, port, allow_loopback=self.allow_loopback)
        return str(found[0]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApis:
    """Runs operations, and keeps the budget of each identity at each host."""

    connector: CheckedAddresses
    clock: Callable[[], float] = time.monotonic
    _budgets: dict[tuple[str, str, float], Budget] = field(default_factory=dict)

    async def run(self, operation: Operation[T], *, base_url: str, identity: LimitedIdentity) -> T:
        """Run an operation at an API as an identity. Raise `ApiUnavailable` or `ApiRefused`."""
        async with self.client(base_url=base_url, identity=identity) as client:
            return await client.run(operation)

    @asynccontextmanager
    async def client(
        self, *, base_url: str, identity: LimitedIdentity, share: float = 1.0
    ) -> AsyncIterator[ApiClient]:
        """Return a client for several operations, with at most a share of the identity's requests."""
        budget = self._budget(urlsplit(base_url).netloc, identity, 1.0)
        if share < 1:
            budget = self._budget(urlsplit(base_url).netloc, identity, share, whole=budget)
        async with http_client() as http:
            yield ApiClient(base_url, identity, http=http, connector=self.connector, budget=budget)

    def _budget(
        self, host: str, identity: LimitedIdentity, share: float, *, whole: Budget | None = None
    ) -> Budget:
        budget = Budget(
            identity.requests_per_hour,
            write_limits=identity.write_limits,
            share=share,
            whole=whole,
            clock=self.clock,
        )
        return self._budgets.setdefault((host, identity.name, share), budget)
