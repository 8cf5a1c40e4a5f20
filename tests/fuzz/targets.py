"""The fuzzing targets: functions of bytes that raise only if there is a fault.

Each has initial seeds. They are plain Python, so that a finding is reproduced without a fuzzer:
`python -m tests.fuzz TARGET FILE`.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from gateway.errors import Invalid, PlanError, PushgateError
from gateway.fetch.credentials import mend_private_key, read_private_key, take_login
from gateway.fetch.host_keys import read_host_keys
from gateway.fetch.urls import check_url, is_ssh, known_as, target
from gateway.intake.connection_cache import CachedConnection, ConnectionCache
from gateway.intake.webhook import WebhookEndpoint
from gateway.packages.submodules import submodule_url
from gateway.packages.vhignore import Rules
from gateway.plan.manifest import read_manifest
from gateway.plan.planner import plan
from gateway.plan.triggers import MoveFacts, match, parse_trigger, read_triggers
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.refusals import Refusal
from providers import PROVIDERS
from providers.clone_urls import is_about, repository_key
from providers.errors import Malformed, Unverified
from providers.model import Repository, VerifiedRequest
from providers.payload import form_payload
from testing.corpus import NOW, SECRET, cases
from tests.plan.facts import COMMIT, CONNECTION, MANIFEST, UPDATE

if TYPE_CHECKING:
    from gateway.intake.group_commit import DeliveryWriter
    from gateway.intake.refusal_log import RefusalLog

NAMES = sorted(PROVIDERS)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
EVENTS = sorted({case.event for case in cases()} | {"", "nonsense"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function to fuzz, and its seeds."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


class _Connections:
    """A connection cache with one connection of each provider."""

    async def find(self, name: str) -> CachedConnection:
        return CachedConnection(
            id=name,
            provider_name=name,
            provider=PROVIDERS[name],
            auth={},
            secrets=(SECRET,),
            secret_ids=(1,),
            repository_id=None,
            repository_key=repository_key("https://github.com/acme/digits.git"),
            networks=(),
        )

    def forget(self, name: str) -> None:
        """Do nothing; nothing is cached."""


class _Refusals:
    """Takes the text of refused requests that a database can store."""

    def add(self, refusal: Refusal, *, is_of_connection: bool) -> None:
        """Check a refused request."""
        assert is_of_connection
        for text in (refusal.reason, refusal.event, refusal.provider_delivery_id or ""):
            assert "\0" not in text
            text.encode()


class _Writer:
    """Accepts what a database can store: text without NUL or lone surrogates, and JSON."""

    async def accept(self, arrival: NewDelivery, *, seconds: float | None = None) -> Receipt:  # noqa: ARG002
        kept = replace(arrival, body=b"", updates=())
        texts = (kept.event, kept.provider_delivery_id, kept.reason, kept.pusher)
        json.dumps([kept.repository, kept.detail, dict(kept.headers)], allow_nan=False).encode()
        for text in filter(None, texts):
            assert "\0" not in text
            text.encode()
        for update in arrival.updates:
            assert update.ref.startswith("refs/")
            update.ref.encode()
        return Receipt(delivery=arrival.id, verdict=arrival.verdict, reason=arrival.reason, outcome="waiting")


_loop = asyncio.new_event_loop()


def webhooks(data: bytes) -> None:
    """Send a webhook: two bytes choose provider and headers, header lines follow, a blank line, the body."""
    if len(data) < 2:
        return
    head, _, body = data[2:].partition(b"\n\n")
    name, event = NAMES[data[0] % len(NAMES)], EVENTS[data[1] % len(EVENTS)]
    signed = PROVIDERS[name].sign(event=event, body=body, secret=SECRET, delivery="d1", now=datetime.now(UTC))
    headers = [(key.encode(), value.encode("latin-1")) for key, value in signed.items()]
    for line in head.split(b"\n"):
        key, _, value = line.partition(b":")
        # The server refuses a header with a control character, before the endpoint.
        headers.append((key.strip().lower(), _CONTROL.sub(b"", value).strip()))
    scope = {"method": "POST", "path_params": {"connection": name}, "headers": headers, "client": None}
    messages = [
        {"type": "http.request", "body": body[:100], "more_body": True},
        {"type": "http.request", "body": body[100:], "more_body": False},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    endpoint = WebhookEndpoint(
        cast("ConnectionCache", _Connections()),
        cast("DeliveryWriter", _Writer()),
        cast("RefusalLog", _Refusals()),
        body_limit=1 << 20,
    )
    _loop.run_until_complete(endpoint(scope, receive, send))
    answer = json.loads(sent[1]["body"])
    if sent[0]["status"] >= 500:
        raise AssertionError(answer)


def parsers(data: bytes) -> None:
    """Parse the body of a proven sender: two bytes choose provider and event, the rest is the body."""
    if len(data) < 2:
        return
    provider, event = PROVIDERS[NAMES[data[0] % len(NAMES)]], EVENTS[data[1] % len(EVENTS)]
    with suppress(Malformed):
        provider.parse(VerifiedRequest(event=event, id=None, secret=0, content=data[2:]))
    with suppress(Malformed):
        form_payload(data[2:])


def proofs(data: bytes) -> None:
    """Verify a request of any sender: a byte chooses the provider, header lines follow, then the body."""
    if not data:
        return
    head, _, body = data[1:].partition(b"\n\n")
    lines = (line.decode("latin-1").partition(":") for line in head.split(b"\n"))
    headers = {name.lower(): value.strip() for name, _, value in lines}
    secrets = (SECRET, b"whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q=", b"whsec_%")
    with suppress(Unverified):
        PROVIDERS[NAMES[data[0] % len(NAMES)]].verify(
            headers=headers, body=body, secrets=secrets, auth={}, now=NOW
        )


def urls(data: bytes) -> None:
    """Read a URL, or two of which the second is relative to the first."""
    first, _, second = data.decode("utf-8", "replace").partition("\n")
    key = repository_key(first)
    assert repository_key(first) == key
    is_about(key, Repository(full_name=second, urls=(second, first)))
    with suppress(Invalid):
        take_login(first, "github")
    with suppress(Invalid):
        check_url(first, allow_http=True, hosts=())
        scheme, host, port = target(first)
        assert scheme in {"http", "https", "ssh"}
        assert host
        assert 0 < port < 1 << 16
        assert is_ssh(first) == (scheme == "ssh")
        known_as(first)
        with suppress(Invalid):
            check_url(
                submodule_url(second, parent=first, allow_http=True, hosts=()), allow_http=True, hosts=()
            )


def keys(data: bytes) -> None:
    """Read a pasted private key, and lines of known_hosts."""
    text = data.decode("utf-8", "replace")
    with suppress(Invalid):
        mend_private_key(text)
    with suppress(Invalid):
        read_private_key(text, "github", comment="fuzz")
    with suppress(Invalid):
        read_host_keys(text, known_as="git.example")


def ignore(data: bytes) -> None:
    """Match rules of a .vhignore with paths, the last line being one."""
    text, _, path = data.rpartition(b"\n")
    rules = Rules(text)
    for asked in (path.strip(b"/"), b"a/b/c.py", b"\xff\xfe", b"a" * 60):
        rules.ignores(asked)
        rules.ignores(asked, is_folder=True)


def manifests(data: bytes) -> None:
    """Plan by any valohai.yaml each step, pipeline and task that it defines."""
    try:
        manifest = read_manifest(data, path="valohai.yaml")
    except PlanError:
        return
    named = [("step", manifest.steps), ("pipeline", manifest.pipelines), ("task", manifest.tasks)]
    given = [
        {"name": f"{kind} {number}", "run": {kind: name}}
        for kind, of_kind in named
        for number, name in enumerate(list(of_kind)[:5])
    ]
    with suppress(Invalid):
        facts = replace(COMMIT, manifest=data, manifest_size=len(data))
        planned = plan(connection=CONNECTION, update=UPDATE, commit=facts, triggers=read_triggers(given))
        for request in planned.requests:
            request.model_dump_json().encode()


def triggers(data: bytes) -> None:
    """Read triggers, long and short, and match them with a move."""
    text = data.decode("utf-8", "replace")
    move = MoveFacts(
        kind="branch", name="main", action="update", paths=("a/b.py", "x"), paths_complete=True, message=text
    )
    with suppress(Invalid):
        match(parse_trigger(text), move)
    with suppress(ValueError, RecursionError):  # of the JSON alone
        given = json.loads(text)
        for one in _read(given if isinstance(given, list) else [given]):
            match(one, move)


def _read(given: list[Any]) -> Iterable[Any]:
    try:
        return read_triggers(given)
    except PushgateError:
        return ()


def _deliveries() -> Iterable[bytes]:
    for case in cases():
        yield bytes([NAMES.index(case.provider_name), EVENTS.index(case.event)]) + case.body


def _requests() -> Iterable[bytes]:
    for case in cases()[::3]:
        head = b"content-encoding: identity\ncontent-length: 12\nx-forwarded-for: 10.0.0.1"
        yield bytes([NAMES.index(case.provider_name), EVENTS.index(case.event)]) + head + b"\n\n" + case.body


def _signed() -> Iterable[bytes]:
    for case in cases()[::5]:
        head = "\n".join(f"{name}: {value}" for name, value in case.headers.items())
        yield bytes([NAMES.index(case.provider_name)]) + head.encode() + b"\n\n" + case.body


def _urls() -> Iterable[bytes]:
    return [
        b"https://ada:s3cret@github.com:443/acme/digits.git\n../letters.git",
        b"git@ssh.dev.azure.com:v3/org/My%20Project/digits\n./x",
        b"ssh://git@[::1]:2222/scm/PROJ/digits.git\nhttps://tfs/tfs/Main/_git/_full/digits",
        b"https://org.visualstudio.com/DefaultCollection/_git/digits\nacme/digits",
    ]


def _keys() -> Iterable[bytes]:
    pem = (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1rZXktdjEAAAAA\\n-----END OPENSSH PRIVATE KEY-----"
    )
    other = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    line = b"git.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n"
    return [
        pem,
        pem.replace(b"\\n", b"\r\n"),
        other + pem.replace(b"OPENSSH", b"EC"),
        line,
        b"@revoked * x\n|1|a=|b=",
    ]


def _rules() -> Iterable[bytes]:
    return [
        b"*.py\n!/a/b.py\nd/\\#x\n[[:alpha:]]\n[!a-z]?\n**/x/**\nfoo/\na**b\n\\*.c \\ \nx[\na/b/c.py",
        b"[]-a]\n[a\\]]\n[^]]\n/**\n/\n***\n**/**/**/a\nb",
    ]


def _manifests() -> Iterable[bytes]:
    task = (
        b"- task:\n    name: t\n    step: train\n    type: grid_search\n"
        b"    parameters:\n      - {name: epochs, style: multiple, rules: {items: [1, 2]}}\n"
    )
    aliases = b"- step: &a {name: x, image: i, command: [c]}\n- step:\n    <<: *a\n    name: y\n"
    return [MANIFEST, MANIFEST + task, aliases, b"- endpoint: {name: e}\n- blueprint: {}\n"]


def _triggers() -> Iterable[bytes]:
    whole = {
        "name": "t",
        "on": ["push", "tag", "pull_request", "merge_group"],
        "branches": ["main", "!release/*"],
        "tags": ["v*"],
        "paths": ["src/**", "!*.md"],
        "authors": ["*[bot]*"],
        "messages": ["!wip*"],
        "forks": True,
        "run": {"step": "train"},
        "parameters": {"epochs": 2, "names": ["a"]},
        "inputs": {"data": "s3://x"},
        "policy": "latest",
    }
    return [
        json.dumps([whole]).encode(),
        b"train@main,!x/**",
        b"task:sweep@tag:v*",
        b"[skip ci]\n\nskip-checks: true",
    ]


TARGETS = {
    "webhooks": Target(run=webhooks, seeds=_requests),
    "parsers": Target(run=parsers, seeds=_deliveries),
    "proofs": Target(run=proofs, seeds=_signed),
    "urls": Target(run=urls, seeds=_urls),
    "keys": Target(run=keys, seeds=_keys),
    "ignore": Target(run=ignore, seeds=_rules),
    "manifests": Target(run=manifests, seeds=_manifests),
    "triggers": Target(run=triggers, seeds=_triggers),
}
