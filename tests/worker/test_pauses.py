"""Which verdicts the sender leaves alone: those of a server that fails must not delay the others."""

from dataclasses import replace
from typing import Any

from gateway.store.identities import Identity, Unsealed
from gateway.store.status_tasks import Claimed, Except, Verdict
from gateway.store.status_webhooks import StatusReceiver
from gateway.worker.pauses import Pauses
from testing.records import NOW, A
from tests.worker.test_verdicts import CONNECTION


def claimed(name: str, host: str, *, identity: str | None = None, receiver: str | None = None) -> Claimed:
    """Return a claimed verdict of a connection."""
    empty: dict[str, Any] = dict.fromkeys(("pull_request", "execution", "outcome", "reason", "file", "line"))
    verdict = Verdict(commit=A, context="pushgate/train", ref="refs/heads/main", delivery="d1", **empty)
    bot: dict[str, Any] = {"name": "bot", "provider": "gitea", "kind": "token", "user": None, "settings": {}}
    bot |= {"api_url": None, "expires_at": None, "created_at": NOW, "updated_at": NOW}
    signed = None if identity is None else Unsealed(identity=Identity(id=identity, **bot), secret="s")
    return Claimed(
        verdict=verdict,
        connection=replace(CONNECTION, id=name, url=f"https://{host}/acme/digits.git"),
        due_at=NOW,
        due_since=NOW,
        attempts=0,
        sent=None,
        memory={},
        identity=signed,
        receiver=None if receiver is None else StatusReceiver(url=receiver, secret="s"),
    )


def paused(time: list[float]) -> Pauses:
    """Return pauses at a time that the test sets."""
    return Pauses(clock=lambda: time[0])


def test_a_limit_is_that_of_an_identity() -> None:
    """Until it ends; a receiver has its own."""
    time = [0.0]
    pauses = paused(time)
    pauses.limited(claimed("c1", "a.example", identity="i1"), 60)
    pauses.limited(claimed("c2", "a.example", receiver="https://ci.example/x"), 30)
    assert pauses.excluded([]) == Except(
        connections=[], identities=["i1"], hosts=[], receivers=["https://ci.example"]
    )
    time[0] = 31
    assert pauses.excluded([]).identities == ["i1"]
    assert pauses.excluded([]).receivers == []
    time[0] = 60
    assert pauses.excluded([]).identities == []


def test_a_server_that_fails_is_left_alone_until_it_answers() -> None:
    """For ten seconds at most, and then it gets one request at a time, whatever the identity."""
    time = [0.0]
    pauses = paused(time)
    bad = [claimed(f"c{number}", "bad.example", identity=f"i{number}") for number in range(4)]
    good = claimed("c9", "good.example", identity="i9")
    for one in bad:
        pauses.failed(one)
    pauses.failed(bad[0])
    assert pauses.excluded([good]).hosts == ["bad.example"]
    time[0] = 10
    assert pauses.excluded([good]).hosts == []
    assert pauses.excluded([good, bad[0]]).hosts == ["bad.example"]
    pauses.answered(bad[0])
    assert pauses.excluded([good, bad[1]]) == Except(
        connections=["c9", "c1"], identities=[], hosts=[], receivers=[]
    )


def test_many_servers_that_fail_leave_room_for_others() -> None:
    """Two of them at once, also receivers."""
    time = [0.0]
    pauses = paused(time)
    bad = [claimed(f"c{number}", f"bad{number}.example") for number in range(3)]
    bad.append(claimed("c3", "good.example", receiver="https://bad3.example/x"))
    for one in bad:
        pauses.failed(one)
    time[0] = 10
    assert pauses.excluded([bad[0]]).hosts == ["bad0.example"]
    full = pauses.excluded([bad[0], bad[3]])
    assert (sorted(full.hosts), full.receivers) == (
        ["bad0.example", "bad1.example", "bad2.example"],
        ["https://bad3.example"],
    )
