"""Resolve a step of valohai.yaml with a trigger's values: what exactly the runner executes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

from valohai_yaml.commands import build_command, interpolable_re, quote_multiple
from valohai_yaml.excs import ValidationErrors
from valohai_yaml.objs import Parameter, ParameterMap, Step
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution import Mount, Output, ParameterValue, Resources, StepExecution
from gateway.plan.json_values import listed, plain, refuse_unknown
from gateway.plan.triggers import Atom, Trigger

_MAX_COMMAND_LENGTH = 1024 * 1024
_ALL_PARAMETERS = frozenset({"parameters", "params"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepValues:
    """The values for a step.

    The parameters in `varying` and the inputs in `awaited` get their values later, from a task or an edge.
    """

    parameters: Mapping[str, ParameterValue]
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environment: str | None = None
    varying: frozenset[str] = frozenset()
    awaited: frozenset[str] = frozenset()


def values_of(trigger: Trigger, *, varying: frozenset[str] = frozenset()) -> StepValues:
    """Return the values that a trigger has for its step."""
    return StepValues(
        parameters=trigger.parameters,
        inputs=trigger.inputs,
        environment=trigger.environment,
        varying=varying,
    )


def resolve_step(step: Step, values: StepValues) -> StepExecution:
    """Return the step with these values. Raises `PlanError` if a name or a value is invalid."""
    owner = f"step {step.name}"
    refuse_unknown("parameter", given=values.parameters, known=step.parameters, owner=owner)
    refuse_unknown("input", given=values.inputs, known=step.inputs, owner=owner)
    parameters = _parameters(step, values)
    definition = plain(step.serialize(), owner)
    return StepExecution(
        name=step.name,
        image=step.image,
        command=_command(step, parameters, values.varying),
        parameters=parameters,
        inputs=_inputs(step, values),
        outputs=[Output(**output) for output in definition.get("outputs", ())],
        environment=values.environment or step.environment,
        # A variable without a value may get one from the project, which is stored only at the platform.
        environment_variables={
            name: str(variable.default)
            for name, variable in step.environment_variables.items()
            if variable.default is not None
        },
        environment_variable_groups=step.environment_variable_groups,
        mounts=[Mount(**mount) for mount in definition.get("mounts", ())],
        cache_volumes=step.cache_volumes,
        resources=Resources(**definition.get("resources", {})),
        runtime_config_preset=step.runtime_config_preset,
        upload_store=step.upload_store,
        autorestart=step.autorestart,
        stop_condition=step.stop_condition,
        time_limit=_seconds(step.time_limit),
        no_output_timeout=_seconds(step.no_output_timeout),
        source_path=step.source_path,
        definition=definition,
    )


def checked_value(parameter: Parameter, value: ParameterValue, owner: str) -> ParameterValue:
    """Return the value, converted to the parameter's type. Raises `PlanError` if it is invalid."""
    where = f"{owner}, parameter {parameter.name}"
    if not all(isinstance(atom, Atom) for atom in listify(value)):
        raise PlanError(f"{where}: it has to be a value or a list of values")
    # The parser's own check accepts any text as a flag and any number as text.
    if parameter.type == "flag" and not isinstance(value, bool):
        raise PlanError(f"{where}: it is a flag and has to be true or false, not {value!r}")
    if parameter.type in {"integer", "float"} and any(isinstance(atom, bool) for atom in listify(value)):
        raise PlanError(f"{where}: it is a number and cannot be true or false")
    if parameter.type == "string":
        value = [_text(atom) for atom in value] if isinstance(value, list) else _text(value)
    try:
        checked: ParameterValue = parameter.validate(value)
    except (ValueError, TypeError) as error:
        problems = ", ".join(map(str, error)) if isinstance(error, ValidationErrors) else str(error)
        raise PlanError(f"{where}: {problems}") from error
    return checked


def _text(atom: Atom) -> str:
    return str(atom).lower() if isinstance(atom, bool) else str(atom)


