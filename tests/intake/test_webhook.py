"""The webhook endpoint over real HTTP: which request gets which answer, and what is stored."""

import http.client
import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from providers.signatures import hmac_hex
from testing.github import push_payload
from testing.service import Service, run_pushgate

URL = "https://github.example/acme/digits.git"
A, B, C = "a" * 40, "b" * 40, "c" * 40
LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Share one gateway among these tests; each connects its own repository."""
    folder = tmp_path_factory.mktemp("webhook") / "data"
    with Service(folder, BODY_LIMIT=str(LIMIT), FETCH_HOSTS="github.example", CONCURRENCY="1") as service:
        yield service


@pytest.fixture
def connection(service: Service) -> Any:
    """Return a connection without triggers."""
    return service.connect(URL)


def payload(before: str | None = A, after: str | None = B, **changes: Any) -> bytes:
    """Return the body of a push, with some fields changed."""
    body = push_payload(url=URL, full_name="acme/digits", ref="refs/heads/main", before=before, after=after)
    return json.dumps({**json.loads(body), **changes}).encode()


def post(
    service: Service, connection: Any, body: bytes, *, secret: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Post a body with GitHub's headers; those given replace them, and an empty one is left out."""
    address = urlsplit(service.url)
    client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    sent = {
        "content-type": "application/json",
        "x-github-event": "push",
        "x-github-delivery": str(uuid.uuid4()),
        "x-hub-signature-256": "sha256=" + hmac_hex(body, (secret or connection["secret"]).encode()),
    }
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    with closing(client):
        client.request(
            "POST", connection["path"], body, {name: value for name, value in sent.items() if value}
        )
        answer = client.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        assert found["content-type"] == "application/json"
        return answer.status, found, json.loads(answer.read())


def newest(service: Service, connection: Any) -> Any:
    """Return the newest recorded delivery, or None."""
    items = service.api.get("/deliveries", connection=connection["id"])["items"]
    return items[0] if items else None


def test_a_signed_push_is_accepted(service: Service, connection: Any) -> None:
    """The answer is 202, with the delivery's id, by which it can be looked up."""
    status, _, answer = post(service, connection, payload())
    assert (status, answer["verdict"]) == (202, "accepted")
    kept = service.api.get(f"/deliveries/{answer['delivery']}")
    assert kept["updates"][0]["after"] == B
    assert kept["updates"][0]["commits"] == [B]
    assert kept["pusher"] == "ada"


def test_a_redelivery_is_a_duplicate(service: Service, connection: Any) -> None:
    """The same id, or the same change: the provider gets its 202, and nothing happens twice."""
    post(service, connection, payload(), x_github_delivery="one")
    assert post(service, connection, payload(), x_github_delivery="one")[2]["verdict"] == "duplicate"
    assert post(service, connection, payload(), x_github_delivery="two")[2]["verdict"] == "duplicate"


def test_a_ping_is_200(service: Service, connection: Any) -> None:
    """And has no effect."""
    status, _, answer = post(service, connection, b'{"zen": "Keep it simple."}', x_github_event="ping")
    assert (status, answer["verdict"], answer["reason"]) == (200, "ignored", "ping")


@pytest.mark.parametrize("event", ["create", "delete", "star", "workflow_run", ""])
def test_events_of_no_interest_are_ignored(service: Service, connection: Any, event: str) -> None:
    """A 2xx, because providers disable hooks that get errors; stored, with a reason."""
    status, _, answer = post(service, connection, b'{"ref": "main"}', x_github_event=event)
    assert (status, answer["verdict"]) == (202, "ignored")
    assert newest(service, connection)["reason"]


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha256=" + "0" * 64,
        "sha256=" + "0" * 63,
        "SHA256=" + "0" * 64,
        "sha1=" + "0" * 40,
        "sha256=" + "\xe9" * 64,
        "0" * 64,
    ],
)
def test_a_bad_signature_is_401_and_nothing_is_kept(
    service: Service, connection: Any, signature: str
) -> None:
    """Missing, empty, of a wrong length, of another scheme, not ASCII: never an error of ours."""
    status, _, answer = post(service, connection, payload(), x_hub_signature_256=signature)
    assert (status, answer["error"]) == (401, "not verified")
    assert newest(service, connection) is None


