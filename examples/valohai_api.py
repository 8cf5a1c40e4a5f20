"""A client of the platform's API, and what starts a request there: an execution, or a pipeline.

This module needs only Python's standard library: copy it together with `runner_valohai.py`.
"""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from step import Unusable

EXECUTIONS, PIPELINES = "executions", "pipelines"
STATES = {
    "created": "accepted",
    "queued": "accepted",
    "complete": "succeeded",
    "error": "failed",
    "crashed": "failed",
    "stopped": "cancelled",
}
"""The state to report for each of the platform's; for all others, such as `started`, it is `running`."""

ENDS = frozenset({"complete", "error", "crashed", "stopped"})
"""The platform's states that never change."""

TIMEOUT_SECONDS = 60
"""How long an answer is awaited."""

_BUSY_SECONDS = 60.0
_MAX_PAUSE_SECONDS = 3600.0
_PAGE = 100
_MAX_PAGES = 20
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
# Fields of a step's definition that a node of a pipeline has as well.
_COPIED = ("environment", "time-limit", "resources", "stop-condition", "environment-variable-groups")
# Fields of a task, and their names in a node of a pipeline: beside the step's, and in its configuration.
_TASK_FIELDS = {
    "type": "type",
    "maximum_queued_executions": "maximum_queued_executions",
    "on_child_error": "on_child_error",
    "stop_condition": "stop_expression",
    "reuse_children": "allow_reuse",
}
_TASK_CONFIGURATION = (
    "engine",
    "execution_count",
    "execution_batch_size",
    "optimization_target_metric",
    "optimization_target_value",
)


class Refused(Exception):
    """The platform refuses a call, and would refuse it again; nothing has been started."""

    def __init__(self, status: int, body: bytes) -> None:
        """Take the answer."""
        self.status = status
        try:
            self.details = json.loads(body)
        except ValueError:
            self.details = body[:1000].decode(errors="replace")
        super().__init__(f"the platform answers {status}: {json.dumps(self.details)[:1000]}")

    @property
    def is_about_commit(self) -> bool:
        """Whether the platform lacks the commit: of an execution, or somewhere in a pipeline's nodes."""
        return self.status == 400 and _names(self.details, "commit")  # noqa: PLR2004


class Busy(Exception):
    """The platform wants to be left alone, or cannot be reached: no call has a chance for so many seconds."""

    def __init__(self, reason: str, seconds: float, *, is_certain: bool) -> None:
        """`is_certain`: the platform has not acted on the call."""
        super().__init__(reason)
        self.seconds = seconds
        self.is_certain = is_certain


class Broken(Exception):
    """The platform failed at this one call; it may have acted on it."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the token elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        """Return nothing: the redirect itself is the answer."""


class Platform:
    """The platform's API at one address, with one token."""

    def __init__(self, url: str, token: str) -> None:
        """Take the address, such as https://app.valohai.com."""
        self._url = url.rstrip("/")
        self._headers = {
            "Authorization": f"Token {token}",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "pushgate-runner",
        }
        self._opener = urllib.request.build_opener(_NoRedirects())

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer as JSON. Raises `Refused`, `Busy` or `Broken`."""
        url = f"{self._url}/api/v0/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, self._headers, method=method)  # noqa: S310 - the operator's
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise _failure(error) from error
        except ValueError as error:
            raise Broken(f"the platform's answer to {path} is not JSON") from error
        except (OSError, http.client.HTTPException) as error:
            reason = f"the platform cannot be reached: {error}"
            raise Busy(reason, _BUSY_SECONDS / 2, is_certain=False) from error

    def fetch(self, project: str) -> list[str]:
        """Make the platform fetch the project's repository; return its errors."""
        # There may be errors even though the status is 201.
        return [str(error) for error in self.call("POST", f"projects/{project}/fetch/", {}).get("errors", ())]

    def tagged(self, kind: str, project: str, tag: str, since: datetime) -> dict[str, Any] | None:
        """Return what has this tag, among what was created since; None if nothing has."""
        for found in self._newest(kind, project, since):
            # Where the list omits the tags, the thing itself has them.
            whole = found if "tags" in found else self.call("GET", f"{kind}/{found['id']}/")
            if tag in [one["name"] if isinstance(one, dict) else one for one in whole.get("tags", ())]:
                return dict(whole)
        return None

    def _newest(self, kind: str, project: str, since: datetime) -> Iterator[Mapping[str, Any]]:
        for number in range(_MAX_PAGES):
            page = {"project": project, "ordering": "-counter", "limit": _PAGE, "offset": number * _PAGE}
            found = self.call("GET", f"{kind}/?{urllib.parse.urlencode(page)}")["results"]
            for one in found:
                if datetime.fromisoformat(one["ctime"]) < since:
                    return
                yield one
            if len(found) < _PAGE:
                return


def _names(details: Any, field: str) -> bool:
    """Return whether an error names a field, at any depth."""
    if isinstance(details, dict):
        return field in details or any(_names(inner, field) for inner in details.values())
    return isinstance(details, list) and any(_names(inner, field) for inner in details)


