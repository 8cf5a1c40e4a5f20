"""Warns of identities before their tokens expire."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gateway.store import identities
from gateway.store.database import Database, Lock

log = structlog.get_logger()

_WARN_BEFORE = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityExpiry:
    """Logs a warning for each identity whose token expires within 14 days, or has expired."""

    database: Database

    async def run(self, now: datetime) -> None:
        """Log the warnings. Do nothing if another process is the leader."""
        if not await self.database.is_leader(Lock.RETENTION):
            return
        for identity in await self.database.read(identities.expiring, before=now + _WARN_BEFORE):
            is_over = identity.expires_at is not None and identity.expires_at <= now
            log.warning(
                "an identity has expired: renew its token"
                if is_over
                else "an identity expires soon: renew its token",
                identity=identity.name,
                provider=identity.provider,
                expires_at=identity.expires_at.isoformat() if identity.expires_at else None,
            )