def test_an_upper_case_signature_is_401(service: Service, connection: Any) -> None:
    """The signature is compared exactly."""
    signature = "sha256=" + hmac_hex(payload(), connection["secret"].encode()).upper()
    assert post(service, connection, payload(), x_hub_signature_256=signature)[0] == 401


def test_the_secret_of_another_connection_is_401(service: Service, connection: Any) -> None:
    """Each connection has its own."""
    other = service.connect(URL)
    assert post(service, connection, payload(), secret=other["secret"])[0] == 401


def test_a_sha1_signature_counts_for_nothing(service: Service, connection: Any) -> None:
    """GitHub still sends it; it is ignored."""
    status, _, _ = post(
        service, connection, payload(), x_hub_signature_256="", x_hub_signature="sha1=" + "0" * 40
    )
    assert status == 401


def test_one_changed_byte_is_401(service: Service, connection: Any) -> None:
    """The raw body is verified."""
    body = payload()
    signature = "sha256=" + hmac_hex(body, connection["secret"].encode())
    assert post(service, connection, body.replace(b"main", b"mind"), x_hub_signature_256=signature)[0] == 401


def test_both_secrets_of_a_rotation_are_live(service: Service, connection: Any) -> None:
    """The next rotation removes the old one; until then its use is shown."""
    old = connection["secret"]
    new = service.api.send("POST", f"/connections/{connection['id']}/rotate-secret")["secret"]
    assert post(service, connection, payload(A, B), secret=old)[0] == 202
    assert post(service, connection, payload(B, C), secret=new)[0] == 202
    shown = service.api.get(f"/connections/{connection['id']}")["secrets"]
    assert [secret["last_used_at"] is not None for secret in shown] == [True, True]
    service.api.send("POST", f"/connections/{connection['id']}/rotate-secret")
    assert post(service, connection, payload(C, A), secret=old)[0] == 401
    assert post(service, connection, payload(C, A), secret=new)[0] == 202


def test_an_unknown_connection_is_404(service: Service) -> None:
    """Also a well-formed id, and one that was deleted."""
    gone = service.connect(URL)
    service.api.send("DELETE", f"/connections/{gone['id']}")
    for path in (gone["path"], "/hooks/" + "0" * 24, "/hooks/%00", "/hooks/x" + "y" * 300):
        assert post(service, {**gone, "path": path}, payload())[0] == 404


def test_another_method_is_405(service: Service, connection: Any) -> None:
    """And the answer names the right one."""
    address = urlsplit(service.url)
    for method in ("GET", "PUT", "DELETE"):
        client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        client.request(method, connection["path"])
        answer = client.getresponse()
        assert (answer.status, answer.getheader("allow")) == (405, "OPTIONS, POST")
        assert json.loads(answer.read())["error"] == "method not allowed"
        client.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"ref": "\xff"}',
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 30_000,
        b'{"ref": NaN',
    ],
)
def test_a_signed_body_that_is_no_json_is_400_and_kept(
    service: Service, connection: Any, body: bytes
) -> None:
    """The sender is proven, so the delivery is stored, with the reason why it could not be read."""
    status, _, answer = post(service, connection, body)
    assert (status, answer.get("verdict")) == (400, "unreadable"), answer
    assert newest(service, connection)["reason"] == answer["detail"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ref": None},
        {"ref": 7},
        {"ref": "--upload-pack=x"},
        {"ref": "refs/heads/../x"},
        {"ref": "refs/heads/a\0b"},
        {"ref": "refs/heads/\ud800"},
        {"after": "zzz"},
        {"before": "0" * 39},
    ],
)
def test_a_signed_push_of_another_shape_is_unreadable(
    service: Service, connection: Any, changes: dict[str, Any]
) -> None:
    """It is a 2xx, so that the hook stays on; stored, with the wrong field as the reason."""
    status, _, answer = post(service, connection, payload(**changes))
    assert (status, answer["verdict"]) == (202, "unreadable")
    assert newest(service, connection)["updates"] == []


def test_a_signed_push_that_names_no_repository_is_carried(service: Service, connection: Any) -> None:
    """Refs and commit ids suffice: the push counts as one to the connection's repository."""
    status, _, answer = post(service, connection, payload(repository=None))
    assert (status, answer["verdict"]) == (202, "accepted")
    [update] = newest(service, connection)["updates"]
    assert update["ref"] == json.loads(payload())["ref"]


