"""Resolve a pipeline of valohai.yaml: all of its nodes, with the values that are known before it runs."""

from collections.abc import Mapping, Sequence

from valohai_yaml import objs
from valohai_yaml.lint import LintResult
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution import (
    DeploymentNode,
    Edge,
    ExecutionNode,
    ParameterTarget,
    ParameterValue,
    PipelineExecution,
    PipelineParameter,
    TaskNode,
)
from gateway.plan.json_values import listed, plain, refuse_unknown, weight
from gateway.plan.manifest import Manifest
from gateway.plan.node import NodeResolver, Supplied
from gateway.plan.triggers import Atom, Trigger

MAX_NODES = 200
MAX_EDGES = 2000
"""The limit of edges, because each is checked against all nodes."""


def resolve_pipeline(
    pipeline: objs.Pipeline, trigger: Trigger, manifest: Manifest, *, max_bytes: int
) -> PipelineExecution:
    """Return the pipeline with the trigger's values.

    Raises `PlanError` if a node, an edge, a name or a value is invalid, or if the message would have more
    than `max_bytes`.
    """
    owner = f"pipeline {pipeline.name}"
    known = {parameter.name: parameter for parameter in pipeline.parameters}
    refuse_unknown("parameter", given=trigger.parameters, known=known, owner=owner)
    if len(pipeline.nodes) > MAX_NODES:
        raise PlanError(f"{owner} has {len(pipeline.nodes)} nodes; at most {MAX_NODES} are allowed")
    if len(pipeline.edges) > MAX_EDGES:
        raise PlanError(f"{owner} has {len(pipeline.edges)} edges; at most {MAX_EDGES} are allowed")
    try:
        _check_size(pipeline, manifest, owner, max_bytes=max_bytes)
        _check_references(pipeline, manifest, owner)
        values = _values(pipeline, trigger, owner)
        return PipelineExecution(
            name=pipeline.name,
            nodes=_nodes(pipeline, manifest, values, owner, max_bytes=max_bytes),
            edges=[
                Edge(**{"configuration": {}, **plain(edge.get_expanded(), owner)}) for edge in pipeline.edges
            ],
            parameters={parameter.name: _parameter(parameter, values) for parameter in pipeline.parameters},
            reuse_executions=bool(pipeline.reuse_executions),
            definition=plain(pipeline.serialize(), owner),
        )
    except PlanError:
        raise
    except Exception as error:
        # The parser's objects raise many kinds of exceptions: ValueError, KeyError, ...
        raise PlanError(f"{owner} cannot be resolved: {type(error).__name__}: {str(error)[:300]}") from error


def _check_size(pipeline: objs.Pipeline, manifest: Manifest, owner: str, *, max_bytes: int) -> None:
    """Raise `PlanError` if the message would be too large, before it is built.

    Each node contains a copy of its step, or of its task and the task's step: 200 nodes with a step of 80 KB
    take more than 16 MB.
    """
    weights: dict[tuple[str, str], int] = {}

    def weight_of(kind: str, name: str | None, items: Mapping[str, objs.Step | objs.Task]) -> int:
        item = items.get(name or "")
        if item is None:
            return 0
        key = (kind, item.name)
        if key not in weights:
            weights[key] = weight(item.serialize())
        return weights[key]

    total = weight(pipeline.serialize())
    for node in pipeline.nodes:
        step, task = getattr(node, "step", None), getattr(node, "task", None)
        if task is not None and task in manifest.tasks:
            step = step or manifest.tasks[task].step
        own = weight(node.serialize())
        total += own + weight_of("step", step, manifest.steps) + weight_of("task", task, manifest.tasks)
    if total > max_bytes:
        raise _too_large(pipeline, owner, total, max_bytes)


def _too_large(pipeline: objs.Pipeline, owner: str, size: int, max_bytes: int) -> PlanError:
    return PlanError(
        f"{owner}: its message would have about {size} bytes, because each of its {len(pipeline.nodes)} nodes"
        f" contains its step; at most {max_bytes} are sent: shorten the steps"
    )


def _check_references(pipeline: objs.Pipeline, manifest: Manifest, owner: str) -> None:
    """Raise `PlanError` for a node, an edge or a target that refers to something missing."""
    for node in pipeline.nodes:
        where = f"{owner}, node {node.name}"
        if commit := getattr(node, "commit", None):
            raise PlanError(
                f"{where} takes its step from the commit {commit}, but the package contains only the pushed"
                " commit: define the step in the same valohai.yaml, and leave out `commit`"
            )
        # The parser's own check of parameters fails with an exception for such a node.
        if isinstance(node, objs.ExecutionNode) and node.step not in manifest.steps:
            raise PlanError(f"{where}: there is no step {node.step}; the steps: {listed(manifest.steps)}")
    lint = LintResult()
    pipeline.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")


def _values(pipeline: objs.Pipeline, trigger: Trigger, owner: str) -> dict[str, ParameterValue | None]:
    """Return the value of each parameter: the trigger's or the default, None if there is neither."""
    values = {}
    for parameter in pipeline.parameters:
        value = plain(trigger.parameters.get(parameter.name, parameter.default), owner)
        if not all(isinstance(atom, Atom) for atom in listify(value)):
            raise PlanError(f"{owner}, parameter {parameter.name}: it has to be a value or a list of values")
        values[parameter.name] = value
    return values


def _nodes(
    pipeline: objs.Pipeline,
    manifest: Manifest,
    values: Mapping[str, ParameterValue | None],
    owner: str,
    *,
    max_bytes: int,
) -> list[ExecutionNode | TaskNode | DeploymentNode]:
    """Return the nodes. Raises `PlanError` as soon as they are too large together."""
    given = _given(pipeline.parameters, values)
    by_edges: dict[tuple[str, str], set[str]] = {}
    for edge in pipeline.edges:
        by_edges.setdefault((edge.target_node, edge.target_type), set()).add(edge.target_key)
    resolver = NodeResolver(manifest)
    nodes, size = [], 0
    for node in pipeline.nodes:
        supplied = Supplied(
            parameters=given.get(node.name, {}),
            edge_parameters=frozenset(by_edges.get((node.name, "parameter"), ())),
            edge_inputs=frozenset(by_edges.get((node.name, "input"), ())),
        )
        made = resolver.resolve(node, supplied, f"{owner}, node {node.name}")
        size += len(made.model_dump_json().encode())
        if size > max_bytes:
            raise _too_large(pipeline, owner, size, max_bytes)
        nodes.append(made)
    return nodes


def _given(
    parameters: Sequence[objs.PipelineParameter], values: Mapping[str, ParameterValue | None]
) -> dict[str, dict[str, ParameterValue]]:
    """Return the values that the pipeline's parameters set, by node and by name."""
    given: dict[str, dict[str, ParameterValue]] = {}
    for parameter in parameters:
        value = values[parameter.name]
        for target in parameter.targets:
            node, _, name = target.split(".", 2)
            if value is not None:
                given.setdefault(node, {})[name] = value
    return given


def _parameter(
    parameter: objs.PipelineParameter, values: Mapping[str, ParameterValue | None]
) -> PipelineParameter:
    targets = [target.split(".", 2) for target in parameter.targets]
    return PipelineParameter(
        value=values[parameter.name],
        targets=[ParameterTarget(node=node, parameter=name) for node, _, name in targets],
        category=parameter.category,
        description=parameter.description,
    )
