"""Hostile requests over a real socket, for every provider: each is answered, and the gateway goes on."""

import http.client
import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers import PROVIDERS
from testing.corpus import Case, cases
from testing.service import Service

FORM = "application/x-www-form-urlencoded"
STATUSES = {200, 202, 400, 401, 404, 405, 413, 415, 503}
EVERY_PROVIDER = pytest.mark.parametrize("provider", sorted(PROVIDERS))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Share one gateway; the remotes do not exist, and no test waits for them."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    with Service(folder, CONCURRENCY="1") as service:
        yield service


class Sender:
    """A provider's side of one connection."""

    def __init__(self, service: Service, provider: str) -> None:
        """Connect a repository."""
        self.case = _push(provider)
        self.service = service
        ours = self.case.parse().repository
        name = ours.full_name if ours and ours.full_name else "acme/digits"
        urls = ours.urls if ours and ours.urls else (f"https://git.example/{name}.git",)
        self.made = service.connect(urls[0], provider=provider)
        address = urlsplit(service.url)
        self.address = address.hostname or "", address.port or 0

    def headers(self, body: bytes, event: str | None = None) -> dict[str, str]:
        """Return the headers with which the provider would send this body."""
        return self.case.provider.sign(
            event=event or self.case.event,
            body=body,
            secret=self.made["secret"].encode(),
            delivery=uuid.uuid4().hex,
            now=datetime.now(UTC),
        )

    def send(self, body: bytes, *, event: str | None = None, **headers: str) -> tuple[int, Any]:
        """Sign and send a body; return the status and the answer, which is always JSON."""
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        client = http.client.HTTPConnection(*self.address, timeout=30)
        with closing(client):
            client.request("POST", self.made["path"], body, {**self.headers(body, event), **own})
            answer = client.getresponse()
            assert answer.getheader("content-type") == "application/json"
            return answer.status, json.loads(answer.read())

    def send_raw(self, head: bytes, body: bytes) -> bytes:
        """Send bytes; return the beginning of the answer."""
        with socket.create_connection(self.address, timeout=30) as client:
            client.sendall(head + body)
            return client.recv(4096)

    def still_works(self) -> None:
        """Send a genuine delivery of the provider."""
        status, answer = self.send(self.case.body)
        assert (status, "delivery" in answer) == (202, True)


@cache
def _push(provider: str) -> Case:
    [case] = [one for one in cases() if (one.provider_name, one.name) == (provider, "push")] or [
        one for one in cases() if (one.provider_name, one.name) == ("gitea", "push")
    ]
    return case


def _with(body: bytes, more: bytes) -> bytes:
    """Return a JSON object with one more field at its end."""
    return body.rstrip()[:-1] + b"," + more + b"}"


@EVERY_PROVIDER
@pytest.mark.parametrize(
    ("more", "status"),
    [
        (b'"x": ' + b"[" * 100_000 + b"]" * 100_000, 400),
        (b'"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'"x": ' + b"[" * 100_000, 400),
        (b'"x": ' + b"1" * 10_000, 400),
        (b'"x": 1e999999', 202),
        (b'"x": "\\ud800"', 202),
        (b'"x": "\xff"', 400),
        (b'"x": "\\u0000"', 202),
        (b'"x": 01', 400),
        (b'"x": 1, "x": 2', 202),
    ],
    ids=[
        "deep lists",
        "deep objects",
        "an open end",
        "10,000 digits",
        "infinite",
        "a lone surrogate",
        "not UTF-8",
        "a NUL",
        "a leading zero",
        "a key twice",
    ],
)
def test_signed_json_of_the_worst_kind(service: Service, provider: str, more: bytes, status: int) -> None:
    """In an unused field: it is refused as invalid JSON, or ignored."""
    sender = Sender(service, provider)
    answer = sender.send(_with(sender.case.body, more))
    assert answer[0] == status, answer
    sender.still_works()


@EVERY_PROVIDER
@pytest.mark.parametrize(
    "body",
    [b"", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), "{}".encode("utf-32"), b"null", b"[]", b'"text"', b"1"],
    ids=["empty", "BOM", "UTF-16", "UTF-32", "null", "a list", "text", "a number"],
)
def test_signed_bodies_that_are_no_object(service: Service, provider: str, body: bytes) -> None:
    """Undecodable is 400, another shape 202; both are stored as unreadable."""
    sender = Sender(service, provider)
    status, answer = sender.send(body)
    assert status == (202 if body in {b"null", b"[]", b'"text"', b"1"} else 400), answer
    assert answer["verdict"] == "unreadable"


