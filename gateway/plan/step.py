"""Resolve a step of valohai.yaml with a trigger's values: what exactly the runner executes."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from valohai_yaml.excs import ValidationErrors
from valohai_yaml.objs import Parameter, Step
from valohai_yaml.utils import listify

from gateway.errors import PlanError
from gateway.messages.execution_request import ParameterValue, StepExecution
from gateway.plan.json_values import listed, plain, refuse_unknown
from gateway.plan.triggers import Atom, Trigger

_MAX_COMMAND_LENGTH = 1024 * 1024


def resolve_step(step: Step, trigger: Trigger, *, varying: frozenset[str] = frozenset()) -> StepExecution:
    """Return the step with the trigger's values. Raises `PlanError` if a name or a value is invalid.

    The parameters in `varying` get their values later, from a task.
    """
    owner = f"step {step.name}"
    refuse_unknown("parameter", given=trigger.parameters, known=step.parameters, owner=owner)
    refuse_unknown("input", given=trigger.inputs, known=step.inputs, owner=owner)
    parameters = _parameters(step, trigger.parameters, varying)
    definition = plain(step.serialize(), owner)
    return StepExecution(
        name=step.name,
        image=step.image,
        command=_command(step, parameters),
        parameters=parameters,
        inputs=_inputs(step, trigger.inputs),
        outputs=definition.get("outputs", ()),
        environment=trigger.environment or step.environment,
        # A variable without a value may get one from the project, which is stored only at the platform.
        environment_variables={
            name: str(variable.default)
            for name, variable in step.environment_variables.items()
            if variable.default is not None
        },
        environment_variable_groups=step.environment_variable_groups,
        mounts=definition.get("mounts", ()),
        cache_volumes=step.cache_volumes,
        resources=definition.get("resources", {}),
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


def _parameters(
    step: Step, given: Mapping[str, ParameterValue], varying: frozenset[str]
) -> dict[str, ParameterValue]:
    owner = f"step {step.name}"
    values: dict[str, Any] = dict(step.get_parameter_defaults())
    values |= {name: checked_value(step.parameters[name], value, owner) for name, value in given.items()}
    missing = [
        name
        for name, parameter in step.parameters.items()
        if name not in values and name not in varying and not parameter.optional
    ]
    if missing:
        raise PlanError(f"{owner} needs a value for {listed(missing)}: give it in the trigger")
    merged: dict[str, ParameterValue] = plain(
        {name: values[name] for name in step.parameters if name in values}, owner
    )
    for name, value in merged.items():
        # Only check: a default goes into the command as it is written, such as 1 for a float.
        checked_value(step.parameters[name], value, owner)
    return merged


def _inputs(step: Step, given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    inputs = {}
    for name, definition in step.inputs.items():
        urls = tuple(filter(None, given.get(name) or listify(definition.default)))
        if urls:
            inputs[name] = urls
        elif not definition.optional:
            raise PlanError(f"step {step.name} needs an address for input {name}: give it in the trigger")
    return inputs


def _command(step: Step, parameters: Mapping[str, ParameterValue]) -> list[str]:
    """Return the commands with the values filled in. Raises `PlanError` if they would be too long.

    Otherwise a short file could exhaust the memory: a command can refer to all parameters a thousand times,
    and a `pass-as` to its value.
    """
    commands = listify(step.command)
    longest = len(step.source_path or "") + sum(
        _longest_argument(step.parameters[name], value) for name, value in parameters.items()
    )
    placeholders = sum(command.count("{") for command in commands)
    if placeholders * longest > _MAX_COMMAND_LENGTH:
        raise PlanError(
            f"step {step.name}: its command would have more than {_MAX_COMMAND_LENGTH} characters"
        )
    try:
        built: list[str] = step.build_command(dict(parameters))
    except Exception as error:
        # The parser raises many kinds of exceptions.
        raise PlanError(f"step {step.name}: its command cannot be built: {error}") from error
    return built


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
