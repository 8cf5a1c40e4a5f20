"""Steps: their values from valohai.yaml and from the trigger."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valohai_yaml.objs import ParameterMap

from gateway.messages.execution import StepExecution
from gateway.messages.execution_request import ExecutionRequest
from gateway.plan.planner import Plan
from tests.plan.facts import HEAD, planned, trigger


def executed(result: Plan) -> StepExecution:
    """Return the step of the only request."""
    assert result.failed is False, result.reason
    [request] = result.requests
    assert isinstance(request.execution, StepExecution)
    return request.execution


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (
            HEAD + "    command: c\n    parameters: [{name: a, default: {b: 1}}]\n",
            "parameter a: it has to be a value",
        ),
        (HEAD + "    command: c\n    parameters: [{name: a, default: .inf}]\n", "JSON does not have"),
        (HEAD + "    command: c\n    parameters: [{name: a, default: !!binary AAAA}]\n", "the type bytes"),
        (
            HEAD + "    command: c\n    mounts: [{source: /a, destination: /b, options: {x: !!set {a}}}]\n",
            "the type set",
        ),
        (
            HEAD
            + f"    command: '{'{parameters}' * 9000}'\n"
            + f"    parameters: [{{name: a, default: {'x' * 9999}}}]\n",
            "more than 1048576 characters",
        ),
        (
            HEAD
            + "    command: '{parameters}'\n    parameters:\n      - name: a\n"
            + f"        default: {'x' * 9999}\n        pass-as: '{'{v}' * 9000}'\n",
            "more than 1048576 characters",
        ),
        *(
            (
                HEAD
                + f"    command: '{'{parameters}' * 9}'\n    parameters:\n      - name: {'x' * 999}\n"
                + f"        type: flag\n        default: {default}\n"
                + f"        {many}: '{'{name}' * 999}'\n        {longer}: '{'y' * 9999}'\n",
                "more than 1048576 characters",
            )
            # The longest template does not make the longest command.
            for many, longer, default in (
                ("pass-true-as", "pass-false-as", "true"),
                ("pass-false-as", "pass-true-as", "false"),
            )
        ),
    ],
)
def test_a_step_that_cannot_be_a_message_is_a_reason(manifest: str, reason: str) -> None:
    """The platform's parser accepts values that JSON does not have, and that exhaust the memory."""
    result = planned(trigger(), manifest=manifest)
    assert (result.requests, result.failed) == ((), True)
    assert reason in result.reason


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("type: integer, default: many", "many is not an integer"),
        ("type: float, default: x", "x is not a floating-point number"),
        ("type: flag, default: 'no'", "it is a flag and has to be true or false, not 'no'"),
        ("type: integer, default: 9, max: 5", "9 is greater than the maximum allowed (5)"),
        ("default: x, choices: [y, z]", "x is not among the choices allowed (['y', 'z'])"),
        ("default: [x, y]", "Only a single value is allowed"),
    ],
)
def test_an_invalid_default_is_a_reason(definition: str, reason: str) -> None:
    """Like an invalid value of a trigger."""
    manifest = HEAD + f"    command: c {{parameters}}\n    parameters: [{{name: a, {definition}}}]\n"
    result = planned(trigger(), manifest=manifest)
    assert (result.requests, result.reason) == ((), f"trigger t: step train, parameter a: {reason}")


@pytest.mark.parametrize("fields", [{}, {"inputs": {"data": ""}}])
def test_an_empty_address_does_not_count(fields: dict[str, Any]) -> None:
    """In the file or in the trigger."""
    manifest = HEAD + "    command: c\n    inputs: [{name: data, default: ''}]\n"
    result = planned(trigger(**fields), manifest=manifest)
    reason = "trigger t: step train needs an address for input data: give it in the trigger"
    assert (result.requests, result.reason) == ((), reason)


def test_parameters_go_into_the_command_quoted() -> None:
    """No value of a trigger or a commit is interpreted by the shell."""
    manifest = HEAD + "    command: run {parameters} {parameter-value:a}\n    parameters: [{name: a}]\n"
    assert executed(planned(trigger(parameters={"a": "x; rm -rf /"}), manifest=manifest)).command == (
        "run '--a=x; rm -rf /' 'x; rm -rf /'",
    )


