"""Which verdicts the sender leaves alone for a time, because of what their servers have answered.

In memory, because one process sends: to postpone thousands of rows takes a second. The next leader learns it
from one answer each.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gateway.backoff import backoff
from gateway.provider_apis.posting import origin
from gateway.store.status_tasks import Claimed, Except
from providers.clone_urls import host_of

# A server may fail at one commit alone, which must not delay the others for long.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 10.0
# Tasks that may wait for servers that have failed: the others are for those that answer.
_MAX_SUSPECTS = 2


@dataclass(slots=True)
class _Failures:
    """Failures in a row, and until when nothing is sent."""

    count: int
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """The identities whose limit is reached, and the servers that have failed.

    A server that has failed gets one request at a time, until it answers.
    """

    clock: Callable[[], float] = time.monotonic
    _limits: dict[str, float] = field(default_factory=dict)
    _servers: dict[str, _Failures] = field(default_factory=dict)

    def limited(self, claimed: Claimed, seconds: float) -> None:
        """Send nothing as this identity, or to this receiver, for so long."""
        limit = _server_of(claimed) if claimed.identity is None else claimed.identity.identity.id
        self._limits[limit] = self.clock() + seconds

    def failed(self, claimed: Claimed) -> None:
        """Leave a server alone, for longer with each failure."""
        server = _server_of(claimed)
        count = self._servers[server].count + 1 if server in self._servers else 1
        pause = backoff(count - 1, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._servers[server] = _Failures(count=count, until=self.clock() + pause)

    def answered(self, claimed: Claimed) -> None:
        """Forget the failures of a server."""
        self._servers.pop(_server_of(claimed), None)

    def excluded(self, under_way: Collection[Claimed]) -> Except:
        """Return what is not to be sent while some verdicts are under way."""
        now = self.clock()
        for limit in [limit for limit, until in self._limits.items() if until <= now]:
            del self._limits[limit]
        suspects = {_server_of(one) for one in under_way} & self._servers.keys()
        is_full = len(suspects) >= _MAX_SUSPECTS
        servers = {
            server
            for server, failures in self._servers.items()
            if failures.until > now or is_full or server in suspects
        }
        names = servers | self._limits.keys()
        return Except(
            connections=[one.connection.id for one in under_way],
            identities=[name for name in self._limits if "://" not in name],
            hosts=[server for server in servers if "://" not in server],
            receivers=[name for name in names if "://" in name],
        )


def _server_of(claimed: Claimed) -> str:
    """Return the origin of a receiver, or the host of a connection."""
    if claimed.receiver is not None:
        return origin(claimed.receiver.url)
    return host_of(claimed.connection.url)
