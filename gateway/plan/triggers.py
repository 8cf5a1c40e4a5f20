"""Triggers: which ref updates of a connection ask for which step or pipeline. Docs: docs/triggers.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pathspec import PathSpec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from gateway.errors import Invalid
from gateway.plan.globs import check_glob, fits
from providers.model import Action, RefKind

Happening = Literal["push", "tag"]
Atom = str | int | float | bool
Value = Atom | list[Atom]

_MOST_TRIGGERS = 100
_LONGEST_NAME_SHOWN = 80
# What pydantic says of these is about its own models.
_PROBLEMS = {
    "missing": "is needed",
    "extra_forbidden": "there is no such field",
    "string_too_short": "is empty",
    "model_type": "has to be an object with fields",
}
_KINDS: Mapping[RefKind, Happening] = {"branch": "push", "tag": "tag"}


def _value(given: Any) -> Any:
    atoms = given if isinstance(given, list) else [given]
    if not all(isinstance(atom, Atom) for atom in atoms):
        raise ValueError("a value has to be text, a number, true or false, or a list of these")
    return given


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _path_pattern(given: str) -> str:
    if given.startswith("#") or not given.strip():
        raise ValueError(f"{given!r} would be a comment in a .gitignore and fits no path")
    _paths((given,))
    return given


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=250), AfterValidator(check_glob)]
PathPattern = Annotated[str, StringConstraints(min_length=1, max_length=250), AfterValidator(_path_pattern)]


class Run(BaseModel):
    """What a trigger asks for: a step or a pipeline of the commit's valohai.yaml, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Name | None = None
    pipeline: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "task" in given:
            raise ValueError("a task isn't supported yet; name a step or a pipeline")
        return given

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.step is None) == (self.pipeline is None):
            raise ValueError("name one step or one pipeline")
        return self

    @model_serializer
    def _as_given(self) -> dict[str, str]:
        return {"step": self.step} if self.step is not None else {"pipeline": self.pipeline or ""}


class Trigger(BaseModel):
    """A rule of a connection.

    `on` follows from the globs where it isn't given: `branches` say push, `tags` say tag, neither says push.
    A glob that begins with `!` excludes. `paths` are patterns as in .gitignore over the paths that git says
    have changed. `parameters` and `inputs` go over the step's own defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    on: tuple[Happening, ...] = ()
    branches: tuple[Glob, ...] = ()
    tags: tuple[Glob, ...] = ()
    paths: tuple[PathPattern, ...] = ()
    run: Run
    parameters: dict[str, Annotated[Value, BeforeValidator(_value)]] = Field(default_factory=dict)
    inputs: dict[str, Annotated[list[str], BeforeValidator(_listed)]] = Field(default_factory=dict)
    environment: Name | None = None
    policy: Literal["every"] = "every"

    @field_validator("on", mode="before")
    @classmethod
    def _known_happenings(cls, given: Any) -> Any:
        if isinstance(given, (list, tuple)) and "pull_request" in given:
            raise ValueError("pull_request isn't supported yet; push and tag are")
        return given

    @field_validator("policy", mode="before")
    @classmethod
    def _known_policy(cls, given: Any) -> Any:
        if given == "latest":
            raise ValueError("latest isn't supported yet; every is")
        return given

    @model_validator(mode="before")
    @classmethod
    def _happenings(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("on"):
            return given
        told = [happening for happening, key in (("push", "branches"), ("tag", "tags")) if given.get(key)]
        return {**given, "on": told or ["push"]}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for happening, key in (("push", "branches"), ("tag", "tags")):
            if getattr(self, key) and happening not in self.on:
                raise ValueError(f"{key} are given, but `on` does not name {happening}")
        if self.run.pipeline is not None and (self.inputs or self.environment):
            raise ValueError("inputs and environment belong to a step; a pipeline takes only parameters")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a trigger says to a ref update; `reason` names the condition that decided."""

    trigger: str
    matched: bool
    reason: str


def read_triggers(given: Iterable[Any]) -> tuple[Trigger, ...]:
    """Read a connection's triggers. Raises `Invalid` with the trigger and the field that are wrong."""
    triggers: list[Trigger] = []
    for number, one in enumerate(given, start=1):
        name = (one.get("name") if isinstance(one, Mapping) else None) or f"number {number}"
        try:
            trigger = Trigger.model_validate(one)
        except ValidationError as error:
            raise Invalid(f"trigger {str(name)[:_LONGEST_NAME_SHOWN]}: {_first_problem(error)}") from None
        if any(trigger.name == other.name for other in triggers):
            raise Invalid(f"trigger {name}: there are two of this name")
        triggers.append(trigger)
        if len(triggers) > _MOST_TRIGGERS:
            raise Invalid(f"a connection has at most {_MOST_TRIGGERS} triggers")
    return tuple(triggers)


def parse_trigger(text: str) -> Trigger:
    """Read the short form of the command line: `STEP`, `STEP@BRANCHES` or `STEP@tag:TAGS`.

    Globs are separated by commas: `train@main,release/*`. `pipeline:NAME` instead of the step names a
    pipeline. The text is the trigger's name. Raises `Invalid`.
    """
    target, at, globs = text.partition("@")
    key = "branches"
    if globs.startswith("tag:"):
        key, globs = "tags", globs.removeprefix("tag:")
    listed = [glob.strip() for glob in globs.split(",") if glob.strip()]
    if at and not listed:
        raise Invalid(f"trigger {text.strip()}: name a branch or tag:TAG behind the @, such as {target}@main")
    kind, colon, name = target.partition(":")
    run = {"pipeline": name} if colon and kind.strip() == "pipeline" else {"step": target}
    return read_triggers([{"name": text, key: listed, "run": run}])[0]


def judge(
    trigger: Trigger, *, kind: RefKind, name: str, action: Action, paths: Sequence[str], paths_complete: bool
) -> Verdict:
    """Say whether a ref update is one that the trigger is for, and why."""

    def verdict(reason: str, *, matched: bool = False) -> Verdict:
        return Verdict(trigger=trigger.name, matched=matched, reason=reason)

    if action == "delete":
        return verdict(f"the {kind} was deleted: nothing runs")
    if _KINDS[kind] not in trigger.on:
        return verdict(f"it is for {' and '.join(trigger.on)}, and this is a {kind}")
    globs = trigger.branches if kind == "branch" else trigger.tags
    if not fits(globs, name):
        return verdict(f"{kind} {name} does not fit {', '.join(globs)}")
    changed = next(iter(_paths(trigger.paths).match_files(paths)), None) if trigger.paths else None
    if trigger.paths and changed is None and paths_complete:
        return verdict(f"no changed path fits {', '.join(trigger.paths)}")
    why = f"{kind} {name} fits"
    if changed is not None:
        why += f", and so does the changed path {changed}"
    elif trigger.paths:
        why += "; too many paths have changed to compare them"
    return verdict(why, matched=True)


@lru_cache(maxsize=256)
def _paths(patterns: tuple[str, ...]) -> PathSpec[Any]:
    """Return what decides about a path: the last pattern that fits it does. Exclusions alone leave the rest.

    Not GitIgnoreSpec: there nothing below a folder that fits can be excluded again.
    """
    only_exclusions = all(pattern.startswith("!") for pattern in patterns)
    return PathSpec.from_lines("gitignore", ["**", *patterns] if only_exclusions else patterns)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = _PROBLEMS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
