"""Planning: facts in, execution requests and reasons out."""

from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from gateway.messages.execution import Mount, Output, ResourceRange, Resources, StepExecution
from gateway.messages.execution_request import (
    Commit,
    ExecutionRequest,
    Package,
    Ref,
    Repository,
    Submodule,
    execution_id,
    schema,
)
from gateway.plan.manifest import MAX_MANIFEST_BYTES, read_manifest
from gateway.plan.planner import Plan, plan
from gateway.plan.triggers import PullRequestFacts, TriggerMatch, read_triggers
from testing.records import NOW
from tests.plan.facts import AFTER, BEFORE, COMMIT, CONNECTION, MANIFEST, UPDATE, planned, trigger


def test_a_push_requests_a_step_at_exactly_its_commit() -> None:
    """The whole request, field by field."""
    result = planned(trigger(parameters={"epochs": "20"}))
    definition = read_manifest(MANIFEST, path="v").steps["train"].serialize()
    identity = execution_id(
        connection="cn_1", ref="refs/heads/main", generation=3, before=BEFORE, after=AFTER, trigger="t"
    )
    expected = ExecutionRequest(
        id=identity,
        project="digits",
        connection="cn_1",
        delivery="dl_1",
        repository=Repository(
            provider="github", id="17", name="acme/digits", url="https://github.com/acme/digits.git"
        ),
        ref=Ref(name="main", kind="branch"),
        commit=Commit(
            id=AFTER,
            before=BEFORE,
            author="Mona <mona@example.com>",
            message="Train for longer\n",
            committed_at=COMMIT.committed_at,
            url=f"https://github.com/acme/digits/commit/{AFTER}",
        ),
        pushed_by="mona",
        trigger="t",
        yaml_path="valohai.yaml",
        execution=StepExecution(
            name="train",
            image="python:3.11",
            command=("pip install -r requirements.txt", "python train.py --epochs=20 --verbose"),
            parameters={"epochs": 20, "verbose": True},
            inputs={"data": ("s3://bucket/data.csv",)},
            outputs=(Output(name="model"),),
            environment="cpu",
            environment_variables={"MODE": "fast"},
            environment_variable_groups=("shared",),
            mounts=(Mount(source="/host", destination="/container"),),
            cache_volumes=("claim",),
            resources=Resources(
                cpu=ResourceRange(min=1), memory=ResourceRange(max=8), devices={"nvidia.com/gpu": 1}
            ),
            runtime_config_preset="small",
            upload_store="store",
            autorestart=True,
            stop_condition="accuracy > 0.9",
            time_limit=5400,
            no_output_timeout=600,
            source_path="train.py",
            definition=definition,
        ),
    )
    assert result == Plan(
        requests=(expected,),
        verdicts=(TriggerMatch(trigger="t", matched=True, reason="branch main matches"),),
        reason="1 execution request",
        failures={},
    )


@pytest.mark.parametrize("run", [{"step": "train"}, {"pipeline": "nightly"}])
def test_a_request_is_what_the_schema_says(run: dict[str, str]) -> None:
    """The JSON is valid against the schema, and reading it returns the same request."""
    package = Package(
        id="c" * 64, url="https://x/p", expires_at=NOW, sha256="d" * 64, size=3, format="tar.gz"
    )
    submodule = Submodule(path="lib", url="https://x/lib", commit="e" * 40)
    result = plan(
        connection=CONNECTION,
        update=UPDATE,
        commit=COMMIT,
        triggers=read_triggers([{"name": "t", "run": run}]),
    )
    [planned] = result.requests
    # The worker adds the package once it is built.
    request = planned.model_copy(update={"package": package, "submodules": (submodule,)})
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(request.model_dump(mode="json"), schema())
    assert ExecutionRequest.model_validate_json(request.model_dump_json()) == request
    assert (request.package, request.submodules) == (package, (submodule,))


