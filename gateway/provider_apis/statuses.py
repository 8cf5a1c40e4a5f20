"""What all providers' status APIs have in common: a verdict on a commit, and how it is set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from gateway.provider_apis.operation import Operation
from gateway.provider_apis.webhooks import Place

StatusState = Literal[
    "waiting", "running", "succeeded", "failed", "error", "superseded", "cancelled", "lost", "skipped"
]
"""`error`: no runner ever executed it, because it could not be planned, published or accepted; `lost`: its
runner went silent; `skipped`: the push needs no execution."""

StatusMemory: TypeAlias = Mapping[str, Any]
"""What a provider's module needs to know of its last write, as JSON values; empty before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A message at a line of a file; lines count from 1."""

    path: str
    line: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatus:
    """A verdict on a commit, by the name of its `context`, such as pushgate/train.

    `description` is one line of any length, and `summary` Markdown: each module shortens them to what its
    provider takes. `url` is a page for people. `ref` is the full name of the branch or tag; of a pull
    request, whose number is `pull_request`, that of its source branch. `execution` is the id of the execution
    request, None if there is none. `annotations` say what is wrong in files of the commit.
    """

    commit: str
    context: str
    state: StatusState
    description: str
    url: str
    ref: str
    pull_request: int | None = None
    execution: str | None = None
    summary: str | None = None
    annotations: tuple[Annotation, ...] = ()


class StatusApi(Protocol):
    """The functions of a provider's module for statuses. Every function is pure."""

    STATES: Mapping[StatusState, str]
    """The provider's word for each state. A change between states with one word is not sent."""

    STATUS_RIGHT: str
    """The right that the identity needs, in the provider's words."""

    def set_status(self, place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
        """Set a status, and return what the next write of this context on this commit must know.

        It may repeat what a process wrote that died before it could record it. Raise `ApiRefused` if no
        retry can succeed.
        """


def shortened(text: str, most: int) -> str:
    """Return a text in one line of at most `most` characters, without those that control or reorder text."""
    line = "".join(char for char in " ".join(text.split()) if char.isprintable())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