def _failure(error: urllib.error.HTTPError) -> Exception:
    """Return what an HTTP status means for later calls."""
    try:
        seconds = min(max(1.0, float(error.headers.get("Retry-After", ""))), _MAX_PAUSE_SECONDS)
    except ValueError:
        seconds = _BUSY_SECONDS
    if error.code == 401:  # noqa: PLR2004
        return Busy("the platform refuses the token VALOHAI_API_TOKEN", seconds, is_certain=True)
    if error.code in {429, 503}:
        reason = f"the platform answers {error.code}, and is left alone for {seconds:.0f} s"
        return Busy(reason, seconds, is_certain=error.code == 429)  # noqa: PLR2004
    if error.code >= 500 or error.code in {408, 425}:  # noqa: PLR2004
        return Broken(f"the platform answers {error.code}")
    return Refused(error.code, error.read(_MAX_ANSWER_BYTES))


def kind_of(request: Mapping[str, Any]) -> str:
    """Return what a request becomes. A task becomes a pipeline with one node, which the API documents."""
    return EXECUTIONS if request["execution"]["kind"] == "step" else PIPELINES


def check_kinds(execution: Mapping[str, Any]) -> None:
    """Raise `Unusable` for what cannot be started through the API."""
    if execution["kind"] not in {"step", "task", "pipeline"}:
        raise Unusable(f"this runner starts steps, tasks and pipelines, and no kind {execution['kind']}")
    for node in execution.get("nodes", ()):
        if node["kind"] == "deployment":
            raise Unusable(f"node {node['name']} is a deployment, and this runner does not deploy")


def body_of(request: Mapping[str, Any], project: str, tag: str) -> dict[str, Any]:
    """Return the body that starts a request."""
    execution, commit = request["execution"], request["commit"]["id"]
    body = {
        "project": project,
        "title": f"{request['trigger']} {commit[:10]}",
        "tags": ["pushgate", tag],
    }
    if execution["kind"] == "pipeline":
        return {
            **body,
            "nodes": [_node(node, commit) for node in execution["nodes"]],
            "edges": [
                {name: value for name, value in edge.items() if name != "configuration" or value}
                for edge in execution["edges"]
            ],
            "parameters": _pipeline_parameters(execution),
        }
    if execution["kind"] == "task":
        node = {"name": execution["name"], "kind": "task", "execution": execution}
        return {**body, "nodes": [_node(node, commit)], "edges": [], "parameters": {}}
    body |= {"commit": commit, "step": execution["name"], "image": execution["image"]}
    body |= {name: execution[name] for name in ("parameters", "inputs", "environment_variables")}
    optional = ("environment", "environment_variable_groups", "time_limit", "runtime_config_preset")
    return body | {name: execution[name] for name in optional if execution[name]}


def _node(node: Mapping[str, Any], commit: str) -> dict[str, Any]:
    """Return a node as `valohai_yaml.pipelines.conversion` has it, with the request's values."""
    execution = node["execution"]
    template = _template(execution.get("step", execution), commit)
    if node["kind"] == "task":
        template |= {
            new: execution[old] for old, new in _TASK_FIELDS.items() if execution.get(old) is not None
        }
        configuration = {name: execution[name] for name in _TASK_CONFIGURATION if execution[name] is not None}
        if configuration:
            template["configuration"] = configuration
        # What `parameter_sets` list becomes a parameter that varies.
        sets = execution["parameter_sets"]
        names = dict.fromkeys(name for chosen in sets for name in chosen)
        varied = {
            name: {"style": "multiple", "rules": {"items": [chosen.get(name) for chosen in sets]}}
            for name in names
        }
        template["parameters"] |= {**execution["parameters"], **varied}
    made: dict[str, Any] = {"name": node["name"], "type": node["kind"], "template": template}
    if node.get("on_error", "stop-all") != "stop-all":
        made["on-error"] = node["on_error"]
    if node.get("edge_merge_mode", "replace") != "replace":
        made["edge-merge-mode"] = node["edge_merge_mode"]
    if node.get("actions"):
        made["actions"] = node["actions"]
    return made


def _template(step: Mapping[str, Any], commit: str) -> dict[str, Any]:
    definition = step["definition"]
    template = {
        "commit": commit,
        "step": step["name"],
        "name": step["name"],
        "image": step["image"],
        # With the placeholders: the edges of a pipeline supply further values.
        "command": definition["command"],
        "parameters": {
            item["name"]: step["parameters"].get(item["name"], item.get("default"))
            for item in definition.get("parameters", ())
        },
        "inputs": {
            item["name"]: step["inputs"].get(item["name"], []) for item in definition.get("inputs", ())
        },
        "runtime_config": {},
    }
    if step["environment_variables"]:
        template["environment-variables"] = step["environment_variables"]
    return template | {name: definition[name] for name in _COPIED if name in definition}


def _pipeline_parameters(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    definitions = {item["name"]: item for item in pipeline["definition"].get("parameters", ())}
    return {
        name: {
            "config": definitions[name],
            "expression": {"style": "single", "rules": {"value": item["value"]}}
            if isinstance(item["value"], list)
            else item["value"],
        }
        for name, item in pipeline["parameters"].items()
    }
