"""The URL at which runners report: what it permits, and where it stands in the message."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.messages.execution_request import ExecutionRequest, MergeGroup
from gateway.publish.status_urls import VALID_FOR, StatusUrls, subject
from gateway.store.executions import OMITTED, StoredRequest
from testing.example import requests
from tests.publish.outbox import request

NOW = datetime(2026, 5, 4, 12, 31, tzinfo=UTC)
TOKENS = SignedTokens(b"k" * 32, valid=VALID_FOR)
URLS = StatusUrls(signed_tokens=TOKENS, base_url="https://push.example/a")


def planned(made: ExecutionRequest) -> StoredRequest:
    """Return a stored request as it was planned."""
    body = made.model_copy(update={"status_url": None}).model_dump_json().encode()
    return replace(request(made.id), body=body)


@pytest.mark.parametrize("merge_group", [None, MergeGroup(base="main")], ids=["alone", "merge group"])
@pytest.mark.parametrize("made", requests(), ids=lambda made: made.execution.kind)
def test_a_request_gets_its_url_and_nothing_else_changes(
    made: ExecutionRequest, merge_group: MergeGroup | None
) -> None:
    """The URL allows reports about this request, for thirty days. The field before it may be an object."""
    made = made.model_copy(update={"merge_group": merge_group})
    completed = URLS.completed(planned(made), now=NOW)
    message = json.loads(completed.body)
    url = urlsplit(message["status_url"])
    assert ExecutionRequest.model_validate(message) == made.model_copy(
        update={"status_url": message["status_url"]}
    )
    assert (url.netloc, url.path) == ("push.example", f"/a/api/v1/executions/{made.id}/status")
    query = parse_qs(url.query)
    token = SignedToken(query["expires"][0], query["signature"][0])
    assert TOKENS.is_valid(subject(made.id), token, now=NOW + VALID_FOR - timedelta(seconds=1))
    assert not TOKENS.is_valid(subject(made.id), token, now=NOW + VALID_FOR)
    assert timedelta(days=30) == VALID_FOR
    assert not TOKENS.is_valid(subject("another"), token, now=NOW)
    assert list(message)[-1] == "status_url"


def test_a_republished_request_gets_another_url() -> None:
    """The stored body keeps none."""
    stored = planned(requests()[0])
    first, second = (URLS.completed(stored, now=NOW + timedelta(days=days)) for days in (0, 20))
    assert first.body != second.body
    assert stored.body.endswith(b'"status_url":null}')


def test_a_request_that_an_earlier_version_planned_gets_a_url_too() -> None:
    """Its body lacks the last fields; fields of these names in valohai.yaml are left alone."""
    definition = '{"name":"train","rerun_of":"x","status_url":null}'
    former = f'{{"id":"r1","execution":{{"definition":{definition}}},"package":null,"merge_group":null}}'
    message = json.loads(URLS.completed(replace(request("r1"), body=former.encode()), now=NOW).body)
    assert message.pop("status_url").startswith("https://push.example/a/api/v1/executions/r1/status?")
    assert list(message)[-1] == "rerun_of"
    assert message.pop("rerun_of") is None
    assert message == json.loads(former)


def test_a_body_that_was_not_read_stays_so() -> None:
    """Long lists leave bodies out."""
    assert URLS.completed(replace(request("r1"), body=OMITTED), now=NOW).body == OMITTED
