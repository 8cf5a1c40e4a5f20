"""Triggers: which ref updates of a connection run which step, pipeline or task. See docs/triggers.md."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pathspec import PathSpec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.errors import Fault, Invalid
from gateway.messages.execution_states import MAX_LOST_AFTER_HOURS
from gateway.messages.names import Lane
from gateway.plan.globs import check_glob, matches
from gateway.text.escape import printable
from gateway.text.validation import faults
from providers.model import MERGE_QUEUE, Action, RefKind, merge_queue_base

TriggerEvent = Literal["push", "tag", "pull_request", "merge_group"]
Atom = str | int | float | bool
Value = Atom | list[Atom]

_MAX_TRIGGERS = 100
_MAX_NAME_LENGTH = 200
_MAX_NAME_SHOWN_LENGTH = 80
# Replacements of pydantic's messages that refer to its own models.
_PROBLEMS = {
    "missing": "is needed",
    "string_too_short": "is empty",
    "model_type": "has to be an object with fields",
    "dict_type": "has to be an object with fields",
    "tuple_type": "has to be a list",
    "list_type": "has to be a list",
    "string_type": "has to be text",
}
_EVENTS: Mapping[RefKind, TriggerEvent] = {
    "branch": "push",
    "tag": "tag",
    "pull_request": "pull_request",
    "merge_group": "merge_group",
}
_SHOWN: Mapping[RefKind, str] = {
    "branch": "branch",
    "tag": "tag",
    "pull_request": "pull request",
    "merge_group": "merge group",
}
# Prefixes of the globs in the command line's short form, and the fields that they set.
_SHORT_FORMS: Mapping[str, Mapping[str, Any]] = {
    "tag:": {},
    "pull_request:": {"on": ["pull_request"]},
    "merge_group:": {"on": ["merge_group"]},
}
# https://docs.github.com/en/actions/managing-workflow-runs/skipping-workflow-runs; the others use these two.
_SKIP = re.compile(r"\[(skip ci|ci skip)\]", re.IGNORECASE)
_SKIP_TRAILER = re.compile(r"skip-checks\s*:\s*true\s*", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n\s*\n")


def _value(given: Any) -> Any:
    atoms = given if isinstance(given, list) else [given]
    if not all(isinstance(atom, Atom) for atom in atoms):
        raise ValueError("a value has to be text, a number, true or false, or a list of these")
    if any(isinstance(atom, float) and not isfinite(atom) for atom in atoms):
        raise ValueError("a number has to be finite, because JSON has no others")
    return given


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _path_pattern(given: str) -> str:
    if given.startswith("#") or not given.strip():
        raise ValueError(f"{given!r} would be a comment in a .gitignore and matches no path")
    _paths((given,))
    return given


Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=_MAX_NAME_LENGTH, pattern=r"^[^\x00]*$"
    ),
]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=250), AfterValidator(check_glob)]
TextGlob = Annotated[str, StringConstraints(min_length=1, max_length=250, pattern=r"^!?[^!]")]
PathPattern = Annotated[str, StringConstraints(min_length=1, max_length=250), AfterValidator(_path_pattern)]


class Run(BaseModel):
    """What a trigger runs: a step, a pipeline or a task of the commit's valohai.yaml, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Name | None = None
    pipeline: Name | None = None
    task: Name | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._as_given()) != 1:
            raise ValueError("name one step, one pipeline or one task")
        return self

    @model_serializer
    def _as_given(self) -> dict[str, str]:
        named = {"step": self.step, "pipeline": self.pipeline, "task": self.task}
        return {kind: name for kind, name in named.items() if name is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of an object with exactly one name, in requests and in answers."""
        named = {
            kind: {
                "type": "string",
                "minLength": 1,
                "maxLength": _MAX_NAME_LENGTH,
                "description": f"the name of a {kind} of valohai.yaml",
            }
            for kind in cls.model_fields
        }
        return {
            "type": "object",
            "description": cls.__doc__,
            "properties": named,
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        }


class Trigger(BaseModel):
    """A rule of a connection: which ref updates run a step, a pipeline or a task.

    A push to a branch of the merge queue runs nothing, unless a glob of `branches` begins with the queue's
    prefix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="a name that is unique in the connection", examples=["train"])
    on: tuple[TriggerEvent, ...] = Field(
        default=(),
        description="the events that count; by default push for `branches`, tag for `tags`, and push if"
        " neither is given",
    )
    branches: tuple[Glob, ...] = Field(
        default=(),
        description="globs of branches, for a pull request or a merge group of the target branch; a glob that"
        " begins with ! excludes",
        examples=[["main", "release/*"]],
    )
    tags: tuple[Glob, ...] = Field(default=(), description="globs of tags; ! excludes", examples=[["v*"]])
    paths: tuple[PathPattern, ...] = Field(
        default=(), description="patterns as in .gitignore, of which a changed path must match one"
    )
    authors: tuple[TextGlob, ...] = Field(
        default=(), description="case-insensitive globs for the commit's whole author; ! excludes"
    )
    messages: tuple[TextGlob, ...] = Field(
        default=(), description="case-insensitive globs for the commit's whole message; ! excludes"
    )
    forks: bool = Field(default=False, description="whether pull requests from forks run too")
    run: Run = Field(description="what runs")
    parameters: dict[str, Annotated[Value, BeforeValidator(_value)]] = Field(
        default_factory=dict, description="values that override the defaults of the step, pipeline or task"
    )
    inputs: dict[str, Annotated[list[str], BeforeValidator(_listed)]] = Field(
        default_factory=dict, description="the URLs of inputs that override the step's defaults"
    )
    environment: Name | None = Field(
        default=None, description="the environment to run in, instead of the step's"
    )
    required: bool = Field(
        default=False,
        description="whether the git server requires its verdict: a commit whose ref matches, but not its"
        " paths, author or message, gets the verdict `skipped`, so that it can be merged",
    )
    lane: Lane | None = Field(default=None, description="the priority lane of the requests")
    policy: Literal["every", "latest"] = Field(
        default="every",
        description="`latest`: a request that is still pending is superseded by that of a later commit",
    )
    lost_after_hours: float | None = Field(
        default=None,
        ge=0,
        le=MAX_LOST_AFTER_HOURS,
        description="hours without a report after which an execution is `lost`; 0: never; null: as the"
        " setting LOST_AFTER_HOURS says",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_events(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("on"):
            return given
        events = [event for event, key in (("push", "branches"), ("tag", "tags")) if given.get(key)]
        return {**given, "on": events or ["push"]}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.branches and set(self.on) <= {"tag"}:
            raise ValueError("branches are given, but `on` does not name push")
        if self.tags and "tag" not in self.on:
            raise ValueError("tags are given, but `on` does not name tag")
        if self.forks and "pull_request" not in self.on:
            raise ValueError("forks are given, but `on` does not name pull_request")
        if self.run.pipeline is not None and (self.inputs or self.environment):
            raise ValueError("inputs and environment belong to a step; a pipeline takes only parameters")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerMatch:
    """Whether a trigger matches a ref update; `reason` names the condition that decided.

    If it is `skipped`, the trigger is required, and the ref matches, but not the commit.
    """

    trigger: str
    matched: bool
    reason: str
    skipped: bool = False


def read_triggers(given: Iterable[Any]) -> tuple[Trigger, ...]:
    """Read a connection's triggers. Raises `Invalid` with all faults, each with the trigger and the field."""
    triggers: list[Trigger] = []
    found: list[Fault] = []
    for number, fields in enumerate(given, start=1):
        name = (fields.get("name") if isinstance(fields, Mapping) else None) or f"number {number}"
        path = ("triggers", number - 1)
        if number > _MAX_TRIGGERS:
            found.append(Fault(f"a connection has at most {_MAX_TRIGGERS} triggers", ("triggers",)))
            break
        try:
            trigger = Trigger.model_validate(fields)
        except ValidationError as error:
            label = f"trigger {str(name)[:_MAX_NAME_SHOWN_LENGTH]}"
            wrong = faults(error, Trigger, words=_PROBLEMS)
            found += [Fault(f"{label}: {each.detail}", (*path, *each.path)) for each in wrong]
            continue
        if any(trigger.name == other.name for other in triggers):
            found.append(Fault(f"trigger {name}: there are two triggers of this name", (*path, "name")))
        triggers.append(trigger)
    if found:
        raise Invalid.of(found)
    return tuple(triggers)


def parse_trigger(text: str) -> Trigger:
    """Read the short form of the command line: `STEP`, `STEP@BRANCHES` or `STEP@tag:TAGS`.

    `pull_request:BRANCHES` and `merge_group:BRANCHES` name target branches. Commas separate globs:
    `train@main,release/*`. `pipeline:NAME` or `task:NAME` in place of the step runs a pipeline or a task.
    The text is also the trigger's name. Raises `Invalid`.
    """
    target, at, globs = text.partition("@")
    form = next((form for form in _SHORT_FORMS if globs.startswith(form)), "")
    key, globs = "tags" if form == "tag:" else "branches", globs.removeprefix(form)
    listed = [glob.strip() for glob in globs.split(",") if glob.strip()]
    if at and not listed:
        raise Invalid(f"trigger {text.strip()}: name a branch or tag:TAG after the @, such as {target}@main")
    kind, colon, name = target.partition(":")
    run = {kind.strip(): name} if colon and kind.strip() in {"pipeline", "task"} else {"step": target}
    return read_triggers([{"name": text, key: listed, "run": run, **_SHORT_FORMS.get(form, {})}])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestFacts:
    """The facts about a pull request from `source` into `target`; `from_fork` is None if unknown."""

    number: str
    source: str
    target: str
    from_fork: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFacts:
    """The facts that triggers match: which ref moved, which paths changed, and who wrote what."""

    kind: RefKind
    name: str
    action: Action
    paths: Sequence[str]
    paths_complete: bool
    author: str = ""
    message: str = ""
    pull_request: PullRequestFacts | None = None


def need_paths(triggers: Sequence[Trigger]) -> bool:
    """Return whether any of these triggers depends on the changed paths."""
    return any(trigger.paths for trigger in triggers)


def match(trigger: Trigger, move: MoveFacts) -> TriggerMatch:
    """Return whether a ref update matches the trigger, and why."""
    if of_ref := _event(trigger, move) or _name(trigger, move):
        return TriggerMatch(trigger=trigger.name, matched=False, reason=of_ref)
    changed = next(iter(_paths(trigger.paths).match_files(move.paths)), None) if trigger.paths else None
    of_commit = _skip(trigger, move) or _texts(trigger, move)
    if of_commit is None and trigger.paths and changed is None and move.paths_complete:
        of_commit = f"no changed path matches {', '.join(trigger.paths)}"
    if of_commit is not None:
        return TriggerMatch(trigger=trigger.name, matched=False, reason=of_commit, skipped=trigger.required)
    why = f"{_shown_name(move)} matches"
    if changed is not None:
        why += f", and so does the changed path {printable(changed)}"
    elif trigger.paths:
        why += "; too many paths changed to compare them"
    return TriggerMatch(trigger=trigger.name, matched=True, reason=why)


def _event(trigger: Trigger, move: MoveFacts) -> str | None:
    """Return why the trigger does not run on this kind of update, or None."""
    shown, pull_request = _SHOWN[move.kind], move.pull_request
    if move.action == "delete":
        return f"the {shown} was deleted: nothing runs"
    if move.kind == "branch" and move.name.startswith(MERGE_QUEUE) and not _names_queue(trigger):
        return f"{move.name} is a branch of the merge queue: use `on: [merge_group]` to run its groups"
    if _EVENTS[move.kind] not in trigger.on:
        return f"the trigger runs only on {' and '.join(trigger.on)}, and this is a {shown}"
    if pull_request is not None and pull_request.from_fork is not False and not trigger.forks:
        return "the pull request is, or may be, from a fork, and the trigger does not set `forks`"
    return None


def _names_queue(trigger: Trigger) -> bool:
    return any(glob.startswith(MERGE_QUEUE) for glob in trigger.branches)


def branch_of(kind: RefKind, name: str, pull_request: PullRequestFacts | None) -> str:
    """Return the branch that moved, or the target branch of a pull request or a merge group."""
    if pull_request is not None:
        return pull_request.target
    return merge_queue_base(name) if kind == "merge_group" else name


def _name(trigger: Trigger, move: MoveFacts) -> str | None:
    globs = trigger.tags if move.kind == "tag" else trigger.branches
    name = branch_of(move.kind, move.name, move.pull_request)
    return None if matches(globs, name) else f"{_shown_name(move)} does not match {', '.join(globs)}"


def _shown_name(move: MoveFacts) -> str:
    if move.pull_request is not None:
        return f"target branch {move.pull_request.target}"
    if move.kind == "merge_group":
        return f"merge group for branch {merge_queue_base(move.name)}"
    return f"{_SHOWN[move.kind]} {move.name}"


def _skip(_trigger: Trigger, move: MoveFacts) -> str | None:
    marker = _skip_marker(move.message)
    return f"the commit's message contains {marker}" if marker else None


def _texts(trigger: Trigger, move: MoveFacts) -> str | None:
    texts = (("author", move.author, trigger.authors), ("message", move.message, trigger.messages))
    for what, text, patterns in texts:
        if not _matches_text(patterns, text):
            return f"the commit's {what} does not match {', '.join(patterns)}"
    return None


def _skip_marker(message: str) -> str | None:
    """Return the marker or trailer in a commit's message that prevents runs, or None."""
    if found := _SKIP.search(message):
        return found[0]
    # Trailers are in the last paragraph, but never in the first, the title: git-interpret-trailers(1).
    _title, *further = _BLANK_LINE.split(message.strip())
    last = further[-1].split("\n") if further else []
    return next((line.strip() for line in last if _SKIP_TRAILER.fullmatch(line)), None)


def _matches_text(patterns: Sequence[str], text: str) -> bool:
    """Return whether a text matches one of the patterns and none that begins with `!`.

    Brackets are literal, because authors are named dependabot[bot] and messages begin with [WIP].
    """
    lowered = text.lower()
    literal = [pattern.lower().replace("[", "[[]") for pattern in patterns]
    if any(fnmatchcase(lowered, pattern[1:]) for pattern in literal if pattern.startswith("!")):
        return False
    wanted = [pattern for pattern in literal if not pattern.startswith("!")]
    return not wanted or any(fnmatchcase(lowered, pattern) for pattern in wanted)


@lru_cache(maxsize=256)
def _paths(patterns: tuple[str, ...]) -> PathSpec[Any]:
    """Return a matcher in which the last pattern that matches a path decides.

    If all patterns are exclusions, every other path matches. GitIgnoreSpec is not suitable, because it cannot
    exclude a path again below a folder that matches.
    """
    only_exclusions = all(pattern.startswith("!") for pattern in patterns)
    return PathSpec.from_lines("gitignore", ["**", *patterns] if only_exclusions else patterns)
