"""What it costs to verify and to parse a push of 8 KB and of 1 MB, for each provider.

Beside verify stands a bare HMAC of the same bytes, or a bare comparison where the scheme does not sign them;
beside parse pydantic decoding the same fields; each measured in turn in the same run. The pushes are the
corpus' own, grown by commits up to as many as the provider lists, and by the length of their messages.
"""

import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.report import Progress, Row, measured
from providers import PROVIDERS
from testing.corpus import NOW, Case, cases

_KB, _MB = 1024, 1024 * 1024
_ROUNDS = 7
_TURNS = 5
_SECONDS_EACH = 0.004
# Where a push lists its commits, how many at most, and how large a payload gets; after providers' docs.
_SHAPES: dict[str, tuple[tuple[str | int, ...], int, int]] = {
    "github": (("commits",), 2048, _MB),
    "gitlab": (("commits",), 20, _MB),
    "bitbucket": (("push", "changes", 0, "commits"), 5, 250 * _KB),
    "bitbucket-server": (("commits",), 5, _MB),
    "azure-devops": (("resource", "commits"), 200, _MB),
    "gitea": (("commits",), 30, _MB),
    "gogs": (("commits",), 30, _MB),
    # Only refs: a hundred of them are a large push.
    "generic": (("updates",), 100, _MB),
}
_WORDS = ("the", "model", "learns", "faster", "with", "fewer", "epochs", "and", "a", "larger", "batch", "fix")


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    rows: list[Row] = []
    pushes = {case.provider_name: case for case in cases() if case.name == "push"}
    for name in _SHAPES:
        progress(f"providers: {name}")
        for size in (8 * _KB, _SHAPES[name][2]):
            rows += measured(f"{name} {_size(size)}", _rows, pushes[name], size)
    return rows


def _rows(push: Case, size: int) -> list[Row]:
    case = _grown(push, size)
    title = f"{case.provider_name} {_size(len(case.body))}"
    module: Any = case.provider
    model = getattr(module, "_Push", None) or module._Any  # noqa: SLF001 - the yardstick reads the same fields
    delivery = case.verify()
    beside, bare = _bare_proof(case)
    verify, plain = _turns(case.verify, bare)
    parse, decode = _turns(
        lambda: module.parse(delivery), lambda: model.model_validate_json(delivery.content)
    )
    # For a small push the few µs of every call dominate: the aim is for large ones.
    is_large = len(case.body) > _MB // 2
    rows = [
        Row(f"{title}: verify in µs, beside {beside}", verify, plain, aim=None, higher_is_better=False),
        Row(
            f"{title}: parse in µs, beside decoding",
            parse,
            decode,
            aim=1.2 if is_large else None,
            higher_is_better=False,
        ),
    ]
    if is_large:
        rows.append(
            Row(f"{title}: parse in ms", [time / 1000 for time in parse], 3, aim=1, higher_is_better=False)
        )
    return rows


def _bare_proof(case: Case) -> tuple[str, Callable[[], object]]:
    """Return the least work of the case's scheme: its name, and a function that does it."""
    secret, body = case.secrets[0], case.body
    if case.provider.BODY_IS_SIGNED or "webhook-signature" in case.headers:
        return "an HMAC", lambda: hmac.digest(secret, body, hashlib.sha256)
    return "a comparison", lambda: hmac.compare_digest(secret, secret)


def _turns(*calls: Callable[[], object]) -> list[list[float]]:
    """Return the µs of each call in each round, of several turns the best: other load only adds.

    They take turns, so that all have the same conditions.
    """
    rounds = []
    for _ in range(_ROUNDS):
        turns = [[_once(call) for call in calls] for _ in range(_TURNS)]
        rounds.append([min(times) for times in zip(*turns, strict=True)])
    return [list(times) for times in zip(*rounds, strict=True)]


def _once(call: Callable[[], object]) -> float:
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _SECONDS_EACH:
        call()
        count += 1
    return elapsed / count * 1e6


def _grown(case: Case, size: int) -> Case:
    """Return a push of about this size, signed again."""
    document = json.loads(case.body)
    path, most, _ = _SHAPES[case.provider_name]
    listed = document
    for step in path:
        listed = listed[step]
    first = listed[0]
    listed.clear()
    each, room = len(json.dumps(first)), size - len(json.dumps(document))
    count = max(1, min(most, room // each))
    missing = max(0, room // count - each)
    listed[:] = [_commit(first, missing, number) for number in range(count)]
    body = json.dumps(document).encode()
    headers = case.provider.sign(
        event=case.event, body=body, secret=case.secrets[0], delivery="bench", now=NOW
    )
    return replace(case, headers=headers, body=body, secret=0)


def _commit(first: dict[str, Any], missing: int, number: int) -> dict[str, Any]:
    """Return another commit, or ref, whose text is longer by the missing size."""
    if "ref" in first:
        return {**first, "ref": f"refs/heads/branch-{number}"}
    text = "message" if "message" in first else "comment" if "comment" in first else "summary"
    words = " ".join(random.choices(_WORDS, k=int(missing / 5.4)))
    return {**first, text: words}


def _size(count: int) -> str:
    return f"{count / _MB:.1f} MB" if count > _MB // 2 else f"{count / _KB:.0f} KB"


assert set(_SHAPES) == {name for name in PROVIDERS if name != "forgejo"}, "forgejo is gitea's module"
