"""What the recorded facts of a connection mean for its health, and how the API lists it."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.store.connection_facts import ConnectionFacts
from gateway.store.connections import SecretDates
from gateway.store.identities import Identity
from gateway.store.other_repositories import OtherRepository
from gateway.store.reconciliations import ReconciliationState, Silence
from gateway.store.refusals import Refusal
from gateway.store.registrations import Registration
from gateway.worker.connection_health import STATES, health
from testing.records import NOW, made


def ago(**span: float) -> datetime:
    """Return a time before now."""
    return NOW - timedelta(**span)


BOT = Identity(
    id="i1",
    name="acme-bot",
    provider="github",
    kind="token",
    user=None,
    settings={},
    api_url=None,
    expires_at=None,
    created_at=ago(days=90),
    updated_at=ago(days=90),
)
HOOK = Registration(
    webhook="7",
    url="https://gateway.example/hooks/c1",
    checked_at=ago(hours=1),
    registered_at=ago(days=30),
    is_tested=True,
)
LACKING = replace(HOOK, differences=["missing events", "missing permissions"], advice="Add them at x")
READ = ReconciliationState(
    due_at=NOW, tried_at=ago(minutes=1), reconciled_at=ago(minutes=1), delivery=None, reason=None
)
DENIED = "the remote cannot be fetched: access was denied (git: fatal: …)"
REFUSED = Refusal(
    connection="c1",
    client="192.0.2.7",
    status=401,
    cause="not verified",
    reason="no secret of this connection verifies it",
    event="push",
    provider_delivery_id=None,
    first_at=ago(hours=3),
    last_at=ago(minutes=30),
    count=3,
)
USED = SecretDates(created_at=ago(days=31), last_used_at=ago(hours=2))
PLAIN = ConnectionFacts(secrets=[USED], webhook_secrets=[USED], reconciliation=READ, arrived_at=ago(hours=2))
HEALTHY = replace(PLAIN, identity=BOT, registration=HOOK)
SILENCE = Silence(delivery="d1", since=ago(minutes=20))


@pytest.mark.parametrize(
    ("facts", "changes", "state", "reason"),
    [
        (HEALTHY, {}, "ok", None),
        (PLAIN, {}, "ok", None),
        (PLAIN, {"arrived_at": None}, "unknown", "No webhook has arrived yet"),
        (HEALTHY, {"registration": replace(HOOK, differences=["missing"])}, "failing", "has no webhook"),
        (HEALTHY, {"registration": replace(HOOK, differences=["switched off"])}, "failing", "switched off"),
        (HEALTHY, {"registration": replace(HOOK, differences=["wrong URL"])}, "failing", "another URL"),
        (HEALTHY, {"registration": replace(HOOK, differences=["no secret"])}, "failing", "no secret"),
        (HEALTHY, {"registration": replace(HOOK, differences=["missing events"])}, "warning", "all events"),
        (HEALTHY, {"registration": LACKING}, "warning", "The GitHub App of the webhook lacks events"),
        (HEALTHY, {"registration": replace(HOOK, differences=["doubled"])}, "warning", "more than once"),
        (HEALTHY, {"registration": replace(HOOK, differences=["new kind"])}, "warning", "differs: new kind"),
        (HEALTHY, {"registration": replace(HOOK, problem="502 Bad")}, "warning", "failed: 502 Bad."),
        (HEALTHY, {"registration": replace(HOOK, reason="no right")}, "warning", "be checked: no right."),
        (HEALTHY, {"registration": replace(HOOK, checked_at=ago(days=3))}, "unknown", "since 2026-11-20"),
        (HEALTHY, {"registration": Registration(), "arrived_at": None}, "unknown", "the webhook yet"),
        (HEALTHY, {"arrived_at": None}, "warning", "its test delivery has not arrived"),
        (HEALTHY, {"arrived_at": None, "registration": replace(HOOK, is_tested=False)}, "ok", None),
        (
            HEALTHY,
            {"webhook_secrets": [SecretDates(created_at=ago(days=2), last_used_at=None), USED]},
            "warning",
            "an earlier secret",
        ),
        (HEALTHY, {"silence": SILENCE}, "warning", "no webhook has arrived since"),
        (PLAIN, {"silence": SILENCE, "arrived_at": None}, "failing", "no webhook has ever arrived"),
        (PLAIN, {"refused": REFUSED}, "warning", "from 192.0.2.7 with 401: no secret"),
        (PLAIN, {"refused": replace(REFUSED, last_at=ago(hours=3))}, "ok", None),
        (HEALTHY, {"identity": replace(BOT, expires_at=ago(days=1))}, "failing", "acme-bot expired at"),
        (HEALTHY, {"identity": replace(BOT, expires_at=ago(days=-13))}, "warning", "acme-bot expires at"),
        (HEALTHY, {"identity": replace(BOT, expires_at=ago(days=-15))}, "ok", None),
        (HEALTHY, {"identity": replace(BOT, expires_at=ago(days=-3), rotates=True)}, "ok", None),
        (HEALTHY, {"identity": replace(BOT, reason="it was revoked")}, "failing", "acme-bot does not work"),
        (HEALTHY, {"identity": replace(BOT, rights=["admin:repo_hook", "repo:status"])}, "ok", None),
        (HEALTHY, {"identity": replace(BOT, rights=["admin:repo_hook"])}, "warning", "may not set statuses:"),
        (HEALTHY, {"identity": replace(BOT, rights=["read:user"])}, "warning", "rights are read:user."),
        (PLAIN, {"identity": replace(BOT, rights=["public_repo"])}, "ok", None),
        (PLAIN, {"reconciliation": replace(READ, reason=DENIED)}, "failing", "The remote cannot be fetched"),
        (PLAIN, {"reconciliation": replace(READ, tried_at=None)}, "unknown", "has not been read yet"),
    ],
)
def test_each_fact_is_a_sentence_with_what_to_do(
    facts: ConnectionFacts, changes: dict[str, Any], state: str, reason: str | None
) -> None:
    """The worst finding is the state, and a healthy connection has none."""
    found = health(made(identity="i1"), replace(facts, **changes), "none", now=NOW)
    assert (found.state, len(found.findings)) == (state, int(reason is not None))
    for finding in found.findings:
        assert reason is not None
        assert reason in finding.reason
        for sentence in (finding.reason, finding.repair):
            assert re.fullmatch(r"[A-Z`].*\.", sentence), sentence


def test_the_worst_finding_comes_first_and_decides() -> None:
    """Each of them stays in the list."""
    connection = made(other_repository=OtherRepository(id="2", name=None, delivery="d1", refs={}))
    facts = replace(PLAIN, arrived_at=None, refused=REFUSED)
    found = health(connection, facts, "none", now=NOW)
    assert found.state == "failing"
    assert [finding.state for finding in found.findings] == ["failing", "warning", "unknown"]
    assert STATES[-1] == "failing"


def test_the_webhook_of_a_source_is_repaired_at_the_source() -> None:
    """A repair at one of its connections would register a second webhook."""
    registration = replace(HOOK, differences=["switched off"])
    facts = replace(HEALTHY, registration=registration, source="acme")
    [finding] = health(made(identity="i1", source="s1"), facts, "none", now=NOW).findings
    assert finding.repair == "Run `pushgate doctor s1 --fix`, which repairs the webhook of its source."
