"""A task of valohai.yaml: one step, to be executed with many sets of parameters by whoever runs tasks."""

from typing import Any

from valohai_yaml.lint import LintResult
from valohai_yaml.objs import Step, Task
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution_request import TaskExecution
from gateway.plan.json_values import listed, plain
from gateway.plan.manifest import Manifest
from gateway.plan.step import checked_value, resolve_step
from gateway.plan.triggers import Trigger


def resolve_task(task: Task, trigger: Trigger, manifest: Manifest) -> TaskExecution:
    """Return what the trigger asks for. Raises `PlanError` where a name, a type or a value does not fit.

    The commands of the step are templates: each execution of the task has values of its own.
    """
    owner = f"task {task.name}"
    step = manifest.steps.get(task.step)
    if step is None:
        raise PlanError(f"{owner}: there is no step {task.step}; the steps: {listed(manifest.steps)}")
    lint = LintResult()
    task.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")
    varying = {parameter.name for parameter in task.parameters}
    varying |= {name for values in task.parameter_sets for name in values}
    unknown = sorted(str(name) for name in varying - set(step.parameters))
    if unknown:
        raise PlanError(f"{owner}: step {step.name} has no parameter {listed(unknown)}")
    if fought_over := sorted(varying & set(trigger.parameters)):
        raise PlanError(f"{owner} varies {listed(fought_over)}: the trigger cannot give it one value")
    _check_values(task, step, owner)
    fixed = resolve_step(step, trigger, varying=frozenset(varying))
    body: dict[str, Any] = plain(
        {
            "parameters": {
                one.name: {"style": one.style.value, "rules": one.rules} for one in task.parameters
            },
            "parameter_sets": task.parameter_sets,
            "definition": task.serialize(),
        },
        owner,
    )
    template = fixed.model_copy(update={"command": tuple(listify(step.command))})
    return TaskExecution(name=task.name, type=task.type.value, step=template, **body)


def _check_values(task: Task, step: Step, owner: str) -> None:
    """Raise `PlanError` for a listed value of the wrong type, and for a set without one that is needed."""
    rules = {parameter.name: parameter.rules for parameter in task.parameters}
    listed = [(name, value) for name, rule in rules.items() for value in listify(rule.get("items"))]
    listed += [(name, rule["value"]) for name, rule in rules.items() if "value" in rule]
    listed += [pair for values in task.parameter_sets for pair in values.items() if pair[1] is not None]
    for name, value in listed:
        checked_value(step.parameters[name], plain(value, owner), owner)
    in_some_set = {name: step.parameters[name] for values in task.parameter_sets for name in values}
    required = [
        name
        for name, parameter in in_some_set.items()
        if not parameter.optional and parameter.default is None and name not in rules
    ]
    # Each set holds all of these, or is the last one that is looked at: no more steps than values.
    for number, values in enumerate(task.parameter_sets, start=1):
        for name in required:
            if values.get(name) is None:
                raise PlanError(f"{owner}, parameter set {number} needs a value for {name}")
