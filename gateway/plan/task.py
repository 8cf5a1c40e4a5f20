"""Resolve a task of valohai.yaml: one step, which the runner executes with many sets of parameters."""

from typing import Any

from valohai_yaml.lint import LintResult
from valohai_yaml.objs import Step, Task
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution import TaskExecution
from gateway.plan.json_values import listed, plain
from gateway.plan.manifest import Manifest
from gateway.plan.step import StepValues, checked_value, resolve_step, values_of
from gateway.plan.triggers import Trigger

_SETTINGS = (
    "execution_count",
    "execution_batch_size",
    "maximum_queued_executions",
    "optimization_target_metric",
    "optimization_target_value",
    "engine",
    "stop_condition",
)


def resolve_task(task: Task, trigger: Trigger, manifest: Manifest) -> TaskExecution:
    """Return the task with the trigger's values. Raises `PlanError` if a name or a value is invalid."""
    owner = f"task {task.name}"
    step = manifest.steps.get(task.step)
    if step is None:
        raise PlanError(f"{owner}: there is no step {task.step}; the steps: {listed(manifest.steps)}")
    lint = LintResult()
    task.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")
    varying = varied_parameters(task, step, owner)
    if overlap := sorted(varying & set(trigger.parameters)):
        raise PlanError(f"{owner} varies {listed(overlap)}, so the trigger cannot set it")
    return vary(task, step, values_of(trigger, varying=varying), owner)


def varied_parameters(task: Task, step: Step, owner: str) -> frozenset[str]:
    """Return the parameters that the task varies. Raises `PlanError` if the step does not have them."""
    varying = {parameter.name for parameter in task.parameters}
    varying |= {name for values in task.parameter_sets for name in values}
    if unknown := sorted(str(name) for name in varying - set(step.parameters)):
        raise PlanError(f"{owner}: step {step.name} has no parameter {listed(unknown)}")
    return frozenset(varying)


def vary(task: Task, step: Step, values: StepValues, owner: str) -> TaskExecution:
    """Return the task of a step with these values. Raises `PlanError` if a name or a value is invalid.

    Parameters that vary remain placeholders in the commands, because each execution has its own values.
    """
    _check_values(task, step, owner)
    body: dict[str, Any] = plain(
        {
            "parameters": {
                parameter.name: {"style": parameter.style.value, "rules": parameter.rules}
                for parameter in task.parameters
            },
            "parameter_sets": task.parameter_sets,
            "defaults": _defaults(task, step),
            "definition": task.serialize(),
        },
        owner,
    )
    return TaskExecution(
        name=task.name,
        type=task.type.value,
        step=resolve_step(step, values),
        on_child_error=task.on_child_error.value if task.on_child_error else None,
        reuse_children=bool(task.reuse_children),
        **{name: getattr(task, name) for name in _SETTINGS},
        **body,
    )


def _defaults(task: Task, step: Step) -> dict[str, Any]:
    """Return the step's values of the parameters that sets of the task may leave out."""
    names = {name for values in task.parameter_sets for name in values}
    return {name: value for name, value in step.get_parameter_defaults().items() if name in names}


def _check_values(task: Task, step: Step, owner: str) -> None:
    """Raise `PlanError` for a listed value of the wrong type, and for a set that lacks a required value."""
    rules = {parameter.name: parameter.rules for parameter in task.parameters}
    values_given = [(name, value) for name, rule in rules.items() for value in listify(rule.get("items"))]
    values_given += [(name, rule["value"]) for name, rule in rules.items() if "value" in rule]
    values_given += [pair for values in task.parameter_sets for pair in values.items() if pair[1] is not None]
    for name, value in values_given:
        checked_value(step.parameters[name], plain(value, owner), owner)
    in_some_set = {name: step.parameters[name] for values in task.parameter_sets for name in values}
    required = [
        name
        for name, parameter in in_some_set.items()
        if not parameter.optional and parameter.default is None and name not in rules
    ]
    # The loop ends at the first set that lacks a value, so it takes no more steps than there are values.
    for number, values in enumerate(task.parameter_sets, start=1):
        for name in required:
            if values.get(name) is None:
                raise PlanError(f"{owner}, parameter set {number} needs a value for {name}")
