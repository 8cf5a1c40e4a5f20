"""A task of valohai.yaml: one step, to be executed with many sets of parameters by whoever runs tasks."""

from typing import Any

from valohai_yaml.lint import LintResult
from valohai_yaml.objs import Task
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.plan.manifest import Manifest
from gateway.plan.plain import plain
from gateway.plan.request import TaskExecution
from gateway.plan.step import execute_step
from gateway.plan.triggers import Trigger


def execute_task(task: Task, trigger: Trigger, manifest: Manifest) -> TaskExecution:
    """Return what the trigger asks for. Raises `PlanError` where a name, a type or a value does not fit.

    The commands of the step are templates: each execution of the task has values of its own.
    """
    owner = f"task {task.name}"
    step = manifest.steps.get(task.step)
    if step is None:
        raise PlanError(
            f"{owner}: there is no step {task.step}; the steps: {', '.join(manifest.steps) or 'none'}"
        )
    lint = LintResult()
    task.lint(lint, {"config": manifest.config})
    for problem in lint.errors:
        raise PlanError(f"{owner}: {problem['message']}")
    varying = {parameter.name for parameter in task.parameters}
    varying |= {name for values in task.parameter_sets for name in values}
    unknown = sorted(varying - set(step.parameters))
    if unknown:
        raise PlanError(f"{owner}: step {step.name} has no parameter {', '.join(unknown)}")
    fixed = execute_step(step, trigger, varying=frozenset(varying))
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
