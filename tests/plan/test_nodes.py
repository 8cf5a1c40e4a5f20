"""Nodes of pipelines and steps of tasks: their message alone says what to execute."""

import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valohai_yaml.commands import quote_multiple
from valohai_yaml.objs import Parameter, Step

from gateway.messages.execution import (
    DeploymentNode,
    ExecutionNode,
    PipelineExecution,
    StepExecution,
    TaskExecution,
    TaskNode,
    Variation,
)
from gateway.plan.planner import plan
from gateway.plan.triggers import read_triggers
from testing.example import MANIFEST, requests
from tests.plan.facts import COMMIT, CONNECTION, EVERYTHING, HEAD, UPDATE, planned, trigger


def execution(run: dict[str, str], manifest: bytes | str = MANIFEST, **fields: Any) -> Any:
    """Return what the only request of a trigger executes."""
    result = planned({"name": "t", "run": run, **fields}, manifest=manifest)
    assert result.failed is False, result.reason
    [request] = result.requests
    return request.execution


def step_of(node: object) -> StepExecution:
    """Return the step of a node."""
    assert isinstance(node, ExecutionNode | TaskNode)
    return node.execution.step if isinstance(node.execution, TaskExecution) else node.execution


@pytest.fixture
def nodes() -> dict[str, Any]:
    """Return the nodes of the example's pipeline, by name."""
    made = requests()[1].execution
    assert isinstance(made, PipelineExecution)
    return {node.name: node for node in made.nodes}


def test_commands_are_complete_except_for_what_an_edge_supplies(nodes: dict[str, Any]) -> None:
    """A list, flags and the pipeline's parameters are filled in; the edge's parameters are placeholders."""
    assert step_of(nodes["prepare"]).command == (
        "pip install --requirement requirements.txt",
        "python preprocess.py --columns=age,tenure,plan --share=0.75 --shuffle",
    )
    refined = step_of(nodes["refine"])
    layers = "--layer=128 --layer=64 --layer=32"
    assert refined.command == (f"python train.py {{parameter:rate}} {{parameter:depth}} {layers} --seed=7",)
    assert refined.parameters == {"layers": [128, 64, 32], "seed": 7, "quiet": False}


def test_an_override_is_applied_to_fields_and_definition(nodes: dict[str, Any]) -> None:
    """It replaces what it sets; the type and the way of passing a parameter remain the step's."""
    refined = step_of(nodes["refine"])
    layers = next(item for item in refined.definition["parameters"] if item["name"] == "layers")
    assert (refined.image, refined.definition["image"]) == ("python:3.13", "python:3.13")
    assert layers == {
        "name": "layers",
        "type": "integer",
        "multiple": "repeat",
        "multiple-separator": ",",
        "pass-as": "--layer={v}",
        "default": [128, 64, 32],
        "optional": False,
    }
    prepared = step_of(nodes["prepare"])
    labels = next(item for item in prepared.definition["inputs"] if item["name"] == "labels")
    assert prepared.inputs["labels"] == ("s3://datasets/labels-2027.csv",)
    assert labels["filename"] == "labels.csv"
    assert (nodes["refine"].edge_merge_mode, nodes["prepare"].edge_merge_mode) == ("append", "replace")


def test_an_override_replaces_every_field_that_it_sets() -> None:
    """Also those that are false."""
    made = step_of(execution({"pipeline": "everything"}, EVERYTHING).nodes[0])
    assert (made.image, made.environment, made.runtime_config_preset, made.autorestart) == (
        "override-image",
        "override-environment",
        "override-preset",
        False,
    )
    assert made.command == ("override --list '7;8' --flag-on --number=21.5 --varied=23.5",)
    assert made.environment_variables == {"variable": "override-variable"}
    assert [(mount.source, mount.readonly) for mount in made.mounts] == [("/override-source", False)]


