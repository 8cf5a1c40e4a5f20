"""The contract of reports: what is read, and what is refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Invalid
from gateway.messages.execution_status import (
    MAX_REPORT_BYTES,
    MAX_SEQUENCE,
    STATUS_TYPE,
    ExecutionStatus,
    read_report,
    status_schema,
)
from testing.example import reports

DOCS = Path(__file__).parents[2] / "docs"
EXECUTION = "bf02aab5-0d80-55a9-808a-ba51c6818932"
REPORT: dict[str, Any] = {
    "id": EXECUTION,
    "state": "running",
    "at": "2026-05-04T12:31:40Z",
    "sequence": 2,
}


def read(**changed: Any) -> ExecutionStatus:
    """Return the report with these fields, as it is read from JSON."""
    return read_report(json.dumps({**REPORT, **changed}).encode(), is_structured=False)


def test_the_schema_in_docs_is_that_of_the_model() -> None:
    """If it fails, run `make documents`, and review the difference as a runner's author would."""
    assert json.loads((DOCS / "execution-status.schema.json").read_text()) == status_schema()


def test_the_contract_changes_only_compatibly() -> None:
    """No field of the first version is removed or narrowed, and none becomes required."""
    first = json.loads((Path(__file__).parent / "execution-status-1.0.schema.json").read_text())
    now = status_schema()
    for part, old in {"": first, **first["$defs"]}.items():
        new = now["$defs"][part] if part else now
        assert new["required"] == old["required"]
        assert {field: new["properties"][field] for field in old["properties"]} == old["properties"]


def test_every_field_is_described() -> None:
    """The authors of runners build on the schema."""
    described = status_schema()
    for model in (described, *described["$defs"].values()):
        assert [name for name, field in model["properties"].items() if "description" not in field] == []


def test_the_examples_are_read() -> None:
    """What the schema shows is valid."""
    found = [read_report(json.dumps(report).encode(), is_structured=False) for report in reports(EXECUTION)]
    assert [report.state for report in found] == ["accepted", "running", "succeeded"]
    assert found[-1].metrics == {"accuracy": 0.93, "loss": 0.21}


def test_a_report_in_a_cloud_event_is_the_same_report() -> None:
    """SDKs of CloudEvents send structured mode."""
    envelope = {
        "specversion": "1.0",
        "id": "1",
        "source": "/runners/7",
        "type": STATUS_TYPE,
        "datacontenttype": "application/json",
        "data": REPORT,
    }
    assert read_report(json.dumps(envelope).encode(), is_structured=True) == read()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"specversion": "1.0", "type": "com.example.other", "data": {}}', "type: "),
        (b'{"specversion": "0.3", "type": "dev.pushgate.execution.status.v1", "data": {}}', "specversion: "),
        (b'{"specversion": "1.0", "type": "dev.pushgate.execution.status.v1"}', "data: Field required"),
        (
            b'{"specversion": "1.0", "type": "dev.pushgate.execution.status.v1", "data": {}}',
            "data.id: Field required",
        ),
        (b"no JSON", "Invalid JSON"),
    ],
)
def test_another_event_is_refused(body: bytes, reason: str) -> None:
    """The reason names the attribute."""
    with pytest.raises(Invalid, match=reason):
        read_report(body, is_structured=True)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("id", "", "id: "),
        ("id", "x" * 101, "id: "),
        ("id", None, "id: "),
        ("state", "lost", "state: "),
        ("state", "Running", "state: "),
        ("at", "2026-05-04T12:31:40", "at: .*timezone"),
        ("at", "1999-12-31T23:59:59Z", "at: must be between the years 2000 and 2200"),
        ("at", "9999-12-31T23:59:59-14:00", "at: must be between the years 2000 and 2200"),
        ("sequence", -1, "sequence: "),
        ("sequence", MAX_SEQUENCE + 1, "sequence: "),
        ("sequence", "2", "sequence: "),
        ("sequence", True, "sequence: "),
        ("url", "javascript:alert(1)", "url: must be an http:// or https:// URL without blanks"),
        ("url", "https://ml.example/a b", "url: must be an http"),
        ("url", "https://ml.example/\u0000", "url: must be an http"),
        ("url", 'https://ml.example/"', "url: must be an http"),
        ("url", "https://ml.example/" + "x" * 2000, "url: "),
        ("log_url", "ftp://ml.example", "log_url: must be an http"),
        ("summary", "x" * 65_537, "summary: "),
        ("metrics", {str(number): 1 for number in range(101)}, "metrics: "),
        ("metrics", {"a": "1"}, "metrics.a: "),
        ("metrics", {"a": True}, "metrics.a: "),
        ("metrics", {"a": float("nan")}, "metrics.a: "),
        ("metrics", {"": 1}, "metrics"),
        ("outputs", [{"name": str(number)} for number in range(201)], "outputs: "),
        ("outputs", [{"url": "s3://x"}], "outputs.0.name: Field required"),
        ("runner", "x" * 201, "runner: "),
    ],
)
def test_what_no_report_may_contain_is_refused(field: str, value: Any, reason: str) -> None:
    """Each field has its bound, and the sentence names the field."""
    with pytest.raises(Invalid, match=reason):
        read(**{field: value})


def test_values_at_their_bounds_are_read() -> None:
    """The bounds are inclusive."""
    found = read(
        id="x" * 100,
        sequence=MAX_SEQUENCE,
        metrics={f"{number:0>200}": -1.5 for number in range(100)},
        outputs=[{"name": "x" * 200} for _ in range(199)] + [{"name": "x", "url": "s" * 2000}],
        url="http://ml.example/" + "x" * (2000 - len("http://ml.example/")),
        runner="r" * 200,
        at="2000-01-01T00:00:00Z",
    )
    assert (found.sequence, len(found.metrics or {}), len(found.outputs or ())) == (MAX_SEQUENCE, 100, 200)
    assert read(summary="x" * 65_536).summary == "x" * 65_536
    assert read(sequence=0, at="2199-12-31T23:59:59Z").sequence == 0


def test_a_report_has_a_bound_on_its_whole() -> None:
    """Whatever its fields; the size in the sentence is that of the body."""
    body = json.dumps(REPORT).encode()
    fits = body[:-1] + b" " * (MAX_REPORT_BYTES - len(body)) + b"}"
    assert read_report(fits, is_structured=False) == read()
    with pytest.raises(Invalid, match="the report has 131073 bytes: at most 131072 are allowed"):
        read_report(fits + b" ", is_structured=False)


def test_text_is_made_storable_and_unknown_fields_are_ignored() -> None:
    """PostgreSQL refuses NUL; a runner may be newer than the gateway."""
    found = read(summary="a\0b", metrics={"m\0": 1}, outputs=[{"name": "o\0", "size": 7}], later=[1])
    assert found.contents() == {
        "url": None,
        "log_url": None,
        "summary": "a\\x00b",
        "metrics": {"m\\x00": 1.0},
        "outputs": [{"name": "o\\x00", "url": None}],
        "runner": None,
    }


def test_moments_are_in_utc() -> None:
    """Whatever the zone of the runner."""
    assert read(at="2026-05-04T14:31:40+02:00").at == read().at
    assert read(at="2026-05-04T14:31:40+02:00").at.isoformat() == "2026-05-04T12:31:40+00:00"
