"""The rules of a source: which of its repositories are connected, and how. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.errors import Fault, Invalid
from gateway.plan.globs import matches
from gateway.plan.triggers import Glob, Trigger, read_triggers
from gateway.text.validation import faults

_MAX_RULES = 100
# What a template of a project may contain, beside text.
_FIELDS = ("{name}", "{path}")


def _path_inside(path: str) -> str:
    """Refuse a path that git would read as a folder, as outside the repository, or as a pathspec."""
    if {"", ".", ".."} & set(path.split("/")) or path.startswith(":") or not path.isprintable():
        raise ValueError("it must be a path inside the repository, such as valohai.yaml or ml/valohai.yaml")
    return path


def _template(given: str) -> str:
    rest = given
    for field in _FIELDS:
        rest = rest.replace(field, "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"{given!r} may contain {' and '.join(_FIELDS)}, and no other braces")
    return given


YamlPath = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_path_inside)]
RepositoryGlob = Annotated[str, StringConstraints(min_length=1, max_length=250, pattern=r"^!?[^!\s]+$")]
Template = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$"),
    AfterValidator(_template),
]


class Rule(BaseModel):
    """A rule: the repositories that match are connected with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Annotated[tuple[RepositoryGlob, ...], Field(max_length=100)] = Field(
        default=(),
        description="globs of paths below the organisation or group, such as `ml-*` or `research/**`; those"
        " that begin with ! exclude. By default all repositories match",
    )
    manifest: bool = Field(
        default=False,
        description="whether only repositories count that have the manifest on their default branch; the"
        " source then needs an identity, which looks for it",
    )
    project: Template = Field(
        default="{name}",
        description="the platform's project; `{name}` is the repository's name, `{path}` its path below the"
        " organisation or group, with - for /",
    )
    triggers: tuple[Trigger, ...] = Field(
        default=(), description="the triggers of each connection: which ref updates run what"
    )
    yaml_path: YamlPath = Field(default="valohai.yaml", description="the manifest's path in the repositories")
    follows: Annotated[tuple[Glob, ...], Field(max_length=100)] = Field(
        default=(), description="globs of branches: nothing runs for other branches"
    )

    def project_of(self, path: str) -> str:
        """Return the project of the repository at a path below the owner."""
        name = path.rpartition("/")[2]
        return self.project.replace("{name}", name).replace("{path}", path.replace("/", "-"))


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about a repository: the rule that connects it, or the reason why none does."""

    rule: Rule | None
    reason: str | None = None
    lacks_manifest: bool = False


def read_rules(given: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Return the rules. Raise `Invalid` with all faults, each of which names the wrong field."""
    if len(given) > _MAX_RULES:
        raise Invalid.of([Fault(f"rules: a source has at most {_MAX_RULES}", ("rules",))])
    rules: list[Rule] = []
    found: list[Fault] = []
    for number, one in enumerate(given, start=1):
        wrong: Sequence[Fault] = ()
        try:
            rules.append(Rule.model_validate(one))
            read_triggers(rules[-1].triggers)
        except ValidationError as error:
            wrong = faults(error, Rule)
        except Invalid as error:
            wrong = error.faults
        found += [Fault(f"rule {number}: {each.detail}", ("rules", number - 1, *each.path)) for each in wrong]
    if found:
        raise Invalid.of(found)
    return tuple(rules)


def candidates(rules: Iterable[Rule], path: str) -> list[Rule]:
    """Return the rules whose globs match a path below the owner, in order; letters of either case match."""
    return [rule for rule in rules if matches([glob.lower() for glob in rule.match], path.lower())]


def manifests_to_find(rules: Iterable[Rule], path: str) -> list[str]:
    """Return the paths of the manifests whose existence decides about the repository at a path."""
    wanted: list[str] = []
    for rule in candidates(rules, path):
        if not rule.manifest:
            break
        wanted.append(rule.yaml_path)
    return list(dict.fromkeys(wanted))


def decide(rules: Sequence[Rule], path: str, *, manifests: Mapping[str, bool]) -> Decision:
    """Return what the rules say about the repository at a path below the owner; the first match counts.

    `manifests` says, for the paths of `manifests_to_find`, whether the file exists.
    """
    matching = candidates(rules, path)
    if not matching:
        return Decision(None, f"no rule matches {path}" if rules else "the source has no rules")
    for rule in matching:
        if not rule.manifest or manifests[rule.yaml_path]:
            return Decision(rule)
    missing = " and no ".join(dict.fromkeys(rule.yaml_path for rule in matching))
    return Decision(None, f"{path} has no {missing} on its default branch", lacks_manifest=True)
