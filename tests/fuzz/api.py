"""Test the REST API against its OpenAPI document: `python -m tests.fuzz.api --seconds 300`.

Schemathesis makes requests from the document, valid and invalid ones, and follows what they have made. All of
its checks apply: https://schemathesis.readthedocs.io/en/stable/reference/checks/
"""

import argparse
import json
import random
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import schemathesis
from schemathesis.engine import Status, events, from_schema
from schemathesis.python import asgi
from sqlalchemy import select
from structlog.testing import capture_logs

from gateway.store import executions
from gateway.store.tables import ref_updates
from providers import github
from testing.example import messages
from testing.github import push_payload
from testing.in_process import InProcess
from testing.records import request
from testing.service import ADMIN_TOKEN

_URL = "https://github.com/acme/digits.git"
_NEW = {"provider": "github", "url": _URL, "project": "digits", "name": "digits"}
# Valid data may be refused with 422 for what no schema says: a key must be one, an identity must exist.
_ACCEPTED = ["2xx", "3xx", 401, 403, 404, 409, 412, 416]


def main() -> int:
    """Return 1 if there are failures, which are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.api", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311 - no secret
    given = parser.parse_args()
    sys.stdout.write(f"fuzzing the API with the seed {given.seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        found = failures(Path(folder), seed=given.seed, max_examples=10_000, max_seconds=given.seconds)
    sys.stdout.write("\n\n".join([*found, f"{len(found)} failures\n"]))
    return bool(found)


def failures(
    folder: Path,
    *,
    seed: int,
    max_examples: int,
    max_seconds: float | None = None,
    is_brief: bool = False,
) -> list[str]:
    """Return what schemathesis finds in a new gateway, each with a command that reproduces it.

    If it `is_brief`, requests are drawn at random only: all combinations take three times as long.
    """
    # All wrong tokens come from one client, whose limit is tested elsewhere.
    with mock.patch("gateway.api.auth._MAX_TRIES", 10**9), capture_logs():
        gateway = InProcess(folder / "data")
        known = _fill(gateway)
        document = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
        config = schemathesis.Config.from_dict(
            {
                "seed": seed,
                "headers": {"Authorization": f"Bearer {ADMIN_TOKEN}"},
                "continue-on-failure": True,
                **({} if max_seconds is None else {"max-time": max_seconds}),
                "generation": {"max-examples": max_examples, "database": "none"},
                # tests/api/test_problems.py tries all methods on each path.
                "phases": {"coverage": {"enabled": not is_brief, "unexpected-methods": ["TRACE"]}},
                # No worker runs, for which an answer would wait.
                "parameters": {"wait": 0},
                "checks": {"positive_data_acceptance": {"expected-statuses": _ACCEPTED}},
                "dictionaries": {name: {"values": [value]} for name, value in known.items()},
                "operations": list(_operations(document, known)),
            }
        )
        schema = schemathesis.openapi.from_asgi("/openapi.json", gateway.application, config=config)
        # It does not end.
        tested = schema.exclude(path="/api/v1/executions/stream")
        try:
            return list(dict.fromkeys(_found(from_schema(tested).execute())))
        finally:
            asgi.shutdown_lifespans()


def _operations(document: Any, known: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of operations: half of their ids are known, and some may refuse valid data."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            configured: dict[str, Any] = {}
            names = {each["name"] for each in operation.get("parameters", ())}
            if "requestBody" in operation or method == "post" or names & {"cursor", "what", "connection"}:
                statuses = [*_ACCEPTED, 400, 415, 422]
                configured["checks"] = {"positive_data_acceptance": {"expected-statuses": statuses}}
            subject = operation["tags"][0]
            if "id" in names and subject in known:
                configured["parameters"] = {"path.id": {"dictionary": subject, "probability": 0.5}}
            if configured:
                yield {"include-name": f"{method.upper()} {path}", **configured}


def _found(run: Any) -> Iterator[str]:
    """Yield the failures of a run as text. Raise `AssertionError` if it could not be carried out."""
    tested = 0
    for event in run:
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            # An exception in the application, too, or a document that cannot be used.
            yield f"{event.label}: {''.join(traceback.format_exception(event.value))}"
        if not isinstance(event, events.ScenarioFinished):
            continue
        tested += len(event.recorder.cases)
        for case, checks in event.recorder.checks.items():
            for check in checks:
                if check.status == Status.FAILURE and check.failure_info is not None:
                    failure = check.failure_info
                    sent = event.recorder.interactions[case].response
                    status = sent and (sent.status_code, sent.content[:500])
                    what = f"{event.recorder.label}: {failure.failure.title}: {failure.failure.message}"
                    yield f"{what}\n{failure.code_sample[:2000]}\n{status}"
    assert tested > 0


def _fill(gateway: InProcess) -> dict[str, str]:
    """Store a connection with a delivery and an execution; return their ids by the subject of their paths."""
    authorized = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    application: Any = gateway.application
    with asgi.get_client(application) as client:
        made = client.post("/api/v1/connections?wait=0", json=_NEW, headers=authorized).json()
        body = push_payload(
            url=_URL, full_name="acme/digits", ref="refs/heads/main", before=None, after="a" * 40
        )
        secret = made["secret"].encode()
        signed = github.sign(
            event="push", body=body, secret=secret, delivery=str(uuid.uuid4()), now=datetime.now(UTC)
        )
        answer = client.post(f"/hooks/{made['id']}", data=body, headers=signed).json()
    [message, *_] = messages()["execution-request"]
    # In the form in which the planner stores it.
    stored = json.dumps(message, separators=(",", ":")).encode()
    planned = request(message["id"], connection=made["id"], delivery=answer["delivery"], body=stored)
    with gateway.database.writing() as conn:
        [update] = conn.execute(select(ref_updates.c.seq)).scalars()
        executions.add(conn, [planned], ref_update=update, now=datetime.now(UTC))
    return {"connections": made["id"], "deliveries": answer["delivery"], "executions": message["id"]}


if __name__ == "__main__":
    sys.exit(main())