def test_a_push_to_another_repository_is_ignored(service: Service, connection: Any) -> None:
    """The provider's id, learned from a delivery, identifies the repository: a rename changes nothing."""
    body = json.loads(payload())
    other = {
        **body["repository"],
        "id": 1,
        "full_name": "evil/digits",
        "clone_url": "https://github.example/evil/x",
    }
    other["ssh_url"] = "git@github.example:evil/digits.git"
    answer = post(service, connection, payload(repository=other))[2]
    assert answer["verdict"] == "ignored"
    assert answer["reason"] == (
        "other repository: the delivery is about evil/digits (id 1), the connection is for"
        " github.example/acme/digits"
    )

    assert post(service, connection, payload(A, B))[2]["verdict"] == "accepted"
    renamed = {**other, "id": body["repository"]["id"]}
    assert post(service, connection, payload(B, C, repository=renamed))[2]["verdict"] == "accepted"
    impostor = {**body["repository"], "id": 1}
    assert post(service, connection, payload(C, A, repository=impostor))[2]["verdict"] == "ignored"
    shown = service.api.get(f"/connections/{connection['id']}")
    assert (shown["other_repository"]["id"], shown["other_repository"]["name"]) == ("1", "acme/digits")
    assert shown["repository_id"] == str(body["repository"]["id"])
    done = run_pushgate("forget-repository", connection["id"], service=service)
    assert done.returncode == 0
    assert post(service, connection, payload(C, A, repository=impostor))[2]["verdict"] == "accepted"


def test_a_form_is_read_like_json(service: Service, connection: Any) -> None:
    """GitHub's older content type; the signature covers the raw form."""
    from urllib.parse import urlencode  # noqa: PLC0415 - only here

    form = urlencode({"payload": payload().decode()}).encode()
    status, _, answer = post(service, connection, form, content_type="application/x-www-form-urlencoded")
    assert (status, answer["verdict"]) == (202, "accepted")
    for bad in (b"payload=1&payload=2", b"other={}", b"payload={}" + b"&a=b" * 100, b"payload=%ff"):
        kind = "application/x-www-form-urlencoded; charset=utf-8"
        assert post(service, connection, bad, content_type=kind)[0] == 400


def test_another_content_type_is_415(service: Service, connection: Any) -> None:
    """The answer names the expected types."""
    status, _, answer = post(service, connection, payload(), content_type="text/plain")
    assert status == 415
    assert "application/json" in answer["detail"]
    for encoding in ("gzip", "identity, gzip", "br"):
        assert post(service, connection, payload(), content_encoding=encoding)[0] == 415


@pytest.mark.parametrize("encoding", ["identity", "Identity", "IDENTITY", " identity ", " "])
def test_no_encoding_is_none_however_it_is_written(service: Service, connection: Any, encoding: str) -> None:
    """Some senders send `identity`, in any case, or an empty header."""
    assert post(service, connection, payload(), content_encoding=encoding)[0] == 202


def test_a_refusal_is_logged_with_what_one_looks_for(service: Service, connection: Any) -> None:
    """The provider shows the delivery's id, a firewall the address; neither is trusted."""
    post(service, connection, payload(), secret="wrong" * 4, x_github_delivery="an-id-of-the-provider")
    post(service, connection, payload(), secret="wrong" * 4, x_github_delivery="x" * 5000)
    post(service, connection, payload(), secret="wrong" * 4, x_github_delivery="")
    refused = [line for line in service.log() if line["event"] == "delivery refused"]
    ours = [line for line in refused if line["connection"] == connection["id"]]
    assert len(ours) == 3
    assert [line["client"] for line in ours] == ["127.0.0.1"] * 3
    assert [line["claimed_delivery"] for line in ours] == ["an-id-of-the-provider", "x" * 100, None]