@EVERY_PROVIDER
@pytest.mark.parametrize("name", ["--upload-pack=x", "refs/heads/../x", "refs/heads/a\0b", "refs/heads/a b"])
def test_names_that_no_ref_has(service: Service, provider: str, name: str) -> None:
    """They never become an argument of git: the payload is unreadable, and makes no ref update."""
    sender = Sender(service, provider)
    event = sender.case.parse()
    whole, short = event.updates[0].ref, event.updates[0].name
    old = whole if json.dumps(whole).encode() in sender.case.body else short
    new = name if old == whole else name.removeprefix("refs/heads/").removeprefix("--upload-pack=") + ".lock"
    body = sender.case.body.replace(json.dumps(old).encode(), json.dumps(new).encode())
    assert body != sender.case.body
    status, answer = sender.send(body)
    assert (status, answer["verdict"]) == (202, "unreadable"), answer
    kept = service.api.get(f"/deliveries/{answer['delivery']}")
    assert kept["updates"] == []


@EVERY_PROVIDER
def test_a_proof_that_is_sent_twice_proves_nothing(service: Service, provider: str) -> None:
    """A repeated header is never the signed one."""
    sender = Sender(service, provider)
    body = sender.case.body
    headers = sender.headers(body)
    [proof] = [
        name
        for name in headers
        if name in {"authorization", "x-gitlab-token", "webhook-signature"} or "signature" in name
    ][:1]
    lines = [*headers.items(), (proof, headers[proof])]
    head = [f"POST {sender.made['path']} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in lines]
    assert sender.send_raw("\r\n".join(head).encode() + b"\r\n\r\n", body).startswith(b"HTTP/1.1 401")
    sender.still_works()


@EVERY_PROVIDER
def test_a_compressed_body_is_refused(service: Service, provider: str) -> None:
    """A few bytes could expand to gigabytes."""
    sender = Sender(service, provider)
    assert sender.send(sender.case.body, content_encoding="gzip")[0] == 415


@pytest.mark.parametrize("provider", ["github", "gitea", "forgejo", "gogs"])
@pytest.mark.parametrize(
    "form",
    [
        b"payload={}&payload={}",
        b"payload={};x=1",
        b"other={}",
        b"payload={}" + b"&a=b" * 100,
        b"payload=%ff",
        b"",
    ],
    ids=["payload twice", "a semicolon", "no payload", "many fields", "not UTF-8", "empty"],
)
def test_forms_that_say_two_things(service: Service, provider: str, form: bytes) -> None:
    """GitHub signs the raw form; others sign its payload, which is ambiguous here."""
    sender = Sender(service, provider)
    status, answer = sender.send(form, content_type=FORM)
    assert status == (400 if provider == "github" else 401), answer


@pytest.mark.parametrize("provider", ["gitea", "forgejo", "gogs"])
def test_a_form_is_signed_by_its_payload(service: Service, provider: str) -> None:
    """A signature over the form is refused, one over its payload is accepted."""
    sender = Sender(service, provider)
    form = urlencode({"payload": sender.case.body.decode()}).encode()
    assert sender.send(form, content_type=FORM)[0] == 401
    signed = sender.headers(sender.case.body)
    assert sender.send(form, **{**signed, "content-type": FORM})[0] == 202


@pytest.mark.parametrize("lie", [b"content-length: 10\r\ncontent-length: 20\r\n", b"content-length: -1\r\n",
                                 b"content-length: x\r\n", b"transfer-encoding: chunked\r\n",
                                 b"transfer-encoding: gzip, chunked\r\n"])  # fmt: skip
def test_lengths_that_lie(service: Service, lie: bytes) -> None:
    """The request is refused or gets no answer, and the next one is served."""
    sender = Sender(service, "github")
    head = f"POST {sender.made['path']} HTTP/1.1\r\nhost: x\r\n".encode() + lie + b"\r\n"
    with socket.create_connection(sender.address, timeout=30) as client:
        client.sendall(head + b"zz\r\n{}")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(4096)[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 401"}
    sender.still_works()


def test_senders_that_never_come_to_an_end_hold_nobody_up(service: Service) -> None:
    """A hundred clients stop within a body, and others send it byte by byte."""
    sender = Sender(service, "github")
    head = f"POST {sender.made['path']} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".encode()
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(sender.address, timeout=30)) for _ in range(100)]
        for client in slow:
            client.sendall(head + b"{")
        for client in slow[:20]:
            client.sendall(b" ")
        sender.still_works()
    sender.still_works()


