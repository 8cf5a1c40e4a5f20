"""The webhook requests of deliveries, as the REST API returns them."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from gateway.api.received_requests import MAX_SHOWN_BYTES, ReceivedRequests
from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound
from gateway.store import accept, connections, refusals
from gateway.store.database import Database
from gateway.store.refusals import Refusal
from testing.records import NOW, A, B, arrival, connection, move
from tests.intake import local


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return a store with one connection."""
    database = Database(f"sqlite:///{tmp_path / 'requests.db'}")
    database.migrate()
    connection(database)
    yield database
    database.close()


def stored(database: Database, **changes: Any) -> str:
    """Store a delivery, and return its id."""
    new = arrival(move(A, B), **changes)
    with database.writing() as conn:
        accept.record(conn, [new])
    return new.id


def asked(delivery: str) -> Request:
    """Return a request about a delivery."""
    return Request({"type": "http", "headers": [], "query_string": b"", "path_params": {"id": delivery}})


def shown(database: Database, delivery: str) -> Any:
    """Return the API's answer as JSON."""
    answer = asyncio.run(ReceivedRequests(database=database).get_delivery_request(asked(delivery)))
    return answer.model_dump(mode="json")


def body(database: Database, delivery: str) -> Any:
    """Return the response with the body of a delivery."""
    return asyncio.run(ReceivedRequests(database=database).get_delivery_body(asked(delivery)))


def test_a_request_is_shown_with_its_headers_and_its_body_as_text(database: Database) -> None:
    """The path is that of the webhook that received it."""
    headers = {"content-type": "application/json; charset=utf-8", "x-github-event": "push"}
    delivery = stored(database, headers=headers, body='{"name": "Ü"}'.encode())
    found = shown(database, delivery)
    assert found["method"] == "POST"
    assert found["path"] == "/hooks/c1"
    assert found["headers"] == headers
    assert found["body"] == {
        "size": 14,
        "media_type": "application/json",
        "encoding": "text",
        "content": '{"name": "Ü"}',
    }


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"zen": "Keep it simple."}', 202), (b"{", 400), (b"[]", 202)]
)
def test_the_stored_response_is_the_one_that_was_given(tmp_path: Path, body: bytes, status: int) -> None:
    """With the client's address, and in place of the signature its length."""
    database = Database(f"sqlite:///{tmp_path / 'endpoint.db'}")
    database.migrate()
    local.connect(database)
    answer = local.asked(database, local.scope(body, {"content-type": "application/json"}), body)
    assert answer.status == status
    found = shown(database, answer.body["delivery"])
    assert found["response"] == {"status": status, "body": answer.body}
    assert found["client"] == "192.0.2.1"
    assert found["masked_headers"] == {"x-hub-signature-256": "•••• (71 characters)"}
    assert set(found["headers"]) == {"content-type", "x-github-event"}
    database.close()


def test_a_request_that_an_earlier_version_received_has_no_response(database: Database) -> None:
    """It has stored neither the answer nor the client."""
    found = shown(database, stored(database, exchange=None))
    assert (found["response"], found["client"], found["masked_headers"]) == (None, None, {})


def test_the_path_of_a_delivery_to_a_source_is_that_of_the_source(database: Database) -> None:
    """Its secret has verified the request, and the connection was found by the repository's id."""
    connection(database, "s1", kind="source")
    keyring = Keyring("k" * 32)
    with database.writing() as conn:
        connections.add_secret(conn, keyring, "s1", b"secret", now=NOW)
        [secret] = connections.live_secrets(conn, keyring, "s1")
    assert shown(database, stored(database, secret=secret.id))["path"] == "/hooks/s1"


def test_a_body_that_is_not_text_is_base64(database: Database) -> None:
    """And without the header, its media type is empty."""
    found = shown(database, stored(database, body=b"\xff\x00"))
    assert found["body"]["encoding"] == "base64"
    assert base64.b64decode(found["body"]["content"]) == b"\xff\x00"
    assert found["body"]["media_type"] == ""


def test_a_large_body_is_only_in_the_download(database: Database) -> None:
    """The answer in JSON has its size."""
    fits, large = b"[" + b" " * (MAX_SHOWN_BYTES - 2) + b"]", b" " * (MAX_SHOWN_BYTES + 1)
    assert shown(database, stored(database, body=fits))["body"]["content"] == fits.decode()
    delivery = stored(database, body=large)
    found = shown(database, delivery)["body"]
    assert (found["size"], found["content"]) == (MAX_SHOWN_BYTES + 1, None)
    assert body(database, delivery).body == large


def test_the_download_is_the_body_byte_for_byte_and_no_page(database: Database) -> None:
    """Who can push chooses what it contains, so no browser may show it as a page of the gateway."""
    page = b"<script>alert(1)</script>\r\n\xff"
    answer = body(database, stored(database, headers={"content-type": "text/html"}, body=page))
    assert answer.body == page
    assert answer.headers["content-length"] == str(len(page))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_what_has_no_request_is_not_found(database: Database) -> None:
    """With a sentence that says why."""
    with pytest.raises(NotFound, match="no delivery has the id d9"):
        shown(database, "d9")
    with pytest.raises(NotFound, match="reconciliation found the push"):
        shown(database, stored(database, source="reconciliation"))
    refused = Refusal(
        connection="c1",
        client="192.0.2.1",
        status=401,
        cause="not verified",
        reason="the signature is wrong",
        event="push",
        provider_delivery_id=None,
        first_at=NOW,
        last_at=NOW,
    )
    with database.writing() as conn:
        refusals.record(conn, [refused])
        [found] = refusals.page(conn, connection="c1", before=None, limit=1)
    for look in (shown, body):
        with pytest.raises(NotFound, match="nothing of a refused request is stored"):
            look(database, found.id)