def test_what_a_sender_calls_things_is_bounded(service: Service, connection: Any) -> None:
    """Event, delivery id and headers are cut to a length; a redelivery is still recognized."""
    long = "x" * 5000
    headers = {"x_github_delivery": long, "user_agent": long}
    answer = post(service, connection, payload(), x_github_event=long, **headers)[2]
    kept = service.api.get(f"/deliveries/{answer['delivery']}")
    assert (kept["event"], kept["provider_delivery_id"]) == ("x" * 100, "x" * 200)
    assert kept["reason"] == f"event {'x' * 100}"
    assert "x" * 1001 not in json.dumps(kept)
    again = [
        post(service, connection, payload(), **{**headers, "x_github_delivery": "y" * 5000}) for _ in "ab"
    ]
    assert [answer["verdict"] for _, _, answer in again] == ["accepted", "duplicate"]


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_over_the_limit_is_413(service: Service, connection: Any, *, chunked: bool) -> None:
    """One byte over, announced or not; a body at the limit is accepted."""
    body = b"x" * (LIMIT + 1)
    assert _raw(service, connection, body, chunked=chunked)[0] == 413
    assert _raw(service, connection, body * 5, chunked=chunked)[0] == 413
    assert _raw(service, connection, body[:-1], chunked=chunked)[0] == 400


def test_a_lying_content_length_ends_cleanly(service: Service, connection: Any) -> None:
    """More announced than sent: the wait ends, and the next request is served."""
    with _connected(service) as client:
        client.sendall(_head(connection, b"{}", b"content-length: 100\r\n") + b"{}")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    assert post(service, connection, payload())[0] == 202


def test_half_a_body_leaves_nothing(service: Service) -> None:
    """Also without a signature, as with GitLab's token: an interrupted request counts as not sent."""
    connection = service.connect(URL, provider="gitlab", secret="a plain token of GitLab")
    head = (
        f"POST {connection['path']} HTTP/1.1\r\nhost: x\r\nx-gitlab-token: {connection['secret']}\r\n"
        "x-gitlab-event: Note Hook\r\ncontent-type: application/json\r\n"
    ).encode()
    for _ in range(5):
        with _connected(service) as client:
            client.sendall(head + b"content-length: 100\r\n\r\n" + b"{}")
    with _connected(service) as client:
        client.sendall(head + b"content-length: 2\r\n\r\n" + b"{}")
        assert client.recv(1000).startswith(b"HTTP/1.1 202")
    assert len(service.api.get("/deliveries", connection=connection["id"])["items"]) == 1


def test_a_signature_that_is_sent_twice_is_401(service: Service, connection: Any) -> None:
    """Even if both are right: only one header is allowed."""
    body = payload()
    signature = b"x-hub-signature-256: sha256=" + hmac_hex(body, connection["secret"].encode()).encode()
    with _connected(service) as client:
        length = b"content-length: %d\r\n" % len(body)
        client.sendall(_head(connection, body, length + signature + b"\r\n") + body)
        assert client.recv(1000).startswith(b"HTTP/1.1 401")


def test_secrets_and_unlisted_headers_are_nowhere(service: Service, connection: Any) -> None:
    """Not in the log, not in the API, not in the data folder's raw files."""
    encoded = "the-encoded-secret-of-2025"
    post(
        service,
        connection,
        payload(),
        x_github_encoded_secret=encoded,
        authorization="Basic c2VjcmV0OnNlY3JldA==",
    )
    post(service, connection, payload(), secret="a-wrong-secret-that-somebody-sent")
    log = json.dumps(service.log())
    shown = json.dumps([service.api.get("/connections"), service.api.get("/deliveries")])
    stored = service.stored()
    for secret in (connection["secret"], encoded, "c2VjcmV0OnNlY3JldA=="):
        assert secret not in log
        assert secret not in shown
        assert secret.encode() not in stored


def _raw(service: Service, connection: Any, body: bytes, *, chunked: bool) -> tuple[int, Any]:
    address = urlsplit(service.url)
    client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    signature = "sha256=" + hmac_hex(body, connection["secret"].encode())
    headers = {"x-hub-signature-256": signature, "x-github-event": "push", "content-type": "application/json"}
    pieces = (body[start : start + 8192] for start in range(0, len(body), 8192))
    with closing(client):
        client.request(
            "POST", connection["path"], pieces if chunked else body, headers, encode_chunked=chunked
        )
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())


def _connected(service: Service) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def _head(connection: Any, body: bytes, more: bytes) -> bytes:
    signature = hmac_hex(body, connection["secret"].encode())
    return (
        (
            f"POST {connection['path']} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"x-github-event: push\r\nx-hub-signature-256: sha256={signature}\r\n"
        ).encode()
        + more
        + b"\r\n"
    )