def test_no_trigger_matched_says_why_for_each() -> None:
    """The valohai.yaml is not even read."""
    result = planned(trigger("a", branches=["dev"]), trigger("b", tags=["v*"]), manifest="[")
    assert result == Plan(
        requests=(),
        verdicts=(
            TriggerMatch(trigger="a", matched=False, reason="branch main does not match dev"),
            TriggerMatch(
                trigger="b", matched=False, reason="the trigger runs only on tag, and this is a branch"
            ),
        ),
        reason=(
            "no trigger matched: a: branch main does not match dev;"
            " b: the trigger runs only on tag, and this is a branch"
        ),
        failures={},
    )


def test_without_triggers_a_push_is_fetched_and_that_is_all() -> None:
    """A connection may exist only for its mirror."""
    assert planned() == Plan(
        requests=(), verdicts=(), reason="fetched; the connection has no triggers", failures={}
    )


@pytest.mark.parametrize(
    ("moved", "runs"),
    [
        ({"name": "main"}, True),
        ({"name": "release/1"}, True),
        ({"name": "release/old"}, False),
        ({"name": "topic"}, False),
        ({"name": "v1", "kind": "tag"}, True),
        ({"name": "7", "kind": "pull_request", "pull_request": "main"}, True),
        ({"name": "7", "kind": "pull_request", "pull_request": "topic"}, False),
        ({"name": "gh-readonly-queue/main/pr-7-a", "kind": "merge_group"}, True),
        ({"name": "gh-readonly-queue/topic/pr-7-a", "kind": "merge_group"}, False),
    ],
)
def test_only_branches_that_are_followed_run_something(moved: dict[str, Any], *, runs: bool) -> None:
    """Regardless of the triggers. A pull request counts as its target branch; tags are not affected."""
    if "pull_request" in moved:
        facts = PullRequestFacts(number="7", source="x", target=moved["pull_request"], from_fork=False)
        moved = {**moved, "pull_request": facts}
    result = plan(
        connection=replace(CONNECTION, follows=("main", "release/*", "!release/old")),
        update=replace(UPDATE, **moved),
        commit=COMMIT,
        triggers=read_triggers([trigger(on=["push", "tag", "pull_request", "merge_group"])]),
    )
    [verdict] = result.verdicts
    followed = "only main, release/*, !release/old"
    assert (len(result.requests), verdict.matched, followed in result.reason) == (runs, runs, not runs)


def test_deletes_never_run_anything() -> None:
    """Not even if every condition matches."""
    result = plan(
        connection=CONNECTION,
        update=replace(UPDATE, action="delete", after=None),
        commit=COMMIT,
        triggers=read_triggers([trigger()]),
    )
    assert (result.requests, result.failed) == ((), False)
    assert result.reason == "no trigger matched: t: the branch was deleted: nothing runs"


