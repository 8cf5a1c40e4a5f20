"""No push makes messages that a broker refuses, or exhausts the memory while it is planned."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.messages.execution_request import MAX_REQUEST_BYTES
from gateway.plan.json_values import weight
from gateway.plan.manifest import MAX_MANIFEST_BYTES
from tests.plan.facts import HEAD, planned, trigger

MIB = 1024 * 1024
# The nodes of a pipeline: as many as are allowed.
NODES = "".join(f"      - {{name: n{number}, type: execution, step: train}}\n" for number in range(200))
PIPELINE = f"- pipeline:\n    name: p\n    edges: []\n    nodes:\n{NODES}"
TASK_NODES = NODES.replace("type: execution, step: train", "type: task, task: many")
RUN = {"name": "t", "run": {"pipeline": "p"}}


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if more than 64 MiB were in use at once, a few times the largest message."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB


def repeated(text: str, count: int) -> str:
    """Return a step's commands: one long text and aliases of it."""
    return f"    command:\n      - &c '{text}'\n" + "      - *c\n" * count


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(f"{HEAD}    command: {'x' * 80_000}\n{PIPELINE}", id="a long step, which made 16 MB"),
        pytest.param(
            f"{HEAD}{repeated('x' * 60_000, 11)}{PIPELINE}", id="aliases in a step, which made 144 MB"
        ),
        pytest.param(
            f"{HEAD}    command: c\n    environment-variables:\n"
            + "".join(f"      - {{name: v{number}, default: x}}\n" for number in range(500))
            + PIPELINE,
            id="many small values, which took half a minute",
        ),
        pytest.param(
            f"{HEAD}    command: c\n- task:\n    name: many\n    step: train\n    type: grid_search\n"
            f"    parameters:\n      - {{name: x, style: multiple, rules: {{items: ['{'x' * 80_000}']}}}}\n"
            + PIPELINE.replace(NODES, TASK_NODES),
            id="tasks as nodes",
        ),
        pytest.param(
            f"{HEAD}    command: c\n- pipeline:\n    name: p\n    edges: []\n    nodes:\n"
            f"      - {{name: n, type: execution, step: train, override: &o {{command: {'x' * 80_000}}}}}\n"
            + "".join(
                f"      - {{name: n{number}, type: execution, step: train, override: *o}}\n"
                for number in range(199)
            ),
            id="overrides",
        ),
    ],
)
def test_a_pipeline_is_bounded_before_it_is_built(bomb: str) -> None:
    """Each node copies its step, so the size is computed before the message is built."""
    assert len(bomb) < 100_000
    with little_memory():
        plan = planned(RUN, manifest=bomb)
    assert plan.requests == ()
    assert any(
        text in plan.reason
        for text in (
            "nodes contains its step; at most 8388608 are sent",
            "its aliases expand to too much text",
        )
    )


def test_a_large_pipeline_is_planned() -> None:
    """With 200 nodes, and a step with a realistic number of parameters."""
    step = f"{HEAD}    command: python train.py {{parameters}}\n    parameters:\n"
    step += "".join(
        f"      - {{name: p{number}, type: integer, default: {number}}}\n" for number in range(20)
    )
    [request] = planned(RUN, manifest=f"{step}{PIPELINE}").requests
    assert len(request.model_dump_json()) < MAX_REQUEST_BYTES


def test_a_step_that_is_too_large_as_json_is_refused() -> None:
    """With aliases and characters that JSON escapes as six, a file of 20 KB would make a message of 12 MB."""
    inputs = '    inputs:\n      - name: i\n        default:\n          - &u "' + "\\a" * 9000 + '"\n'
    inputs += "          - *u\n" * 110
    with little_memory():
        plan = planned(trigger(), manifest=f"{HEAD}    command: c\n{inputs}")
    assert plan.requests == ()
    assert "trigger t: the message for step train would have" in plan.reason
    assert f"at most {MAX_REQUEST_BYTES} are sent" in plan.reason


def test_the_requests_of_one_push_are_bounded_together() -> None:
    """Of 100 triggers for the same large step, some make a request and the others have a reason."""
    manifest = f"{HEAD}    command: {'x' * 250_000}\n"
    triggers = [trigger(f"t{number}") for number in range(100)]
    with little_memory():
        plan = planned(*triggers, manifest=manifest)
        total = sum(len(request.model_dump_json()) for request in plan.requests)
    assert 7 * MIB < total < 10 * MIB
    assert len(plan.requests) + len(plan.failures) == 100
    assert "the requests of the triggers before it exceed 8388608 bytes together" in plan.failures["t99"]


def test_reasons_are_short_however_long_the_names_are() -> None:
    """Lists and events contain them, and a file may have names of 100,000 characters."""
    long = "n" * 100_000
    manifest = f"- step: {{name: {long}, image: i, command: c}}\n"
    manifest += "".join(f"- step: {{name: s{number}, image: i, command: c}}\n" for number in range(500))
    plan = planned(*[trigger(f"t{number}") for number in range(100)], manifest=manifest)
    assert len(plan.reason) == 4000
    assert plan.reason.startswith("trigger t0: valohai.yaml has no step train; its steps: nnn")
    assert "and 481 more" in plan.failures["t99"]
    assert max(map(len, plan.failures.values())) <= 1000


def test_a_task_of_many_sets_is_checked_in_linear_time() -> None:
    """With as many sets as parameters and one value in each, the checks are not the product of the two."""
    names = [f"a{number}" for number in range(3000)]
    manifest = f"{HEAD}    command: c\n    parameters:\n"
    manifest += "".join(f"      - {{name: {name}, optional: true}}\n" for name in names)
    manifest += "- task:\n    name: many\n    step: train\n    type: manual_search\n    parameter-sets:\n"
    manifest += "".join(f"      - {{{name}: 1}}\n" for name in names)
    [request] = planned({"name": "t", "run": {"task": "many"}}, manifest=manifest).requests
    assert len(request.execution.model_dump()["parameter_sets"]) == len(names)


def test_the_edges_of_a_pipeline_are_limited() -> None:
    """Because each is checked against all nodes."""
    edges = "".join("      - [n1.output.a, n2.input.b]\n" for _ in range(2001))
    manifest = f"{HEAD}    command: c\n{PIPELINE.replace('    edges: []', f'    edges:{chr(10)}{edges}')}"
    plan = planned(RUN, manifest=manifest)
    assert "pipeline p has 2001 edges; at most 2000 are allowed" in plan.reason


def test_a_value_weighs_at_least_what_it_takes_as_json() -> None:
    """Text counts in bytes, shared values count each time, and each value adds 16."""
    shared = ["é\n", 1.5, None, True]
    assert weight("é\n") == 16 + len('"é\\n"'.encode())
    assert weight([shared, shared]) == 16 + 2 * weight(shared)
    assert weight({"a": shared}) == 16 + weight("a") + weight(shared)


def test_a_whole_file_of_small_values_is_read() -> None:
    """The limit for expanded aliases does not restrict what is written out."""
    step = f"{HEAD}    command: c\n    parameters:\n"
    text = step + "".join(f"      - {{name: p{number:05}, optional: true}}\n" for number in range(5800))
    assert MAX_MANIFEST_BYTES - 40_000 < len(text) <= MAX_MANIFEST_BYTES
    assert len(planned(trigger(), manifest=text).requests) == 1
