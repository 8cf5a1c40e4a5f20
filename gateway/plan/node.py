"""Resolve a node of a pipeline: its step or task with the node's override and the pipeline's values."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from valohai_yaml import objs
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution import (
    DeploymentNode,
    ExecutionNode,
    NodeAction,
    ParameterValue,
    StepExecution,
    TaskExecution,
    TaskNode,
)
from gateway.plan.json_values import listed, plain
from gateway.plan.manifest import Manifest, check_templates
from gateway.plan.step import StepValues, checked_value, resolve_step
from gateway.plan.task import varied_parameters, vary

# Lists of valohai.yaml whose items an override replaces one by one, by their names.
_NAMED_ITEMS = ("parameters", "inputs", "environment-variables")


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplied:
    """What a node gets from its pipeline: values, and by edges the values of other parameters and inputs."""

    parameters: Mapping[str, ParameterValue]
    edge_parameters: frozenset[str]
    edge_inputs: frozenset[str]


class NodeResolver:
    """Resolves the nodes of a pipeline. Nodes that execute the same with the same values share the result."""

    def __init__(self, manifest: Manifest) -> None:
        """Resolve nodes that refer to this file."""
        self._manifest = manifest
        self._steps: dict[tuple[str, frozenset[str], frozenset[str]], StepExecution] = {}

    def resolve(
        self, node: objs.Node, supplied: Supplied, owner: str
    ) -> ExecutionNode | TaskNode | DeploymentNode:
        """Return the node. Raises `PlanError` if a name or a value is invalid."""
        common: dict[str, Any] = {
            "name": node.name,
            "actions": [NodeAction.model_validate(action.get_data()) for action in node.actions],
            "on_error": node.on_error.value,
        }
        if isinstance(node, objs.DeploymentNode):
            return _deployment(node, self._manifest, common, owner)
        if isinstance(node, objs.TaskNode):
            task = _task(node, self._manifest, supplied, owner)
            return TaskNode(execution=task, edge_merge_mode=node.edge_merge_mode.value, **common)
        if isinstance(node, objs.ExecutionNode):
            step = self._step(node, supplied, owner)
            return ExecutionNode(execution=step, edge_merge_mode=node.edge_merge_mode.value, **common)
        raise PlanError(f"{owner}: nodes of the type {node.type} are unknown")

    def _step(self, node: objs.ExecutionNode, supplied: Supplied, owner: str) -> StepExecution:
        if node.override is not None or supplied.parameters:
            return _step(node, self._manifest, supplied, owner)
        key = (node.step, supplied.edge_parameters, supplied.edge_inputs)
        if key not in self._steps:
            self._steps[key] = _step(node, self._manifest, supplied, owner)
        return self._steps[key]


def overridden(step: objs.Step, override: objs.Override | None, path: str) -> objs.Step:
    """Return the step with the fields that the override sets, in lists in the item of the same name.

    As on the platform, an item of an override without a default takes the step's default away.
    """
    if override is None:
        return step
    # What the file sets explicitly is known only from the data that the items were parsed from.
    merged: dict[str, Any] = dict(step._original_data or {})  # noqa: SLF001
    given: dict[str, Any] = dict(override._original_data or {})  # noqa: SLF001
    for key, value in given.items():
        if key in _NAMED_ITEMS:
            items = {item["name"]: item for item in merged.get(key, ())}
            items |= {
                item["name"]: {**items.get(item["name"], {}), "default": None, **item} for item in value
            }
            merged[key] = list(items.values())
        elif value or isinstance(value, bool):
            merged[key] = value
    made = objs.Step.parse(merged)
    check_templates(made, path)
    return made


def _deployment(
    node: objs.DeploymentNode, manifest: Manifest, common: Mapping[str, Any], owner: str
) -> DeploymentNode:
    deployment = manifest.config.deployments.get(node.deployment)
    endpoints = {name: manifest.config.endpoints.get(name) for name in node.endpoints}
    return DeploymentNode(
        deployment=node.deployment,
        aliases=node.aliases,
        endpoints=node.endpoints,
        definition=None if deployment is None else plain(deployment.serialize(), owner),
        endpoint_definitions={
            name: plain(endpoint.serialize(), owner)
            for name, endpoint in endpoints.items()
            if endpoint is not None
        },
        **common,
    )


def _step(node: objs.ExecutionNode, manifest: Manifest, supplied: Supplied, owner: str) -> StepExecution:
    step = overridden(manifest.steps[node.step], node.override, manifest.path)
    _check_values(step, supplied, owner, varying=frozenset())
    varying = supplied.edge_parameters & set(step.parameters)
    return resolve_step(step, _step_values(supplied, varying))


def _task(node: objs.TaskNode, manifest: Manifest, supplied: Supplied, owner: str) -> TaskExecution:
    written = manifest.tasks[node.task] if node.task else objs.Task(name=node.name, step=node.step or "")
    step = overridden(manifest.steps[written.step], node.override, manifest.path)
    task = _adjusted(written, step, supplied)
    varying = varied_parameters(task, step, owner) | (supplied.edge_parameters & set(step.parameters))
    _check_values(step, supplied, owner, varying=varying)
    made = vary(task, step, _step_values(supplied, varying), owner)
    return made.model_copy(update={"definition": plain(written.serialize(), owner)})


def _adjusted(task: objs.Task, step: objs.Step, supplied: Supplied) -> objs.Task:
    """Return the task without the parameters that the pipeline sets, and with those that it varies.

    A list of values for a parameter that takes one value varies it.
    """
    own = {parameter.name for parameter in task.parameters}
    own |= {name for values in task.parameter_sets for name in values}
    defaults = {name: item.default for name, item in step.parameters.items() if name not in own}
    lists = {
        name: value
        for name, value in {**defaults, **supplied.parameters}.items()
        if isinstance(value, list) and name in step.parameters and not step.parameters[name].multiple
    }
    adjusted = copy.copy(task)
    adjusted.parameters = [item for item in task.parameters if item.name not in supplied.parameters]
    adjusted.parameters += [
        objs.VariantParameter(name=name, style="multiple", rules={"items": values})
        for name, values in lists.items()
    ]
    adjusted.parameter_sets = [
        {name: value for name, value in values.items() if name not in supplied.parameters}
        for values in task.parameter_sets
    ]
    return adjusted


def _step_values(supplied: Supplied, varying: frozenset[str]) -> StepValues:
    fixed = {name: value for name, value in supplied.parameters.items() if name not in varying}
    return StepValues(parameters=fixed, varying=varying, awaited=supplied.edge_inputs)


def _check_values(step: objs.Step, supplied: Supplied, owner: str, *, varying: frozenset[str]) -> None:
    """Raise `PlanError` for a parameter or input without a value, or with a value of the wrong type."""
    for name in supplied.parameters:
        if name not in step.parameters:
            raise PlanError(f"{owner} has no parameter {name}; it has: {listed(step.parameters)}")
    for name, parameter in step.parameters.items():
        value = supplied.parameters.get(name, parameter.default)
        if name in varying:
            continue
        if value is not None:
            checked_value(parameter, plain(value, owner), owner)
        elif not parameter.optional and name not in supplied.edge_parameters:
            raise PlanError(f"{owner} needs a value for its parameter {name}")
    for name, definition in step.inputs.items():
        is_needed = not definition.optional and not any(listify(definition.default))
        if is_needed and name not in supplied.edge_inputs:
            raise PlanError(f"{owner} needs an address for its input {name}")