def test_a_node_without_values_of_its_own_is_what_a_trigger_would_request() -> None:
    """The whole step, and the whole task, with its variations."""
    made = {node.name: node for node in execution({"pipeline": "everything"}, EVERYTHING).nodes}
    assert made["sweep"].execution == execution({"task": "everything"}, EVERYTHING)
    manifest = MANIFEST.decode() + "- pipeline:\n    name: one\n    edges: []\n    nodes:\n"
    manifest += "      - {name: n, type: execution, step: train}\n"
    [node] = execution({"pipeline": "one"}, manifest).nodes
    assert node.execution == execution({"step": "train"})


def test_a_task_does_not_list_what_varies_among_its_fixed_parameters(nodes: dict[str, Any]) -> None:
    """And its command has placeholders for exactly these, in a pipeline and alone."""
    alone = execution({"task": "sweep"})
    assert set(alone.parameters) == {"rate", "depth"}
    assert alone.step.parameters == {"layers": [64, 32], "quiet": False}
    assert alone.step.command == ("python train.py {parameter:rate} {parameter:depth} --layer=64 --layer=32",)
    search = nodes["search"]
    assert search.execution.parameters == alone.parameters
    assert step_of(search).parameters == {"layers": [64, 32], "seed": 7, "quiet": False}
    assert search.on_error == "stop-next"


def test_a_set_that_leaves_a_parameter_out_has_its_default() -> None:
    """The default is in the message, but not among the fixed parameters."""
    manifest = MANIFEST.replace(b"type: grid_search", b"type: manual_search").replace(
        b"    maximum-queued-executions: 3\n", b"    parameter-sets: [{seed: 1, layers: [8]}, {seed: 2}]\n"
    )
    made = execution({"task": "sweep"}, manifest)
    assert made.parameter_sets == ({"seed": 1, "layers": [8]}, {"seed": 2})
    assert made.defaults == {"layers": [64, 32]}
    assert made.step.parameters == {"quiet": False}


@pytest.mark.parametrize("source", ["pipeline", "override"])
def test_a_list_for_a_parameter_of_a_task_that_takes_one_value_varies_it(source: str) -> None:
    """A node that names only a step is a grid search."""
    override = ", override: {parameters: [{name: a, default: [1, 2]}]}" if source == "override" else ""
    parameters = "[{name: p, targets: [n.parameters.a], default: [1, 2]}]" if source == "pipeline" else "[]"
    manifest = (
        f"{HEAD}    command: run {{parameters}}\n"
        "    parameters: [{name: a, type: integer}, {name: b, default: c}]\n"
        f"- pipeline:\n    name: p\n    parameters: {parameters}\n    edges: []\n"
        f"    nodes:\n      - {{name: n, type: task, step: train{override}}}\n"
    )
    [node] = execution({"pipeline": "p"}, manifest).nodes
    made = node.execution
    assert (made.name, made.type) == ("n", "grid_search")
    assert made.parameters == {"a": Variation(style="multiple", rules={"items": [1, 2]})}
    assert (made.step.parameters, made.step.command) == ({"b": "c"}, ("run {parameter:a} --b=c",))


def test_a_parameter_of_the_pipeline_replaces_what_a_task_would_vary() -> None:
    """As it replaces the default of a step."""
    manifest = MANIFEST.replace(b"targets: [search.parameters.seed,", b"targets: [search.parameters.depth,")
    made = {node.name: node for node in execution({"pipeline": "churn"}, manifest).nodes}
    search = made["search"].execution
    assert set(search.parameters) == {"rate"}
    assert search.step.parameters["depth"] == 7


@pytest.mark.parametrize("manifest", [MANIFEST, EVERYTHING], ids=["example", "everything"])
def test_a_definition_says_how_the_parameters_are_passed(manifest: bytes) -> None:
    """The platform's parser makes the same command of the definition and the parameters in the message."""
    name = {MANIFEST: "churn", EVERYTHING: "everything"}[manifest]
    steps = [
        step_of(node)
        for node in execution({"pipeline": name}, manifest).nodes
        if not isinstance(node, DeploymentNode)
    ]
    complete = [step for step in steps if "{parameter" not in " ".join(step.command)]
    assert complete
    for step in complete:
        built = Step.parse(step.definition).build_command(dict(step.parameters))
        assert tuple(built) == step.command


