"""Resolve a pipeline of valohai.yaml: convert it with the platform's own converter for the platform's API."""

from collections.abc import Mapping
from typing import Any

from valohai_yaml.lint import LintResult
from valohai_yaml.objs import ExecutionNode, Pipeline, Step, Task
from valohai_yaml.objs.pipelines.override import Override
from valohai_yaml.pipelines.conversion import PipelineConverter
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution_request import MAX_REQUEST_BYTES, PipelineExecution
from gateway.plan.json_values import listed, plain, refuse_unknown, weight
from gateway.plan.manifest import Manifest
from gateway.plan.step import checked_value
from gateway.plan.triggers import Trigger

_MAX_NODES = 200
# Each edge is checked against all nodes.
_MAX_EDGES = 2000


def resolve_pipeline(
    pipeline: Pipeline, trigger: Trigger, manifest: Manifest, *, commit: str
) -> PipelineExecution:
    """Return the pipeline with the trigger's values.

    Raises `PlanError` if a node, an edge, a name or a value is invalid.
    """
    owner = f"pipeline {pipeline.name}"
    known = {parameter.name: parameter for parameter in pipeline.parameters}
    refuse_unknown("parameter", given=trigger.parameters, known=known, owner=owner)
    if len(pipeline.nodes) > _MAX_NODES:
        raise PlanError(f"{owner} has {len(pipeline.nodes)} nodes; at most {_MAX_NODES} are allowed")
    if len(pipeline.edges) > _MAX_EDGES:
        raise PlanError(f"{owner} has {len(pipeline.edges)} edges; at most {_MAX_EDGES} are allowed")
    given: dict[str, Any] = dict(trigger.parameters)
    try:
        _check_size(pipeline, manifest, owner)
        _check_references(pipeline, manifest, owner)
        _check_values(pipeline, trigger, manifest, owner)
        converted = PipelineConverter(
            config=manifest.config, commit_identifier=commit, parameter_arguments=given
        ).convert_pipeline(pipeline)
        definition = pipeline.serialize()
    except PlanError:
        raise
    except Exception as error:
        # The converter raises many kinds of exceptions: ValueError, KeyError, ...
        raise PlanError(f"{owner} cannot be converted: {type(error).__name__}: {str(error)[:300]}") from error
    body: dict[str, Any] = plain({**converted, "definition": definition}, owner)
    return PipelineExecution(name=pipeline.name, reuse_executions=bool(pipeline.reuse_executions), **body)


def _check_size(pipeline: Pipeline, manifest: Manifest, owner: str) -> None:
    """Raise `PlanError` if the message would be too large, before it is built.

    Each node contains a copy of its step, or of its task and the task's step: 200 nodes with a step of 80 KB
    take 16 MB.
    """
    weights: dict[tuple[str, str], int] = {}

    def weight_of(kind: str, name: str | None, items: Mapping[str, Step | Task]) -> int:
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
        if total > MAX_REQUEST_BYTES:
            raise PlanError(
                f"{owner}: its message would have more than {MAX_REQUEST_BYTES} bytes, because each of its"
                f" {len(pipeline.nodes)} nodes contains a copy of its step: shorten the steps"
            )


def _check_references(pipeline: Pipeline, manifest: Manifest, owner: str) -> None:
    """Raise `PlanError` for a node, an edge or a target that refers to something missing."""
    for node in pipeline.nodes:
        # The parser's own check of parameters fails with an exception for such a node.
        if isinstance(node, ExecutionNode) and not node.commit and node.step not in manifest.steps:
            known = listed(manifest.steps)
            raise PlanError(f"{owner}, node {node.name}: there is no step {node.step}; the steps: {known}")
    lint = LintResult()
    pipeline.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")


def _check_values(pipeline: Pipeline, trigger: Trigger, manifest: Manifest, owner: str) -> None:
    """Raise `PlanError` for a node's parameter or input without a value, or with a value of the wrong type.

    Nodes with a step of another commit are not checked, because the definition of that step is not available.
    """
    given = {
        tuple(target.split(".", 2))[::2]: trigger.parameters.get(parameter.name, parameter.default)
        for parameter in pipeline.parameters
        for target in parameter.targets
    }
    edges = {(edge.target_node, edge.target_type, edge.target_key) for edge in pipeline.edges}
    for node in pipeline.nodes:
        if isinstance(node, ExecutionNode) and not node.commit:
            step = manifest.steps[node.step]
            merged = Override.merge_with_step(node.override, step)
            where = f"{owner}, node {node.name}"
            for name, parameter in merged.parameters.items():
                value = given.get((node.name, name))
                value = parameter.default if value is None else value
                if value is not None:
                    # The type comes from the step: an override without a type would make it text.
                    checked_value(step.parameters[name], plain(value, where), where)
                elif not parameter.optional and (node.name, "parameter", name) not in edges:
                    raise PlanError(f"{where} needs a value for its parameter {name}")
            for name, definition in merged.inputs.items():
                is_needed = not definition.optional and not any(listify(definition.default))
                if is_needed and (node.name, "input", name) not in edges:
                    raise PlanError(f"{where} needs an address for its input {name}")
