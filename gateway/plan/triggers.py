"""Triggers: which ref updates of a connection ask for which step. Docs: docs/triggers.md."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pathspec import GitIgnoreSpec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from gateway.errors import Invalid
from providers.model import Action, RefKind

Happening = Literal["push", "tag"]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=250)]
Value = str | int | float | bool | list[str | int | float | bool]

_MOST_TRIGGERS = 100
_KINDS: Mapping[RefKind, Happening] = {"branch": "push", "tag": "tag"}


class Run(BaseModel):
    """What a trigger asks for: a step of the commit's valohai.yaml, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Name


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
    paths: tuple[Glob, ...] = ()
    run: Run
    parameters: dict[str, Value] = Field(default_factory=dict)
    inputs: dict[str, list[str]] = Field(default_factory=dict)
    environment: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _happenings(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("on"):
            return given
        told = [happening for happening, key in (("push", "branches"), ("tag", "tags")) if given.get(key)]
        return {**given, "on": told or ["push"]}

    @model_validator(mode="after")
    def _globs_fit(self) -> Self:
        for happening, key in (("push", "branches"), ("tag", "tags")):
            if getattr(self, key) and happening not in self.on:
                raise ValueError(f"{key} are given, but `on` does not name {happening}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a trigger says to a ref update; `reason` names the condition that decided."""

    trigger: str
    matched: bool
    reason: str


def read_triggers(given: Iterable[Mapping[str, Any]]) -> tuple[Trigger, ...]:
    """Read a connection's triggers. Raises `Invalid` with the trigger and the field that are wrong."""
    triggers: list[Trigger] = []
    for number, one in enumerate(given, start=1):
        name = one.get("name") or f"number {number}"
        try:
            trigger = Trigger.model_validate(one)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise Invalid(f"trigger {name}: {where}{first['msg'].removeprefix('Value error, ')}") from None
        if any(trigger.name == other.name for other in triggers):
            raise Invalid(f"trigger {name}: there are two of this name")
        triggers.append(trigger)
    if len(triggers) > _MOST_TRIGGERS:
        raise Invalid(f"a connection has at most {_MOST_TRIGGERS} triggers, not {len(triggers)}")
    return tuple(triggers)


def parse_trigger(text: str) -> Trigger:
    """Read the short form of the command line: `STEP`, `STEP@BRANCHES` or `STEP@tag:TAGS`.

    Globs are separated by commas: `train@main,release/*`. Raises `Invalid`.
    """
    step, _, globs = text.partition("@")
    kind, _, tags = globs.partition(":")
    listed = [glob.strip() for glob in (tags if kind == "tag" else globs).split(",") if glob.strip()]
    key = "tags" if kind == "tag" else "branches"
    return read_triggers([{"name": text.strip(), key: listed, "run": {"step": step}}])[0]


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
    if globs and not _any_fits(globs, name):
        return verdict(f"{kind} {name} does not fit {', '.join(globs)}")
    if (
        trigger.paths
        and paths_complete
        and not any(GitIgnoreSpec.from_lines(trigger.paths).match_files(paths))
    ):
        return verdict(f"no changed path fits {', '.join(trigger.paths)}")
    return verdict(f"{kind} {name} fits", matched=True)


def _any_fits(globs: Sequence[str], name: str) -> bool:
    wanted = [glob for glob in globs if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in globs if glob.startswith("!")]
    if any(_pattern(glob).fullmatch(name) for glob in unwanted):
        return False
    return not wanted or any(_pattern(glob).fullmatch(name) for glob in wanted)


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    """Return the glob as a pattern: `*` and `?` stay within a part of the name, `**` crosses slashes."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    special = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(special.get(part, re.escape(part)) for part in parts), re.DOTALL)
