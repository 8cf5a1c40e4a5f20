"""Rotates the tokens of identities, and warns of those that expire."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gateway.store import identities
from gateway.store.database import Database, Lock
from gateway.store.identities import Identity
from gateway.worker.token_rotation import TokenRotation

log = structlog.get_logger()

_WARN_BEFORE = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityExpiry:
    """Rotates tokens, and logs a warning for each identity that expires within 14 days, or has expired."""

    database: Database
    rotation: TokenRotation

    async def run(self, now: datetime) -> None:
        """Rotate, and log the warnings. Do nothing if another process is the leader."""
        if not await self.database.is_leader(Lock.RETENTION):
            return
        reasons = await self.rotation.rotate_due(now)
        for identity in await self.database.read(identities.expiring, before=now + _WARN_BEFORE):
            reason = reasons.pop(identity.id, None)
            if not identity.rotates or reason is not None:
                _warn(identity, now, reason)
        for identity in (await self.database.read(identities.of, ids=list(reasons))).values():
            log.warning("a token cannot be checked", identity=identity.name, reason=reasons[identity.id])


def _warn(identity: Identity, now: datetime, reason: str | None) -> None:
    is_over = identity.expires_at is not None and identity.expires_at <= now
    log.warning(
        "an identity has expired: renew its token"
        if is_over
        else "an identity expires soon: renew its token",
        identity=identity.name,
        provider=identity.provider,
        expires_at=identity.expires_at.isoformat() if identity.expires_at else None,
        reason=reason,
    )