def test_a_deployment_has_its_definitions(nodes: dict[str, Any]) -> None:
    """Of the deployment and of its endpoints."""
    node = nodes["release"]
    assert isinstance(node, DeploymentNode)
    assert (node.deployment, node.endpoints, node.aliases) == ("churn", ("predict",), ("staging",))
    assert node.definition == {"name": "churn", "defaults": {"target": "staging-cluster"}}
    assert node.endpoint_definitions["predict"]["server-command"] == "python serve.py"


def test_an_edge_may_name_anything_of_its_nodes() -> None:
    """A key may contain dots and globs."""
    made = requests()[1].execution
    assert isinstance(made, PipelineExecution)
    shown = [
        (edge.source_node, edge.source_type, edge.source_key, edge.target_node, edge.target_key)
        for edge in made.edges
    ]
    assert ("search", "metadata", "best_rate", "refine", "rate") in shown
    assert ("search", "parameter", "depth", "refine", "depth") in shown
    assert ("refine", "output", "model*", "release", "predict.model") in shown


def test_an_override_cannot_read_attributes_of_the_parser() -> None:
    """A pass-as is a format string, in a step and in an override."""
    manifest = (
        f"{HEAD}    command: c {{parameters}}\n    parameters: [{{name: a}}]\n"
        "- pipeline:\n    name: p\n    edges: []\n    nodes:\n      - name: n\n        type: execution\n"
        "        step: train\n        override:\n          parameters:\n"
        "            - {name: a, default: x, pass-as: '{v.__class__}'}\n"
    )
    result = planned({"name": "t", "run": {"pipeline": "p"}}, manifest=manifest)
    assert result.requests == ()
    assert "a pass-as may contain {name}, {value}, {v} and no other braces" in result.reason


VALUES = st.sampled_from(
    ["x", "a b", "{parameter:varied}", "'{parameter-value:varied}'", '{"k": 1}', "$(id)"]
)
COMMANDS = st.sampled_from(
    ["run {parameters}", "run {params} {parameter:varied}", "{parameter-value:varied} {parameter:fixed}"]
)


@given(fixed=VALUES, later=VALUES, command=COMMANDS, passed=st.sampled_from(["--{name}={v}", "-x {value}"]))
def test_filling_in_a_placeholder_later_makes_the_same_command(
    fixed: str, later: str, command: str, passed: str
) -> None:
    """The same words for the shell as if all values had been known, whatever the values contain."""
    manifest = HEAD + f"    command: {command!r}\n    parameters:\n"
    manifest += f"      - {{name: varied, pass-as: '{passed}'}}\n      - {{name: fixed}}\n"
    manifest += "- task: {name: t, step: train, parameters: [{name: varied, style: single, rules: {}}]}\n"
    partly = execution({"task": "t"}, manifest, parameters={"fixed": fixed}).step
    parameter = Parameter.parse(
        next(item for item in partly.definition["parameters"] if item["name"] == "varied")
    )
    texts = {
        "{parameter:varied}": quote_multiple(parameter.format_cli(later)),
        "{parameter-value:varied}": shlex.quote(later),
    }
    filled = re.sub("|".join(texts), lambda found: texts[found[0]], partly.command[0])
    whole = execution({"step": "train"}, manifest, parameters={"fixed": fixed, "varied": later})
    assert shlex.split(filled) == shlex.split(whole.command[0])


def test_the_limit_of_a_message_is_the_operator_s() -> None:
    """The reason has both numbers, for a step and, before it is built, for a pipeline."""
    commit = replace(COMMIT, manifest=MANIFEST, manifest_size=len(MANIFEST))
    triggers = read_triggers([trigger("step"), {"name": "pipeline", "run": {"pipeline": "churn"}}])
    made = plan(
        connection=CONNECTION, update=UPDATE, commit=commit, triggers=triggers, max_request_bytes=2000
    )
    assert made.requests == ()
    assert re.search(r"step train would have \d{4} bytes; at most 2000 are sent", made.failures["step"])
    assert re.search(r"have about \d{4,5} bytes, .*; at most 2000 are sent", made.failures["pipeline"])
