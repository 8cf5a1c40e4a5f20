"""A step of valohai.yaml with a trigger's values in place: what exactly is to be executed."""

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from valohai_yaml.commands import CommandInterpolationWarning
from valohai_yaml.excs import ValidationErrors
from valohai_yaml.objs import Step
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.plan.request import ParameterValue, StepExecution
from gateway.plan.triggers import Trigger


def execute(step: Step, trigger: Trigger) -> StepExecution:
    """Return what the trigger asks for. Raises `PlanError` where a name, a type or a value does not fit."""
    _refuse_unknown("parameter", trigger.parameters, step.parameters, step.name)
    _refuse_unknown("input", trigger.inputs, step.inputs, step.name)
    parameters = _parameters(step, trigger.parameters)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CommandInterpolationWarning)
            command = step.build_command(dict(parameters))
    except Exception as error:
        raise PlanError(f"step {step.name}: its command cannot be built: {error}") from error
    return StepExecution(
        name=step.name,
        image=step.image,
        command=command,
        parameters=parameters,
        inputs=_inputs(step, trigger.inputs),
        environment=trigger.environment or step.environment,
        environment_variables={
            name: str(variable.default)
            for name, variable in step.environment_variables.items()
            if variable.default is not None
        },
        environment_variable_groups=step.environment_variable_groups,
        time_limit=_seconds(step.time_limit),
        no_output_timeout=_seconds(step.no_output_timeout),
        definition=_plain(step.serialize(), step.name),
    )


def _parameters(step: Step, given: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    # A flag that nobody set stays unset, whatever its default: so the platform does it too.
    values: dict[str, ParameterValue] = _plain(step.get_parameter_defaults(include_flags=False), step.name)
    for name, value in given.items():
        try:
            values[name] = step.parameters[name].validate(value)
        except (ValidationErrors, TypeError) as error:
            problems = ", ".join(map(str, error)) if isinstance(error, ValidationErrors) else str(error)
            raise PlanError(f"step {step.name}, parameter {name}: {problems}") from error
    missing = [
        name
        for name, parameter in step.parameters.items()
        if name not in values and not parameter.optional and parameter.default is None
    ]
    if missing:
        raise PlanError(f"step {step.name} needs a value for {', '.join(missing)}: give it in the trigger")
    return {name: values[name] for name in step.parameters if name in values}


def _inputs(step: Step, given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    inputs = {}
    for name, definition in step.inputs.items():
        urls = list(given.get(name, ())) or [str(url) for url in listify(definition.default)]
        if urls:
            inputs[name] = urls
        elif not definition.optional:
            raise PlanError(f"step {step.name} needs an address for input {name}: give it in the trigger")
    return inputs


def _refuse_unknown(what: str, given: Mapping[str, Any], known: Mapping[str, Any], step: str) -> None:
    for name in given:
        if name not in known:
            there = ", ".join(known) or "none"
            raise PlanError(f"step {step} has no {what} {name}; it has: {there}")


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def _plain(value: Any, step: str) -> Any:
    """Return the value as JSON has it: dates become text; an infinite number is an error."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except ValueError as error:
        raise PlanError(f"step {step} holds a number that JSON cannot hold: {error}") from error
