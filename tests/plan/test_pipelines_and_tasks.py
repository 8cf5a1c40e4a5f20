"""Planning pipelines and tasks: where their values come from, and what is invalid."""

from typing import Any

import pytest

from gateway.messages.execution import ExecutionNode, ParameterTarget, PipelineExecution
from tests.plan.facts import HEAD, planned


def test_a_pipeline_has_its_values_in_its_nodes() -> None:
    """Edges are written out, and parameters have the trigger's values, there and in the nodes."""
    result = planned({"name": "t", "run": {"pipeline": "nightly"}, "parameters": {"limit": 0.9}})
    [request] = result.requests
    made = request.execution
    assert isinstance(made, PipelineExecution)
    fit, check = made.nodes
    assert isinstance(fit, ExecutionNode)
    assert isinstance(check, ExecutionNode)
    assert [(node.name, node.execution.name) for node in (fit, check)] == [
        ("fit", "train"),
        ("check", "evaluate"),
    ]
    assert fit.execution.parameters == {"epochs": 5, "verbose": True}
    assert fit.execution.command[1] == "python train.py --epochs=5 --verbose"
    assert check.execution.command == ("python evaluate.py --threshold=0.9",)
    assert [edge.model_dump() for edge in made.edges] == [
        {
            "source_node": "fit",
            "source_type": "output",
            "source_key": "model",
            "target_node": "check",
            "target_type": "input",
            "target_key": "model",
            "configuration": {},
        }
    ]
    limit = made.parameters["limit"]
    assert (limit.value, limit.targets) == (0.9, (ParameterTarget(node="check", parameter="threshold"),))


@pytest.mark.parametrize(
    ("nodes", "edges", "reason"),
    [
        ("{name: n, type: execution, step: x}", "", "node n: there is no step x; the steps: train"),
        ("{name: n, type: execution, step: train}", "", "node n needs a value for its parameter a"),
        (
            "{name: n, type: execution, step: train}, {name: n, type: execution, step: train}",
            "",
            "pipeline p: Pipeline p has 2 nodes with the same name of n",
        ),
        (
            "{name: n, type: execution, step: train}",
            "[x.output.m, n.parameter.a]",
            "pipeline p: Pipeline p edge source node x does not exist",
        ),
        ("{name: n, type: task, task: x}", "", 'node "n" task "x" does not exist'),
        (
            "{name: n, type: execution, step: train, override: {parameters: [{name: a, default: x}]}}",
            "",
            "pipeline p, node n, parameter a: x is not an integer",
        ),
        (
            "{name: m, type: execution, step: load, override: {inputs: [{name: data, default: ''}]}}",
            "",
            "pipeline p, node m needs an address for its input data",
        ),
        (
            "{name: n, type: execution, step: train, commit: 1a2b}",
            "",
            "pipeline p, node n takes its step from the commit 1a2b, but the package contains",
        ),
        (
            "{name: n, type: task, step: train}",
            "",
            "pipeline p, node n needs a value for its parameter a",
        ),
    ],
)
def test_an_inconsistent_pipeline_is_a_reason(nodes: str, edges: str, reason: str) -> None:
    """Unknown nodes or edges, and parameters and inputs without a valid value."""
    manifest = HEAD + "    command: c\n    parameters: [{name: a, type: integer}]\n"
    manifest += HEAD.replace("train", "load") + "    command: c\n    inputs: [{name: data}]\n"
    manifest += f"- pipeline:\n    name: p\n    nodes: [{nodes}]\n    edges: [{edges}]\n"
    result = planned({"name": "t", "run": {"pipeline": "p"}}, manifest=manifest)
    assert (result.requests, result.failed) == ((), True)
    assert reason in result.reason


@pytest.mark.parametrize(
    "node",
    [
        "{name: n, type: execution, step: train, override: {parameters: [{name: a, default: x}]}}",
        "{name: n, type: execution, step: train}, {name: m, type: execution, step: make}",
    ],
)
def test_a_node_gets_its_values_from_override_or_edge(node: str) -> None:
    """The step has none of its own."""
    override = "inputs: [{name: data, default: s3://d}], parameters: "
    node = node.replace("override: {parameters: ", f"override: {{{override}")
    manifest = HEAD + "    command: c\n    parameters: [{name: a}]\n    inputs: [{name: data}]\n"
    manifest += HEAD.replace("train", "make") + "    command: c\n"
    edge = "[m.metadata.x, n.parameter.a], [m.output.y, n.input.data]" if "name: m" in node else ""
    manifest += f"- pipeline:\n    name: p\n    nodes: [{node}]\n    edges: [{edge}]\n"
    result = planned({"name": "t", "run": {"pipeline": "p"}}, manifest=manifest)
    assert (len(result.requests), result.failed) == (1, False), result.reason


TASK = """\
- step:
    name: train
    image: i
    command: run {parameters}
    parameters: [{name: a, type: integer}, {name: b, type: integer}, {name: c, default: x}]
- task: {name: sweep, step: train, type: manual_search, PLAN}
"""


@pytest.mark.parametrize(
    ("sets", "parameters", "reason"),
    [
        ("parameter-sets: [{a: 1, b: 2}, {a: 3}]", {}, "task sweep, parameter set 2 needs a value for b"),
        ("parameter-sets: [{a: x, b: 2}]", {}, "task sweep, parameter a: x is not an integer"),
        ("parameter-sets: [{a: 1, b: null}]", {}, "task sweep, parameter set 1 needs a value for b"),
        ("parameter-sets: [{a: 1, 7: 2}]", {}, "task sweep: step train has no parameter 7"),
        ("parameter-sets: [{d: 1}]", {}, "task sweep: step train has no parameter d"),
        ("parameter-sets: [{a: 1}]", {}, "step train needs a value for b: give it in the trigger"),
        (
            "parameters: [{name: a, style: multiple, rules: {items: [1, x]}}]",
            {"b": 1},
            "task sweep, parameter a: x is not an integer",
        ),
        (
            "parameters: [{name: b, style: single, rules: {value: 1.5}}]",
            {"a": 1},
            "task sweep, parameter b: 1.5 is not an integer",
        ),
        (
            "parameters: [{name: a, style: multiple, rules: {items: [1, 2]}}]",
            {"a": 1, "b": 1},
            "task sweep varies a, so the trigger cannot set it",
        ),
    ],
)
def test_a_task_with_invalid_values_is_a_reason(sets: str, parameters: dict[str, Any], reason: str) -> None:
    """From the trigger, the sets or the rules."""
    fields = {"name": "t", "run": {"task": "sweep"}, "parameters": parameters}
    result = planned(fields, manifest=TASK.replace("PLAN", sets))
    assert result.requests == ()
    assert result.reason.startswith(f"trigger t: {reason}")


@pytest.mark.parametrize(
    "sets",
    [
        "parameter-sets: [{a: 1, b: 2}, {a: 3, b: 4, c: y}]",
        "parameter-sets: [{a: 1}], parameters: [{name: b, style: linear, rules: {start: 1, end: 9}}]",
    ],
)
def test_a_set_may_omit_parameters_that_have_a_value(sets: str) -> None:
    """From the step's default or from another rule of the task."""
    result = planned({"name": "t", "run": {"task": "sweep"}}, manifest=TASK.replace("PLAN", sets))
    assert (len(result.requests), result.reason) == (1, "1 execution request")
