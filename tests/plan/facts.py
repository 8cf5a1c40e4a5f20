"""Facts about a connection, a ref update and a commit, which the tests of planning vary."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.plan.planner import CommitFacts, ConnectionFacts, Plan, UpdateFacts, plan
from gateway.plan.triggers import read_triggers

BEFORE, AFTER = "a" * 40, "b" * 40

CONNECTION = ConnectionFacts(
    id="cn_1",
    project="digits",
    provider="github",
    url="https://github.com/acme/digits.git",
    yaml_path="valohai.yaml",
    repository_id="17",
    repository_name="acme/digits",
    web_url="https://github.com/acme/digits",
)

UPDATE = UpdateFacts(
    delivery="dl_1",
    ref="refs/heads/main",
    kind="branch",
    name="main",
    before=BEFORE,
    after=AFTER,
    action="update",
    generation=3,
    pusher="mona",
)

MANIFEST = b"""
- step:
    name: train
    image: python:3.11
    command:
      - pip install -r requirements.txt
      - python train.py {parameters}
    parameters:
      - {name: epochs, type: integer, default: 5, min: 1}
      - {name: rate, type: float, optional: true}
      - {name: verbose, type: flag, default: true}
    inputs:
      - {name: data, default: "s3://bucket/data.csv"}
      - {name: labels, optional: true}
    outputs:
      - {name: model}
    environment: cpu
    environment-variables:
      - {name: MODE, default: fast}
      - {name: TOKEN}
    environment-variable-groups: [shared]
    mounts:
      - /host:/container
    cache-volumes: [claim]
    resources: {cpu: {min: 1}, memory: {max: 8}, devices: {nvidia.com/gpu: 1}}
    runtime-config-preset: small
    upload-store: store
    autorestart: true
    stop-condition: accuracy > 0.9
    time-limit: 1h 30m
    no-output-timeout: 600
    source-path: train.py
    description: Trains.
- step:
    name: evaluate
    image: python:3.11
    command: python evaluate.py {parameters}
    parameters:
      - {name: threshold, type: float}
    inputs:
      - {name: model}
- pipeline:
    name: nightly
    parameters:
      - {name: limit, targets: [check.parameters.threshold], default: 0.5}
    nodes:
      - {name: fit, type: execution, step: train}
      - {name: check, type: execution, step: evaluate}
    edges:
      - [fit.output.model, check.input.model]
"""

COMMIT = CommitFacts(
    id=AFTER,
    author="Mona <mona@example.com>",
    message="Train for longer\n",
    committed_at=datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
    paths=("train.py", "docs/index.md"),
    paths_complete=True,
    manifest=MANIFEST,
    manifest_size=len(MANIFEST),
)

EVERYTHING = (Path(__file__).parent / "everything.yaml").read_bytes()
"""A valohai.yaml that sets every field that the platform's parser reads."""

HEAD = "- step:\n    name: train\n    image: i\n"
"""The beginning of a valohai.yaml with one step."""


def planned(*triggers: dict[str, Any], manifest: bytes | str = MANIFEST) -> Plan:
    """Plan the push to main with these triggers."""
    text = manifest.encode() if isinstance(manifest, str) else manifest
    return plan(
        connection=CONNECTION,
        update=UPDATE,
        commit=replace(COMMIT, manifest=text, manifest_size=len(text)),
        triggers=read_triggers(triggers),
    )


def trigger(name: str = "t", *, step: str = "train", **fields: Any) -> dict[str, Any]:
    """Return a trigger for a step."""
    return {"name": name, "run": {"step": step}, **fields}
