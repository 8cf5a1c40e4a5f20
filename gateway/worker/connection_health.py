"""The health of a connection: what recorded facts mean, and what to do. Every function is pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from gateway.fetch.reasons import Access, repair_of
from gateway.provider_apis.apis import APIS
from gateway.provider_apis.token_states import STATUS_RIGHTS, WEBHOOK_RIGHTS
from gateway.store.connection_facts import ConnectionFacts
from gateway.store.connections import Connection
from gateway.store.identities import Identity
from gateway.store.registrations import CHECKED_WITHIN, Registration
from gateway.text.sentences import repair_of_refusal

State = Literal["ok", "unknown", "warning", "failing"]
What = Literal["webhook", "identity", "remote", "requests", "silence", "statuses", "runner"]

STATES: Final[tuple[State, ...]] = ("ok", "unknown", "warning", "failing")
"""The states, from the best to the worst."""

_WARN_BEFORE = timedelta(days=14)
# Pushgate replaces even a token of a week before that.
_WARN_BEFORE_IF_ROTATED = timedelta(days=2)
_TEST_WITHIN = timedelta(minutes=2)

_DIFFERENCES: Mapping[str, tuple[State, str]] = {
    "missing": ("failing", "The provider has no webhook for this connection."),
    "switched off": ("failing", "The webhook is switched off at the provider."),
    "wrong URL": ("failing", "The webhook at the provider has another URL than this connection."),
    "no secret": ("failing", "The webhook at the provider has no secret, so Pushgate refuses its requests."),
    "wrong secret": (
        "failing",
        "The webhook at the provider has another secret, so Pushgate refuses its requests.",
    ),
    "missing events": ("warning", "The webhook at the provider does not send all events."),
    "branch filter": ("warning", "The webhook at the provider leaves out some branches."),
    "doubled": ("warning", "The provider has this connection's webhook more than once."),
}
_FOR_PEOPLE = {"missing events", "missing permissions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong or unknown, and why, and what to do. `reason` and `repair` are sentences."""

    what: What
    state: State
    reason: str
    repair: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The worst state of the findings, and the findings, the worst first."""

    state: State
    findings: Sequence[Finding]


def access_of(connection: Connection) -> Access:
    """Return the kind of the credentials that fetches use."""
    if connection.deploy_key is not None:
        return "ssh key"
    if connection.has_credentials:
        return "login"
    return "none" if connection.identity is None else "identity"


def health(connection: Connection, facts: ConnectionFacts, access: Access, *, now: datetime) -> Health:
    """Return the health of a connection by its recorded facts."""
    found = [
        *_of_webhook(connection, facts, now=now),
        *_of_silence(connection, facts),
        *_of_refusals(facts),
        *_of_identity(facts.identity, now=now),
        *_of_rights(connection, facts),
        *_of_remote(connection, facts, access),
        *_of_statuses(connection, facts),
        *_of_runner(connection, facts),
    ]
    found.sort(key=lambda finding: STATES.index(finding.state), reverse=True)
    return Health(state=found[0].state if found else "ok", findings=found)


def warn_before(*, rotates: bool) -> timedelta:
    """Return how long before its end a token is a warning; Pushgate replaces one that `rotates`."""
    return _WARN_BEFORE_IF_ROTATED if rotates else _WARN_BEFORE


def _of_webhook(connection: Connection, facts: ConnectionFacts, *, now: datetime) -> Iterator[Finding]:
    known = facts.registration
    if known is None:
        if facts.arrived_at is None and facts.silence is None:
            yield Finding(
                what="webhook",
                state="unknown",
                reason="No webhook has arrived yet.",
                repair=_first(connection),
            )
        return
    if known.reason is not None:
        is_lost = known.webhook is None and facts.arrived_at is None
        yield Finding(
            what="webhook",
            state="failing" if is_lost else "warning",
            reason=_sentence(f"The webhook could not be checked: {known.reason}"),
            repair=_repair(connection, "Correct the cause, then run"),
        )
        return
    if known.checked_at is None or known.checked_at < now - CHECKED_WITHIN:
        last = "yet" if known.checked_at is None else f"since {_time(known.checked_at)}"
        yield Finding(
            what="webhook",
            state="unknown",
            reason=f"No worker has checked the webhook {last}.",
            repair="Check that a process with the role all or worker is running and not overloaded.",
        )
    if known.advice is not None:
        reason = "The GitHub App of the webhook lacks events or permissions."
        repair = _sentence(known.advice)
        yield Finding(what="webhook", state="warning", reason=reason, repair=repair)
    for state, reason in _differences(known, facts):
        yield Finding(what="webhook", state=state, reason=reason, repair=_repair(connection, "Run"))
    yield from _of_answers(known, facts, now=now)


def _differences(known: Registration, facts: ConnectionFacts) -> Iterator[tuple[State, str]]:
    """Return the differences between the webhook at the provider and the one that is needed."""
    for difference in known.differences:
        if known.advice is not None and difference in _FOR_PEOPLE:
            continue
        yield _DIFFERENCES.get(difference, ("warning", f"The webhook at the provider differs: {difference}."))
    newest = facts.webhook_secrets[0] if facts.webhook_secrets else None
    if newest is None or known.registered_at is None or known.webhook is None:
        return
    # No provider shows a secret; one that was entered by hand has verified a webhook.
    if newest.created_at > known.registered_at and newest.last_used_at is None:
        set_at = _time(newest.created_at)
        yield "warning", f"The webhook at the provider has an earlier secret: a new one was set at {set_at}."


def _of_answers(known: Registration, facts: ConnectionFacts, *, now: datetime) -> Iterator[Finding]:
    """Return what is wrong with the requests of a webhook that is in order."""
    reach = (
        "Check that the provider can reach the webhook URL: the provider's page of the webhook lists its"
        " requests, and `pushgate deliveries --outcome refused` those that Pushgate refused."
    )
    if known.problem is not None:
        reason = _sentence(f"The provider's last request to the webhook failed: {known.problem}")
        yield Finding(what="webhook", state="warning", reason=reason, repair=reach)
        return
    at = known.registered_at
    if not known.is_tested or at is None or at > now - _TEST_WITHIN:
        return
    # The clocks of processes may differ.
    if facts.arrived_at is None or facts.arrived_at < at - _TEST_WITHIN:
        reason = f"The webhook was registered at {_time(at)}, but its test delivery has not arrived."
        yield Finding(what="webhook", state="warning", reason=reason, repair=reach)


def _of_silence(connection: Connection, facts: ConnectionFacts) -> Iterator[Finding]:
    if facts.silence is None:
        return
    since = _time(facts.silence.since)
    if facts.arrived_at is None:
        reason = f"Reconciliation found a push at {since}, but no webhook has ever arrived."
        yield Finding(what="silence", state="failing", reason=reason, repair=_first(connection))
        return
    yield Finding(
        what="silence",
        state="warning",
        reason=f"Reconciliation found a push at {since}, and no webhook has arrived since.",
        repair="Look at the webhook's page at the provider: it may be off, or its requests may fail.",
    )


def _of_refusals(facts: ConnectionFacts) -> Iterator[Finding]:
    refused = facts.refused
    if refused is None or (facts.arrived_at is not None and facts.arrived_at > refused.last_at):
        return
    repair = repair_of_refusal(refused.cause, is_of_source=facts.source is not None)
    yield Finding(
        what="requests",
        state="warning",
        reason=_sentence(
            f"Pushgate refused requests to the webhook URL, the last at {_time(refused.last_at)} from"
            f" {refused.client or 'an unknown address'} with {refused.status}: {refused.reason}"
        ),
        repair=repair or "See `pushgate deliveries --outcome refused`.",
    )


def _of_identity(identity: Identity | None, *, now: datetime) -> Iterator[Finding]:
    if identity is None:
        return
    repair = f"Create a new token at the provider, and run `pushgate identity renew {identity.name}`."
    if identity.expires_at is not None and identity.expires_at <= now + warn_before(rotates=identity.rotates):
        is_over = identity.expires_at <= now
        verb = "expired" if is_over else "expires"
        yield Finding(
            what="identity",
            state="failing" if is_over else "warning",
            reason=f"The token of the identity {identity.name} {verb} at {_time(identity.expires_at)}.",
            repair=repair,
        )
    elif identity.reason is not None:
        reason = _sentence(f"The identity {identity.name} does not work: {identity.reason}")
        yield Finding(what="identity", state="failing", reason=reason, repair=repair)


def _of_rights(connection: Connection, facts: ConnectionFacts) -> Iterator[Finding]:
    """Return what the token lacks the right to: the webhook that it has to register, else statuses."""
    identity, provider = facts.identity, connection.provider
    if identity is None or identity.rights is None:
        return
    registers = facts.registration is not None and connection.source is None
    uses = (
        ("register webhooks", registers, WEBHOOK_RIGHTS.get(provider)),
        ("set statuses", connection.statuses, STATUS_RIGHTS.get(provider)),
    )
    for use, is_needed, needed in uses:
        if is_needed and needed is not None and not needed & set(identity.rights):
            has = ", ".join(identity.rights) or "none"
            one = " or ".join(f"`{right}`" for right in sorted(needed))
            renew = f"run `pushgate identity renew {identity.name}`"
            yield Finding(
                what="identity",
                state="warning",
                reason=f"The identity {identity.name} may not {use}: its rights are {has}.",
                repair=f"Create a token with the scope {one}, and {renew}.",
            )
            return


def _of_remote(connection: Connection, facts: ConnectionFacts, access: Access) -> Iterator[Finding]:
    state, other = facts.reconciliation, connection.other_repository
    if state.reason is not None:
        yield Finding(
            what="remote",
            state="failing",
            reason=_sentence(state.reason),
            repair=_sentence(repair_of(state.reason, access) or "Pushgate tries again by itself"),
        )
    elif state.tried_at is None:
        yield Finding(
            what="remote",
            state="unknown",
            reason="The repository has not been read yet.",
            repair=f"Run `pushgate check {connection.id}`, which waits for the result.",
        )
    if other is not None:
        yield Finding(
            what="remote",
            state="failing",
            reason=f"Another repository has this URL now: {other.name or 'one'} with the id {other.id}.",
            repair=f"If it was deleted and created again, run `pushgate forget-repository {connection.id}`.",
        )


def _of_statuses(connection: Connection, facts: ConnectionFacts) -> Iterator[Finding]:
    """Return why the provider does not show the verdicts on commits."""
    if facts.status_problem is None or not connection.statuses:
        return
    repair = "Give the identity the right to set statuses, or set `statuses` of the connection to false."
    if connection.has_status_webhook:
        repair = "Correct the status webhook of the connection, or its receiver."
    yield Finding(
        what="statuses",
        state="warning",
        reason=_sentence(f"The last verdict on a commit could not be sent: {facts.status_problem}"),
        repair=repair,
    )


def _of_runner(connection: Connection, facts: ConnectionFacts) -> Iterator[Finding]:
    if facts.unaccepted_since is None:
        return
    yield Finding(
        what="runner",
        state="warning",
        reason=f"No runner accepts the executions, the first since {_time(facts.unaccepted_since)}.",
        repair="Check that a runner consumes the queue at the broker; to see what waits, run"
        f" `pushgate executions --connection {connection.id} --state published`.",
    )


def _repair(connection: Connection, run: str) -> str:
    """Return what repairs a webhook; that of a source serves all of its connections."""
    if connection.source is not None:
        return f"{run} `pushgate doctor {connection.source} --fix`, which repairs the webhook of its source."
    return f"{run} `pushgate doctor {connection.id} --fix`, which repairs the webhook."


def _first(connection: Connection) -> str:
    """Return what to do about a webhook that has never arrived."""
    if connection.source is not None:
        return f"Run `pushgate doctor {connection.source} --fix`, which registers the webhook of its source."
    if connection.identity is not None and connection.provider in APIS:
        return f"Run `pushgate doctor {connection.id} --fix`, which registers the webhook at the provider."
    return (
        "Enter the webhook URL and the secret in the repository's settings at the provider, then push;"
        " `pushgate deliveries --outcome refused` shows requests that Pushgate refused."
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _time(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
