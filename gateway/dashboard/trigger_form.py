"""The form of a trigger, and what a dry run with it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.api.dry_run import PlayedPage, PlayedUpdate
from gateway.api.schemas import NewTrigger
from gateway.dashboard.api_forms import Filled, Form, FormField

_KINDS = {"step": "step", "pipeline": "pipeline", "task": "task"}
_PARAMETERS = (
    "Values that override the defaults of the step, pipeline or task, one `name: value` a line. A list is"
    " written as `[1, 2]`, and text that looks like a number or a list in quotes."
)
_INPUTS = (
    "The URLs of inputs that override the step's defaults, one `name: URL` a line; several URLs as"
    ' `name: ["URL", "URL"]`.'
)
_FORM = Form(
    model=NewTrigger,
    fields=(
        FormField(name="name", label="Name", required=True, example="train", empty="keep"),
        FormField(
            name="run_kind",
            label="Run a",
            kind="choice",
            choices=_KINDS,
            help="A step, a pipeline or a task of the commit's valohai.yaml.",
        ),
        FormField(
            name="run_name",
            label="Its name",
            required=True,
            example="train",
            help="As in the commit's valohai.yaml.",
        ),
        FormField(name="branches", label="Branches", kind="lines", example="main\nrelease/*"),
        FormField(name="tags", label="Tags", kind="lines", example="v*"),
        FormField(
            name="on",
            label="Events",
            kind="choices",
            choices={
                "push": "push to a branch",
                "tag": "tag",
                "pull_request": "pull request",
                "merge_group": "merge group",
            },
        ),
        FormField(name="forks", label="Run pull requests from forks too", kind="check"),
        FormField(name="paths", label="Changed paths", kind="lines", example="train/\n*.py"),
        FormField(name="authors", label="Authors", kind="lines", example="!*[bot]*"),
        FormField(name="messages", label="Messages", kind="lines", example="!*wip*"),
        FormField(
            name="parameters", label="Parameters", kind="mapping", example="epochs: 10", help=_PARAMETERS
        ),
        FormField(
            name="inputs",
            label="Inputs",
            kind="mapping",
            example="dataset: s3://bucket/train.csv",
            help=_INPUTS,
        ),
        FormField(name="environment", label="Environment"),
        FormField(name="required", label="Required at the git server", kind="check"),
        FormField(
            name="policy",
            label="Pushes in quick succession",
            kind="choice",
            choices={"every": "run every commit", "latest": "run only the latest"},
        ),
        FormField(name="lane", label="Priority lane"),
        FormField(name="lost_after_hours", label="Lost after so many hours"),
    ),
    places={"run": "run_name"},
    items="triggers",
)


def trigger_form(values: Mapping[str, Sequence[str]]) -> Filled:
    """Return the form as it was sent."""
    return _FORM.filled(values)


def new_trigger_form() -> Filled:
    """Return the form of a new trigger, for pushes to main."""
    return _FORM.of({"run_kind": "step", "branches": ["main"], "policy": "every"})


def form_of_trigger(trigger: Mapping[str, Any]) -> Filled:
    """Return the form of a trigger as the API shows it."""
    [(kind, name)] = trigger["run"].items()
    return _FORM.of({**trigger, "run_kind": kind, "run_name": name})


def trigger_body(form: Filled) -> dict[str, Any]:
    """Return the trigger that was entered, and add its problems to the form."""
    body = form.body()
    kind, name = body.pop("run_kind", None), body.pop("run_name", None)
    body["run"] = {str(kind): name or ""}
    form.check(body)
    return body


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunResult:
    """The past ref updates for which a trigger would have run, and the others with the reason.

    `failures` would have matched without a request, `unplayed` cannot be simulated. `more` says whether older
    deliveries exist.
    """

    runs: list[tuple[PlayedUpdate, str]] = field(default_factory=list)
    failures: list[tuple[PlayedUpdate, str]] = field(default_factory=list)
    others: list[tuple[PlayedUpdate, str]] = field(default_factory=list)
    unplayed: list[tuple[PlayedUpdate, str]] = field(default_factory=list)
    more: bool = False

    @property
    def count(self) -> int:
        """The number of ref updates."""
        return len(self.runs) + len(self.failures) + len(self.others) + len(self.unplayed)

    @classmethod
    def of(cls, page: PlayedPage, trigger: str) -> "DryRunResult":
        """Sort the ref updates of a dry run by the verdict of a trigger."""
        found = cls(more=page.next is not None)
        for update in page.items:
            verdict = next((one for one in update.verdicts if one.trigger == trigger), None)
            if update.unplayed is not None:
                found.unplayed.append((update, update.unplayed))
            elif verdict is None:
                found.others.append((update, "the ref was deleted: nothing runs"))
            elif not verdict.matched:
                found.others.append((update, verdict.reason))
            elif verdict.failure is not None:
                found.failures.append((update, verdict.failure))
            else:
                found.runs.append((update, verdict.reason))
        return found