def _parameters(step: Step, given: StepValues) -> dict[str, ParameterValue]:
    owner = f"step {step.name}"
    values: dict[str, Any] = dict(step.get_parameter_defaults())
    values |= {
        name: checked_value(step.parameters[name], value, owner) for name, value in given.parameters.items()
    }
    missing = [
        name
        for name, parameter in step.parameters.items()
        if name not in values and name not in given.varying and not parameter.optional
    ]
    if missing:
        raise PlanError(f"{owner} needs a value for {listed(missing)}: give it in the trigger")
    merged: dict[str, ParameterValue] = plain(
        {name: values[name] for name in step.parameters if name in values}, owner
    )
    for name, value in merged.items():
        # A list may be the values between which a parameter varies.
        if not (name in given.varying and isinstance(value, list)):
            # Only check: a default goes into the command as it is written, such as 1 for a float.
            checked_value(step.parameters[name], value, owner)
    return {name: value for name, value in merged.items() if name not in given.varying}


def _inputs(step: Step, given: StepValues) -> dict[str, tuple[str, ...]]:
    inputs = {}
    for name, definition in step.inputs.items():
        urls = tuple(filter(None, given.inputs.get(name) or listify(definition.default)))
        if urls:
            inputs[name] = urls
        elif not definition.optional and name not in given.awaited:
            raise PlanError(f"step {step.name} needs an address for input {name}: give it in the trigger")
    return inputs


def _command(step: Step, parameters: Mapping[str, ParameterValue], varying: frozenset[str]) -> list[str]:
    """Return the commands with the values filled in. Raises `PlanError` if they would be too long.

    Otherwise a short file could exhaust the memory: a command can refer to all parameters a thousand times,
    and a `pass-as` to its value.
    """
    commands: list[str] = listify(step.command)
    longest = len(step.source_path or "") + sum(
        _longest_argument(step.parameters[name], value) for name, value in parameters.items()
    )
    longest += sum(len(_placeholder(name)) for name in varying)
    placeholders = sum(command.count("{") for command in commands)
    if placeholders * longest > _MAX_COMMAND_LENGTH:
        raise PlanError(
            f"step {step.name}: its command would have more than {_MAX_COMMAND_LENGTH} characters"
        )
    try:
        return _built(step, commands, parameters, varying)
    except Exception as error:
        # The parser raises many kinds of exceptions.
        raise PlanError(f"step {step.name}: its command cannot be built: {error}") from error


def _built(
    step: Step, commands: Sequence[str], parameters: Mapping[str, ParameterValue], varying: frozenset[str]
) -> list[str]:
    """Return the commands as the parser builds them, but with placeholders for the parameters that vary.

    The parser iterates over all parameters for each `{parameters}`: a thousand times a thousand.
    """
    fixed = {name: item for name, item in step.parameters.items() if name not in varying}
    known = ParameterMap(parameters=fixed, values=parameters)
    special = {} if step.source_path is None else {"source-path": step.source_path}

    def argument(name: str) -> str:
        if name in varying:
            return _placeholder(name)
        return _without_placeholders(quote_multiple(known.build_parameter_by_name(name)), varying)

    @cache
    def all_arguments() -> str:
        return " ".join(filter(None, map(argument, step.parameters)))

    def replaced(found: re.Match[str]) -> str:
        if found[1] in _ALL_PARAMETERS:
            return all_arguments()
        [text] = build_command(found[0], known, special)
        return found[0] if text == found[0] else _without_placeholders(text, varying)

    return [interpolable_re.sub(replaced, command).strip() for command in commands]


def _placeholder(name: str) -> str:
    return f"{{parameter:{name}}}"


def _without_placeholders(quoted: str, varying: frozenset[str]) -> str:
    """Return the same shell words, in which no text of a value can be mistaken for a placeholder.

    A brace is always within single quotes, which may end and begin again after it.
    """
    return quoted.replace("{parameter", "{''parameter") if varying else quoted


def _longest_argument(parameter: Parameter, value: ParameterValue) -> int:
    atoms = listify(value)
    templates = (parameter.pass_as, parameter.pass_true_as, parameter.pass_false_as)
    text = sum(len(str(atom)) + len(parameter.multiple_separator) for atom in atoms)

    def length(template: str) -> int:
        fields = template.count("{")
        return (len(atoms) or 1) * (len(template) + fields * len(parameter.name)) + fields * text

    # Not the length for the longest template: a shorter template may repeat the value more often.
    return max(
        (length(str(template)) for template in templates if template),
        default=length(parameter.default_pass_as),
    )


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None
