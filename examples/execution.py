"""Execute a request: a step, a task or a pipeline, independently of the AMQP library that received it.

Everything is in the message and its package. Each execution has a new folder with the unpacked package, in
which its commands run. It finds its inputs in `VH_INPUTS_DIR`, and writes its outputs to `VH_OUTPUTS_DIR`, as
on the platform. A line that it prints is metadata if it is a JSON object.

This module and `step.py` need only Python's standard library: copy both, and adapt them to your runners.
"""

import itertools
import json
import math
import operator
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from step import File, Package, Result, Stopped, Supply, Unusable, fetch, log, run_step, stop

MAX_EXECUTIONS = 1000
"""How many executions a task may have."""

_CONDITION = re.compile(r"\s*([\w.-]+)\s*(<=|>=|==|!=|<|>)\s*(-?[\w.]+)\s*")
_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_FILES = ("output", "input")
_VALUES = ("metadata", "parameter")


def read(body: bytes, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the request in a message, in either mode of CloudEvents. Raises `Unusable`.

    `redrive` is added to it: how often an operator has republished the request. The request may still be one
    that this runner cannot execute: see `check`.
    """
    try:
        request: dict[str, Any] = json.loads(body)
        redrive = (headers or {}).get("ce-redrive", 0)
        if "specversion" in request:
            request, redrive = request["data"], request.get("redrive", 0)
        request["redrive"] = int(redrive)
        if not isinstance(request["id"], str):
            raise Unusable("the request's id is not a text")
        _ = request["package"], request["execution"]["kind"]
    except _MALFORMED as error:
        raise Unusable(f"this is not an execution request: {error!r}") from error
    return request


def check(request: Mapping[str, Any]) -> None:
    """Raise `Unusable` for what this runner does not do, before anything runs."""
    if request["package"] is None:
        raise Unusable("this runner executes only requests with a package")
    try:
        _check(request["execution"])
    except _MALFORMED as error:
        raise Unusable(f"this is not an execution request: {error!r}") from error


def _check(execution: Mapping[str, Any]) -> None:
    if execution["kind"] == "pipeline":
        _check_pipeline(execution)
    elif execution["kind"] == "task":
        if execution["type"] not in {"grid_search", "manual_search"}:
            raise Unusable(f"this runner executes grid and manual searches, not a {execution['type']}")
        if len(list(itertools.islice(_sets(execution, {}), MAX_EXECUTIONS + 1))) > MAX_EXECUTIONS:
            raise Unusable(f"task {execution['name']} has more than {MAX_EXECUTIONS} executions")
    elif execution["kind"] != "step":
        raise Unusable(f"this runner executes steps, tasks and pipelines, and no kind {execution['kind']}")


def _check_pipeline(pipeline: Mapping[str, Any]) -> None:
    for node in pipeline["nodes"]:
        if node["kind"] == "deployment":
            raise Unusable(f"node {node['name']} is a deployment, and this runner does not deploy")
        _check(node["execution"])
        for condition in itertools.chain.from_iterable(action["if"] for action in node["actions"]):
            if not _CONDITION.fullmatch(condition):
                raise Unusable(f"this runner only compares metadata with a value: not {condition}")
    takes = {"input": _FILES, "parameter": _VALUES, "environment-variable": _VALUES}
    for edge in pipeline["edges"]:
        kinds = (edge["source_type"], edge["target_type"])
        if "dependency" not in kinds and kinds[0] not in takes.get(kinds[1], ()):
            raise Unusable(f"this runner has no edges from {kinds[0]} to {kinds[1]}")
    _order(pipeline)


def execute(request: Mapping[str, Any]) -> Result:
    """Run a request and pass its output on. Raises `Unusable`, `OSError`."""
    with tempfile.TemporaryDirectory(prefix="execution-") as folder:
        package = Package(Path(folder, "package"), request["package"]["format"], Path(folder))
        fetch(request["package"], package.archive)
        execution = request["execution"]
        if execution["kind"] == "pipeline":
            return run_pipeline(execution, package)
        return _run(execution, Supply(), package)


def _run(execution: Mapping[str, Any], supply: Supply, package: Package) -> Result:
    if execution["kind"] == "task":
        return run_task(execution, supply, package)
    return run_step(execution, supply, package)


def run_task(task: Mapping[str, Any], supply: Supply, package: Package) -> Result:
    """Run a task's step with each set of parameters. Edges get all outputs, but the last values."""
    whole = Result()
    for values in _sets(task, supply.parameters):
        given = Supply(values, supply.files, supply.variables, supply.append)
        one = run_step(task["step"], given, package)
        whole.outputs += one.outputs
        whole.inputs, whole.parameters, whole.log = one.inputs, one.parameters, one.log
        whole.metadata.update(one.metadata)
        if one.status != 0 and task["on_child_error"] != "continue-and-complete":
            whole.status = one.status
            if task["on_child_error"] != "continue-and-error":
                break
    return whole


def _sets(task: Mapping[str, Any], supplied: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the values of each execution of a grid or manual search. What edges supply has priority."""
    types = {item["name"]: item for item in task["step"]["definition"].get("parameters", ())}
    varied = {name: _varied(item, types[name]) for name, item in task["parameters"].items()} | {
        # A list for a parameter that takes one value varies it.
        name: value if isinstance(value, list) and not types.get(name, {}).get("multiple") else [value]
        for name, value in supplied.items()
    }
    names = {name for chosen in task["parameter_sets"] for name in chosen}
    for chosen in task["parameter_sets"] if task["type"] == "manual_search" else [{}]:
        own = {name: value for name, value in chosen.items() if value is not None and name not in supplied}
        free = {name: values for name, values in varied.items() if name not in own}
        for combination in itertools.product(*free.values()):
            found = dict(zip(free, combination, strict=True))
            yield {**dict.fromkeys(names), **task["defaults"], **own, **found}


def _varied(variation: Mapping[str, Any], parameter: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values of a parameter that varies."""
    style, rules = variation["style"], variation["rules"]
    if style == "multiple":
        return list(rules["items"])
    if style == "single":
        return [rules["value"]]
    if style not in {"linear", "logspace"}:
        raise Unusable(f"this runner does not choose values of the style {style}")
    start, end = float(rules["start"]), float(rules["end"])
    if "count" in rules:
        count = int(rules["count"])
        step = (end - start) / max(count - 1, 1)
    else:
        step = float(rules.get("step", 1))
        count = math.floor((end - start) / step + 1e-9) + 1
    if not 1 <= count <= MAX_EXECUTIONS:
        raise Unusable(f"parameter {parameter['name']} would have {count} values")
    exact = (start + number * step for number in range(count))
    values = [float(rules.get("base", 10)) ** value if style == "logspace" else value for value in exact]
    if rules.get("integerify") or parameter["type"] == "integer":
        return [round(value) for value in values]
    return [float(f"{value:.12g}") for value in values]


def run_pipeline(pipeline: Mapping[str, Any], package: Package) -> Result:
    """Run the nodes in the order of the edges. The status is that of the last node that failed, or 0."""
    nodes = {node["name"]: node for node in pipeline["nodes"]}
    results: dict[str, Result] = {}
    stopped: set[str] = set()
    whole = Result()
    for name in _order(pipeline):
        node = nodes[name]
        edges = [edge for edge in pipeline["edges"] if edge["target_node"] == name]
        if any(edge["source_node"] in stopped for edge in edges):
            log(f"node {name} is skipped")
            stopped.add(name)
            continue
        ended = _action(node, "node-starting", Result())
        if ended is not None:
            whole.status = ended
            break
        for _ in range(2 if node["on_error"] == "retry" else 1):
            result = results[name] = _run_node(node, edges, results, package)
            if result.status == 0:
                break
        whole.summary += f"- node {name} ended with status {result.status}\n"
        whole.outputs += [File(item.path, PurePosixPath(name, item.name)) for item in result.outputs]
        whole.log = result.log
        whole.metadata.update({f"{name}.{key}": value for key, value in result.metadata.items()})
        if result.status != 0:
            whole.status = result.status
            log(f"node {name} failed with status {result.status}")
        ended = _action(node, "node-error" if result.status else "node-complete", result)
        if ended is not None:
            whole.status = ended
            break
        if result.status != 0 and node["on_error"] != "continue":
            stopped.add(name)
            if node["on_error"] != "stop-next":
                break
    return whole


def _order(pipeline: Mapping[str, Any]) -> list[str]:
    """Return the names of the nodes, each after those from which its edges come."""
    sources: dict[str, list[str]] = {node["name"]: [] for node in pipeline["nodes"]}
    for edge in pipeline["edges"]:
        sources[edge["target_node"]].append(edge["source_node"])
    try:
        return list(TopologicalSorter(sources).static_order())
    except CycleError as error:
        raise Unusable(f"the edges of these nodes form a circle: {', '.join(error.args[1])}") from error


def _run_node(
    node: Mapping[str, Any],
    edges: Sequence[Mapping[str, Any]],
    results: Mapping[str, Result],
    package: Package,
) -> Result:
    log(f"node {node['name']} begins")
    try:
        supply = _supply(edges, results)
        supply.append = node["edge_merge_mode"] == "append"
        return _run(node["execution"], supply, package)
    except Unusable as error:
        log(f"node {node['name']}: {error}")
        return Result(status=1)


def _supply(edges: Sequence[Mapping[str, Any]], results: Mapping[str, Result]) -> Supply:
    """Return what edges pass on from the results of other nodes."""
    supply = Supply()
    for edge in edges:
        source, kind, key = results[edge["source_node"]], edge["source_type"], edge["source_key"]
        target = edge["target_key"]
        if "dependency" in {kind, edge["target_type"]}:
            continue
        if kind in _FILES:
            files = source.inputs.get(key, []) if kind == "input" else source.outputs
            if kind == "output":
                files = [item for item in files if fnmatchcase(str(item.name), key)]
            if not files:
                raise Unusable(f"node {edge['source_node']} has no {kind} {key}")
            supply.files.setdefault(target, []).extend(files)
            continue
        if kind == "metadata" and key not in source.metadata:
            raise Unusable(f"node {edge['source_node']} has no metadata {key}")
        value = (source.metadata if kind == "metadata" else source.parameters).get(key)
        if edge["target_type"] == "parameter":
            supply.parameters[target] = value
        elif value is not None:
            supply.variables[target] = str(value)
    return supply


def _action(node: Mapping[str, Any], event: str, result: Result) -> int | None:
    """Return the exit status with which the node's actions end the pipeline; None if they do not."""
    for action in node["actions"]:
        if event in action["when"] and all(_holds(text, result.metadata) for text in action["if"]):
            if "error-pipeline" in action["then"]:
                return 1
            if "stop-pipeline" in action["then"]:
                return 0
    return None


def _holds(condition: str, metadata: Mapping[str, Any]) -> bool:
    found = _CONDITION.fullmatch(condition)
    if found is None or found[1] not in metadata:
        return False
    try:
        return bool(_COMPARE[found[2]](float(metadata[found[1]]), float(found[3])))
    except (TypeError, ValueError):
        return bool(_COMPARE[found[2]](str(metadata[found[1]]), found[3]))


if __name__ == "__main__":
    # Execute one request from standard input, without a broker: the `message` of `pushgate executions ID`.
    signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        received = read(sys.stdin.buffer.read())
        check(received)
        sys.exit(execute(received).status)
    except Stopped:
        sys.exit("the execution was stopped")
    except Unusable as error:
        sys.exit(f"this request cannot be executed: {error}")
