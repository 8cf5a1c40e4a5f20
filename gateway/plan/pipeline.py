"""A pipeline of valohai.yaml, brought by the platform's own converter into what its API takes."""

from typing import Any

from valohai_yaml.lint import LintResult
from valohai_yaml.objs import ExecutionNode, Pipeline
from valohai_yaml.objs.pipelines.override import Override
from valohai_yaml.pipelines.conversion import PipelineConverter

from gateway.errors import PlanError
from gateway.plan.manifest import Manifest
from gateway.plan.plain import plain, refuse_unknown
from gateway.plan.request import PipelineExecution
from gateway.plan.step import checked_value
from gateway.plan.triggers import Trigger

# A node copies its step: many nodes of a large step make a message that no broker should carry.
_MOST_NODES = 200


def execute_pipeline(
    pipeline: Pipeline, trigger: Trigger, manifest: Manifest, *, commit: str
) -> PipelineExecution:
    """Return what the trigger asks for. Raises `PlanError` where nodes, edges, names or values don't fit."""
    owner = f"pipeline {pipeline.name}"
    known = {parameter.name: parameter for parameter in pipeline.parameters}
    refuse_unknown("parameter", given=trigger.parameters, known=known, owner=owner)
    if len(pipeline.nodes) > _MOST_NODES:
        raise PlanError(f"{owner} has {len(pipeline.nodes)} nodes; at most {_MOST_NODES} can be")
    given: dict[str, Any] = dict(trigger.parameters)
    try:
        _check(pipeline, trigger, manifest, owner)
        converted = PipelineConverter(
            config=manifest.config, commit_identifier=commit, parameter_arguments=given
        ).convert_pipeline(pipeline)
        definition = pipeline.serialize()
    except PlanError:
        raise
    except Exception as error:
        # The converter raises whatever its own code stumbles over: ValueError, KeyError, ...
        raise PlanError(f"{owner} can't be converted: {type(error).__name__}: {str(error)[:300]}") from error
    body: dict[str, Any] = plain({**converted, "definition": definition}, owner)
    return PipelineExecution(name=pipeline.name, reuse_executions=bool(pipeline.reuse_executions), **body)


def _check(pipeline: Pipeline, trigger: Trigger, manifest: Manifest, owner: str) -> None:
    for node in pipeline.nodes:
        # The parser's own check of parameters stumbles over such a node.
        if isinstance(node, ExecutionNode) and not node.commit and node.step not in manifest.steps:
            there = ", ".join(manifest.steps) or "none"
            raise PlanError(f"{owner}, node {node.name}: there is no step {node.step}; the steps: {there}")
    lint = LintResult()
    pipeline.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")
    filled = {
        tuple(target.split(".", 2))[::2]
        for parameter in pipeline.parameters
        if parameter.default is not None or parameter.name in trigger.parameters
        for target in parameter.targets
    }
    filled |= {
        (edge.target_node, edge.target_key) for edge in pipeline.edges if edge.target_type == "parameter"
    }
    given = {
        tuple(target.split(".", 2))[::2]: trigger.parameters[parameter.name]
        for parameter in pipeline.parameters
        if parameter.name in trigger.parameters
        for target in parameter.targets
    }
    for node in pipeline.nodes:
        if isinstance(node, ExecutionNode) and not node.commit:
            merged = Override.merge_with_step(node.override, manifest.steps[node.step])
            for name, parameter in merged.parameters.items():
                if (node.name, name) in given:
                    checked_value(parameter, given[node.name, name], f"{owner}, node {node.name}")
                if parameter.default is None and not parameter.optional and (node.name, name) not in filled:
                    raise PlanError(f"{owner}, node {node.name} needs a value for its parameter {name}")