def _many(provider: str, count: int) -> tuple[bytes, str | None]:
    """Return a push of so many new branches, and the event if it is not the usual one."""
    ids = [f"{number:040x}" for number in range(1, count + 1)]
    document = json.loads(_push(provider).body)
    if provider == "bitbucket":
        [change] = document["push"]["changes"]
        new = [
            {**change["new"], "name": f"b{id_}", "target": {**change["new"]["target"], "hash": id_}}
            for id_ in ids
        ]
        document["push"]["changes"] = [{"old": None, "new": one, "forced": False} for one in new]
    elif provider == "bitbucket-server":
        document["changes"] = [
            {"ref": {"id": f"refs/heads/b{id_}", "displayId": "b", "type": "BRANCH"}, "fromHash": "0" * 40,
             "toHash": id_, "type": "ADD"} for id_ in ids
        ]  # fmt: skip
    elif provider == "azure-devops":
        document["resource"]["refUpdates"] = [
            {"name": f"refs/heads/b{id_}", "oldObjectId": "0" * 40, "newObjectId": id_} for id_ in ids
        ]
    else:
        key = "changes" if provider == "gitlab" else "updates"
        moves = [{"ref": f"refs/heads/b{id_}", "before": "0" * 40, "after": id_} for id_ in ids]
        document = {**document, "event_name": "repository_update", key: moves}
        document.pop("object_kind", None)
    return json.dumps(document).encode(), "System Hook" if provider == "gitlab" else None


@pytest.mark.parametrize("provider", ["azure-devops", "bitbucket", "bitbucket-server", "generic", "gitlab"])
def test_five_thousand_changes_are_five_thousand_updates(service: Service, provider: str) -> None:
    """Every ref counts; a second delivery of the same changes is a duplicate."""
    sender = Sender(service, provider)
    body, event = _many(provider, 5_000)
    status, answer = sender.send(body, event=event)
    assert (status, answer["verdict"]) == (202, "accepted"), answer
    updates = service.api.get(f"/deliveries/{answer['delivery']}")["updates"]
    assert len({update["ref"] for update in updates}) == 5_000
    sender.still_works()


def test_an_unsigned_ping_leaves_nothing(service: Service) -> None:
    """Anybody can send Bitbucket Data Center's: it is answered, and not stored."""
    sender = Sender(service, "bitbucket-server")
    body = b'{"test": true}'
    client = http.client.HTTPConnection(*sender.address, timeout=30)
    with closing(client):
        headers = {"x-event-key": "diagnostics:ping", "content-type": "application/json"}
        client.request("POST", sender.made["path"], body, headers)
        answer = client.getresponse()
        content = json.loads(answer.read())
        client.request("POST", sender.made["path"], body, {**headers, "x-event-key": "repo:refs_changed"})
        forged = client.getresponse().status
    assert (answer.status, content, forged) == (
        200,
        {"delivery": None, "verdict": "ignored", "reason": "ping"},
        401,
    )
    assert service.api.get("/deliveries", connection=sender.made["id"])["items"] == []


NAMES = st.sampled_from(
    [
        "authorization",
        "content-encoding",
        "content-type",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
        "x-event-key",
        "x-forwarded-for",
        "x-gitea-signature",
        "x-github-event",
        "x-gitlab-token",
        "x-hub-signature-256",
    ]
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@given(
    provider=st.sampled_from(sorted(PROVIDERS)),
    headers=st.dictionaries(NAMES, VALUES, max_size=5),
    body=st.binary(max_size=300),
    signed=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered(
    service: Service, provider: str, headers: dict[str, str], body: bytes, *, signed: bool
) -> None:
    """With a status of the design, in JSON: never a 500."""
    sender = _sender(service, provider)
    own = {**(sender.headers(body) if signed else {}), **headers}
    client = http.client.HTTPConnection(*sender.address, timeout=30)
    with closing(client):
        client.request("POST", sender.made["path"], body, own)
        answer = client.getresponse()
        assert answer.status in STATUSES
        json.loads(answer.read())


@cache
def _sender(service: Service, provider: str) -> Sender:
    return Sender(service, provider)