def test_one_failing_trigger_leaves_the_others_alone() -> None:
    """The reason covers both, and the plan counts as failed."""
    result = planned(trigger("bad", step="trian"), trigger("good"))
    assert [request.trigger for request in result.requests] == ["good"]
    assert result.reason == (
        "trigger bad: valohai.yaml has no step trian; its steps: train, evaluate; 1 execution request"
    )
    assert result.failed is True


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (trigger(step="x"), "valohai.yaml has no step x; its steps: train, evaluate"),
        (
            {"name": "t", "run": {"pipeline": "x"}},
            "valohai.yaml has no pipeline x; its pipelines: nightly",
        ),
        (trigger(parameters={"x": 1}), "step train has no parameter x; it has: epochs, rate, verbose"),
        (trigger(inputs={"x": ["s3://y"]}), "step train has no input x; it has: data, labels"),
        (trigger(parameters={"epochs": "many"}), "step train, parameter epochs: many is not an integer"),
        (
            trigger(parameters={"epochs": 0}),
            "step train, parameter epochs: 0 is less than the minimum allowed (1)",
        ),
        (
            trigger(parameters={"epochs": [1, 2]}),
            "step train, parameter epochs: Only a single value is allowed",
        ),
        (
            trigger(parameters={"epochs": True}),
            "step train, parameter epochs: it is a number and cannot be true or false",
        ),
        (
            trigger(parameters={"verbose": "no"}),
            "step train, parameter verbose: it is a flag and has to be true or false, not 'no'",
        ),
        (
            trigger(parameters={"rate": "nan"}),
            "step train contains a value that JSON does not have: Out of range float",
        ),
        (
            trigger(step="evaluate", inputs={"model": ["s3://m"]}),
            "step evaluate needs a value for threshold: give it in the trigger",
        ),
        (
            trigger(step="evaluate", parameters={"threshold": 1}),
            "step evaluate needs an address for input model: give it in the trigger",
        ),
        (
            {"name": "t", "run": {"pipeline": "nightly"}, "parameters": {"limit": "much"}},
            "pipeline nightly, node check, parameter threshold: much is not a floating-point number",
        ),
        (
            {"name": "t", "run": {"pipeline": "nightly"}, "parameters": {"x": 1}},
            "pipeline nightly has no parameter x; it has: limit",
        ),
    ],
)
def test_a_trigger_that_contradicts_the_commit_is_a_reason(fields: dict[str, Any], reason: str) -> None:
    """There is no request."""
    result = planned(fields)
    assert (result.requests, result.failed) == ((), True)
    assert result.reason.startswith(f"trigger t: {reason}")


def test_a_missing_manifest_is_a_reason() -> None:
    """So is one that is too large, whose size is known without reading it."""
    missing = plan(
        connection=replace(CONNECTION, yaml_path="ml/valohai.yaml"),
        update=UPDATE,
        commit=replace(COMMIT, manifest=None, manifest_size=None),
        triggers=read_triggers([trigger()]),
    )
    assert (missing.reason, missing.failed) == ("the commit has no file ml/valohai.yaml", True)
    large = plan(
        connection=CONNECTION,
        update=UPDATE,
        commit=replace(COMMIT, manifest=None, manifest_size=300_000),
        triggers=read_triggers([trigger()]),
    )
    assert (large.reason, large.failed) == (
        f"valohai.yaml has 300000 bytes; at most {MAX_MANIFEST_BYTES} are read",
        True,
    )


@pytest.mark.parametrize(
    ("provider", "web_url", "url"),
    [
        ("github", "https://github.com/a/b", f"https://github.com/a/b/commit/{AFTER}"),
        ("gitlab", "https://gitlab.com/a/b/", f"https://gitlab.com/a/b/-/commit/{AFTER}"),
        ("bitbucket", "https://bitbucket.org/a/b", f"https://bitbucket.org/a/b/commits/{AFTER}"),
        (
            "bitbucket-server",
            "https://h/projects/P/repos/r/browse",
            f"https://h/projects/P/repos/r/commits/{AFTER}",
        ),
        (
            "azure-devops",
            "https://dev.azure.com/o/p/_git/r",
            f"https://dev.azure.com/o/p/_git/r/commit/{AFTER}",
        ),
        ("generic", "https://h/r", None),
        ("github", None, None),
        ("github", "javascript:alert(1)//", None),
    ],
)
def test_a_commit_has_a_page_if_the_provider_has_one(
    provider: str, web_url: str | None, url: str | None
) -> None:
    """None if it is unknown, or if the payload's address is unsafe to click on."""
    result = plan(
        connection=replace(CONNECTION, provider=provider, web_url=web_url),
        update=UPDATE,
        commit=COMMIT,
        triggers=read_triggers([trigger()]),
    )
    assert [request.commit.url for request in result.requests] == [url]


def test_the_same_facts_make_the_same_bytes() -> None:
    """A retry writes what the first try would have written."""
    one, other = planned(trigger()), planned(trigger())
    assert one.requests[0].model_dump_json() == other.requests[0].model_dump_json()