@pytest.mark.parametrize(
    ("definition", "given_value", "value", "argument"),
    [
        ("type: integer, default: 1", None, 1, "--a=1"),
        ("type: float, default: 1", None, 1, "--a=1"),
        ("type: float", "1e-3", 0.001, "--a=0.001"),
        ("type: string", 7, "7", "--a=7"),
        ("type: string", True, "true", "--a=true"),
        ("default: 2026-01-02", None, "2026-01-02", "--a=2026-01-02"),
        ("type: flag", True, True, "--a"),
        ("type: flag, default: true", False, False, ""),
        ("multiple: repeat, default: [x, y]", None, ["x", "y"], "--a=x --a=y"),
        ("multiple: separate", ["x", "y"], ["x", "y"], "--a=x,y"),
        ("pass-as: '-a {v}', default: x", None, "x", "-a x"),
    ],
)
def test_values_are_merged_according_to_their_types(
    definition: str, given_value: object, value: object, argument: str
) -> None:
    """The trigger's value overrides the default, and is converted and passed as the step defines."""
    manifest = HEAD + f"    command: run {{parameters}}\n    parameters: [{{name: a, {definition}}}]\n"
    parameters = {} if given_value is None else {"a": given_value}
    made = executed(planned(trigger(parameters=parameters), manifest=manifest))
    assert made.parameters == {"a": value}
    assert made.command == (f"run {argument}".strip(),)


def test_an_optional_parameter_without_a_value_is_left_out() -> None:
    """It is not a failure."""
    manifest = HEAD + "    command: run {parameters}\n    parameters: [{name: a, optional: true}]\n"
    made = executed(planned(trigger(), manifest=manifest))
    assert (made.parameters, made.command) == ({}, ("run",))


def test_a_trigger_chooses_environment_and_inputs() -> None:
    """They override the step's own."""
    made = executed(
        planned(trigger(environment="gpu", inputs={"labels": "s3://l", "data": ["s3://a", "s3://b"]}))
    )
    assert made.environment == "gpu"
    assert made.inputs == {"data": ("s3://a", "s3://b"), "labels": ("s3://l",)}


_DEFAULTS = st.sampled_from(
    [
        "x",
        "1",
        "1.5",
        ".nan",
        "true",
        "null",
        "[1, a]",
        "[[1]]",
        "{a: b}",
        "2026-01-01",
        "!!binary AA==",
        "''",
    ]
)
_PARAMETERS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["string", "integer", "float", "flag"]),
        "default": _DEFAULTS,
        "multiple": st.sampled_from(["none", "repeat", "separate"]),
        "pass-as": st.sampled_from(["'{v}'", "'-x {name}'", "''", "' '", "'{value}{value}'"]),
        "optional": st.sampled_from(["true", "false"]),
        "choices": st.sampled_from(["[]", "[x, 1]"]),
    }
)
# No trigger has a number that is not finite: tests/plan/test_triggers.py.
_NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_GIVEN = st.dictionaries(
    st.sampled_from("ab"),
    st.booleans() | _NUMBERS | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
)


@given(definition=_PARAMETERS, given_values=_GIVEN)
def test_any_parameter_with_any_value_is_a_valid_request_or_a_reason(
    definition: dict[str, str], given_values: dict[str, Any]
) -> None:
    """Planning never raises an unexpected error, and never makes a message that violates the contract."""
    fields = ", ".join(f"{key}: {value}" for key, value in definition.items())
    manifest = HEAD + "    command: run {parameters} {parameter-value:a}\n"
    manifest += f"    parameters: [{{name: a, {fields}}}]\n"
    result = planned(trigger(parameters=given_values), manifest=manifest)
    assert result.failed == (not result.requests)
    for request in result.requests:
        assert ExecutionRequest.model_validate_json(request.model_dump_json()) == request


def test_a_command_of_many_placeholders_for_many_parameters_is_built_once() -> None:
    """All arguments are put together once, not once for each of ten thousand placeholders."""
    manifest = HEAD + f"    command: '{'{params}' * 10_000}'\n    parameters:\n"
    manifest += "".join(f"      - {{name: p{number}, optional: true}}\n" for number in range(1_000))
    looked_up = 0

    def counted(self: ParameterMap, name: str) -> list[str] | None:
        nonlocal looked_up
        looked_up += 1
        return found(self, name)

    found = ParameterMap.build_parameter_by_name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterMap, "build_parameter_by_name", counted)
        assert executed(planned(trigger(), manifest=manifest)).command == ("",)
    assert looked_up == 1_000
