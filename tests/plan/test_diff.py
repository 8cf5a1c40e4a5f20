"""The differences between two requests for the same push."""

from dataclasses import replace

from gateway.messages.execution_request import ExecutionRequest
from gateway.plan.diff import Differences, differences
from gateway.plan.planner import plan
from gateway.plan.triggers import read_triggers
from tests.plan.facts import COMMIT, CONNECTION, MANIFEST, UPDATE


def request(
    manifest: bytes = MANIFEST, *, run: dict[str, str] | None = None, **fields: object
) -> ExecutionRequest:
    """Return the request of a trigger on the step train, unless `run` names something else."""
    [trigger] = read_triggers([{"name": "t", "run": run or {"step": "train"}, **fields}])
    commit = replace(COMMIT, manifest=manifest)
    [made] = plan(connection=CONNECTION, update=UPDATE, commit=commit, triggers=[trigger]).requests
    return made


def against(other: ExecutionRequest) -> Differences:
    """Return what differs from the usual request."""
    return differences(request(), other)


def test_the_same_request_differs_in_nothing() -> None:
    """Also if one was stored and read again."""
    assert against(ExecutionRequest.model_validate_json(request().model_dump_json())) == {}


def test_a_parameter_differs_by_itself_and_in_its_command() -> None:
    """The other command and the other parameters are not listed."""
    assert against(request(parameters={"epochs": 9})) == {
        "execution.command.1": (
            "python train.py --epochs=5 --verbose",
            "python train.py --epochs=9 --verbose",
        ),
        "execution.parameters.epochs": (5, 9),
    }


def test_a_list_of_another_length_is_compared_whole() -> None:
    """Which of its members is new is undefined."""
    assert against(request(inputs={"data": ["s3://a", "s3://b"]})) == {
        "execution.inputs.data": (["s3://bucket/data.csv"], ["s3://a", "s3://b"])
    }


def test_a_field_in_only_one_request_is_null_in_the_other() -> None:
    """As in JSON."""
    assert against(request(parameters={"rate": 0.5}))["execution.parameters.rate"] == (None, 0.5)


def test_the_definition_differs_only_if_nothing_else_does() -> None:
    """A description is in no field of its own; an image is."""
    described = MANIFEST.replace(b"description: Trains.", b"description: Learns.")
    assert against(request(described)) == {"execution.definition.description": ("Trains.", "Learns.")}
    image = described.replace(b"image: python:3.11", b"image: python:3.13", 1)
    assert against(request(image)) == {"execution.image": ("python:3.11", "python:3.13")}


def test_the_definitions_of_nodes_differ_only_if_nothing_else_does() -> None:
    """A value of a node is listed once, not again in the definitions of its step and of the pipeline."""
    other = MANIFEST.replace(b"default: 5, min: 1", b"default: 6, min: 1")
    found = differences(request(run={"pipeline": "nightly"}), request(other, run={"pipeline": "nightly"}))
    assert found == {
        "execution.nodes.0.execution.command.1": (
            "python train.py --epochs=5 --verbose",
            "python train.py --epochs=6 --verbose",
        ),
        "execution.nodes.0.execution.parameters.epochs": (5, 6),
    }


def test_another_kind_of_execution_differs_in_kind() -> None:
    """And in the fields that only one of them has."""
    found = against(request(run={"pipeline": "nightly"}))
    assert found["execution.kind"] == ("step", "pipeline")
    assert found["execution.name"] == ("train", "nightly")
    assert found["execution.image"] == ("python:3.11", None)


def test_true_is_not_one() -> None:
    """They are equal in Python, but not for a runner."""
    old = MANIFEST.replace(b"default: 5, min: 1", b"default: 1")
    new = old.replace(
        b"{name: epochs, type: integer, default: 1}", b"{name: epochs, type: flag, default: true}"
    )
    assert differences(request(old), request(new))["execution.parameters.epochs"] == (1, True)
