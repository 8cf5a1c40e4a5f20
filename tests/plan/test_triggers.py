"""Triggers: how they are written, and which ref updates they match."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Invalid
from gateway.plan.globs import matches
from gateway.plan.triggers import (
    MoveFacts,
    PullRequestFacts,
    Run,
    Trigger,
    TriggerMatch,
    match,
    parse_trigger,
    read_triggers,
)
from providers.model import Action, RefKind

STEP = {"step": "train"}


def trigger(**fields: Any) -> Trigger:
    """Return a trigger for step train."""
    return read_triggers([{"name": "t", "run": STEP, **fields}])[0]


def matched_with(  # a push, with the facts that a test varies
    rule: Trigger,
    *,
    kind: RefKind = "branch",
    name: str = "main",
    action: Action = "update",
    paths: tuple[str, ...] = ("train.py",),
    paths_complete: bool = True,
    **more: Any,
) -> TriggerMatch:
    """Return whether a trigger matches a push with these facts."""
    return match(
        rule,
        MoveFacts(kind=kind, name=name, action=action, paths=paths, paths_complete=paths_complete, **more),
    )


def refusal(given_triggers: list[Any]) -> str:
    """Return why triggers are refused."""
    with pytest.raises(Invalid) as refused:
        read_triggers(given_triggers)
    return str(refused.value)


@pytest.mark.parametrize(
    ("fields", "on"),
    [
        ({}, ("push",)),
        ({"branches": ["main"]}, ("push",)),
        ({"tags": ["v*"]}, ("tag",)),
        ({"branches": ["main"], "tags": ["v*"]}, ("push", "tag")),
        ({"on": ["tag"]}, ("tag",)),
        ({"on": []}, ("push",)),
    ],
)
def test_the_default_of_on_follows_from_the_globs(fields: dict[str, Any], on: tuple[str, ...]) -> None:
    """Only if `on` is not given."""
    assert trigger(**fields).on == on


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        ([], "trigger number 1: has to be an object with fields"),
        ({"name": "t"}, "trigger t: run: is needed"),
        ({"run": STEP}, "trigger number 1: name: is needed"),
        ({"name": " ", "run": STEP}, "trigger  : name: is empty"),
        ({"name": "t", "run": {}}, "trigger t: run: name one step, one pipeline or one task"),
        (
            {"name": "t", "run": {"step": "a", "pipeline": "b"}},
            "trigger t: run: name one step, one pipeline or one task",
        ),
        ({"name": "t", "run": STEP, "steps": 1}, "trigger t: steps: there is no such field"),
        ({"name": "t", "rnu": STEP}, "trigger t: rnu: there is no such field; do you mean run?"),
        (
            {"name": "t", "run": {"setp": "train"}},
            "trigger t: run.setp: there is no such field; do you mean step?",
        ),
        (
            {"name": "t", "run": STEP, "on": ["issue"]},
            "trigger t: on.0: Input should be 'push', 'tag', 'pull_request' or 'merge_group'",
        ),
        (
            {"name": "t", "run": STEP, "policy": "newest"},
            "trigger t: policy: Input should be 'every' or 'latest'",
        ),
        (
            {"name": "t", "run": STEP, "forks": True},
            "trigger t: forks are given, but `on` does not name pull_request",
        ),
        (
            {"name": "t", "run": STEP, "lane": "HIGH"},
            "trigger t: lane: String should match pattern '^[a-z0-9-]{1,32}$'",
        ),
        (
            {"name": "t", "run": STEP, "on": ["push"], "tags": ["v*"]},
            "trigger t: tags are given, but `on` does not name tag",
        ),
        (
            {"name": "t", "run": STEP, "branches": ["refs/heads/x"]},
            "trigger t: branches.0: refs/heads/x has to be a short name, such as main or v1.0, without refs/",
        ),
        (
            {"name": "t", "run": STEP, "branches": ["[v]"]},
            (
                "trigger t: branches.0: [v] contains '[', which no branch or tag can contain;"
                " globs support only * ** ? and !"
            ),
        ),
        ({"name": "t", "run": STEP, "tags": ["!"]}, "trigger t: tags.0: a glob is empty"),
        ({"name": "t", "run": STEP, "paths": ["a\\"]}, "trigger t: paths.0: Invalid git pattern: 'a\\\\'"),
        (
            {"name": "t", "run": STEP, "paths": ["# src"]},
            "trigger t: paths.0: '# src' would be a comment in a .gitignore and matches no path",
        ),
        (
            {"name": "t", "run": STEP, "parameters": {"lr": {"a": 1}}},
            "trigger t: parameters.lr: a value has to be text, a number, true or false, or a list of these",
        ),
        (
            {"name": "t", "run": STEP, "parameters": {"lr": [1.0, float("inf")]}},
            "trigger t: parameters.lr: a number has to be finite, because JSON has no others",
        ),
        ({"name": "t", "run": STEP, "branches": "main"}, "trigger t: branches: has to be a list"),
        ({"name": "t", "run": STEP, "inputs": {"data": [1]}}, "trigger t: inputs.data.0: has to be text"),
        (
            {"name": "t", "run": {"pipeline": "p"}, "inputs": {"data": ["s3://x"]}},
            "trigger t: inputs and environment belong to a step; a pipeline takes only parameters",
        ),
    ],
)
def test_a_wrong_trigger_is_refused_by_name_and_field(one: Any, reason: str) -> None:
    """The sentence names the trigger and the field, and says what is wrong."""
    assert refusal([one]) == reason


def test_names_are_unique_and_few() -> None:
    """Two triggers of one name would share the ids of their requests."""
    one = {"name": "t", "run": STEP}
    assert refusal([one, one]) == "trigger t: there are two triggers of this name"
    many = [{"name": str(number), "run": STEP} for number in range(101)]
    assert refusal(many) == "a connection has at most 100 triggers"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", Trigger(name="train", run=Run(step="train"))),
        ("train@main", Trigger(name="train@main", branches=("main",), run=Run(step="train"))),
        (
            " train model @ main , !wip/** ",
            Trigger(
                name="train model @ main , !wip/**", branches=("main", "!wip/**"), run=Run(step="train model")
            ),
        ),
        ("train@tag:v*", Trigger(name="train@tag:v*", tags=("v*",), run=Run(step="train"))),
        (
            "test@pull_request:main",
            Trigger(
                name="test@pull_request:main",
                on=("pull_request",),
                branches=("main",),
                run=Run(step="test"),
            ),
        ),
        (
            "test@merge_group:main,release/*",
            Trigger(
                name="test@merge_group:main,release/*",
                on=("merge_group",),
                branches=("main", "release/*"),
                run=Run(step="test"),
            ),
        ),
        (
            "task:sweep@main",
            Trigger(name="task:sweep@main", branches=("main",), run=Run(task="sweep")),
        ),
        (
            "pipeline:nightly@main",
            Trigger(name="pipeline:nightly@main", branches=("main",), run=Run(pipeline="nightly")),
        ),
    ],
)
def test_the_short_form(text: str, expected: Trigger) -> None:
    """`STEP@BRANCHES` and its variants."""
    assert parse_trigger(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@main", "train@", "train@tag:", "train@merge_group:", "train@,", "train@a:b", "pipeline:@main"],
)
def test_a_short_form_with_a_part_missing_is_refused(text: str) -> None:
    """It never means "on every branch" by accident."""
    with pytest.raises(Invalid):
        parse_trigger(text)


def test_a_serialized_trigger_is_read_back() -> None:
    """The API stores triggers as JSON, which must lose nothing."""
    one = trigger(
        tags=["v*", "!v0*"], paths=["src/"], parameters={"a": [1, 2.5, True, "x"]}, inputs={"data": "s3://x"}
    )
    assert one.inputs == {"data": ["s3://x"]}
    assert read_triggers([one.model_dump(mode="json")]) == (one,)


@pytest.mark.parametrize(
    ("fields", "push", "reason"),
    [
        ({}, {"action": "delete"}, "the branch was deleted: nothing runs"),
        ({}, {"kind": "tag", "name": "v1"}, "the trigger runs only on push, and this is a tag"),
        ({"tags": ["v*"]}, {}, "the trigger runs only on tag, and this is a branch"),
        ({"branches": ["dev", "rel/*"]}, {}, "branch main does not match dev, rel/*"),
        ({"tags": ["v*"]}, {"kind": "tag", "name": "w1"}, "tag w1 does not match v*"),
        ({"paths": ["src/", "*.md"]}, {}, "no changed path matches src/, *.md"),
        ({"paths": ["*.py", "!train.py"]}, {}, "no changed path matches *.py, !train.py"),
        ({"paths": ["src/"]}, {"paths": ()}, "no changed path matches src/"),
    ],
)
def test_the_condition_that_failed_is_named(
    fields: dict[str, Any], push: dict[str, Any], reason: str
) -> None:
    """So that people can see why a push did not run."""
    assert matched_with(trigger(**fields), **push) == TriggerMatch(trigger="t", matched=False, reason=reason)


@pytest.mark.parametrize(
    ("fields", "push", "reason"),
    [
        ({}, {}, "branch main matches"),
        ({}, {"action": "create", "paths": ()}, "branch main matches"),
        ({"on": ["tag"]}, {"kind": "tag", "name": "any/thing"}, "tag any/thing matches"),
        ({"paths": ["*.py"]}, {}, "branch main matches, and so does the changed path train.py"),
        ({"paths": ["!docs/"]}, {}, "branch main matches, and so does the changed path train.py"),
        (
            {"paths": ["src/", "!src/docs/**"]},
            {"paths": ("src/docs/a", "src/b")},
            "branch main matches, and so does the changed path src/b",
        ),
        (
            {"paths": ["src/"]},
            {"paths_complete": False},
            "branch main matches; too many paths changed to compare them",
        ),
    ],
)
def test_why_a_push_matches_is_named_as_well(
    fields: dict[str, Any], push: dict[str, Any], reason: str
) -> None:
    """So that people can see why a push ran."""
    assert matched_with(trigger(**fields), **push) == TriggerMatch(trigger="t", matched=True, reason=reason)


@pytest.mark.parametrize(
    ("globs", "matching", "other"),
    [
        (["main"], ["main"], ["Main", "main2", "a/main", ""]),
        (["*"], ["main", "a.b"], ["a/b"]),
        (["**"], ["main", "a/b/c"], []),
        (["release/*"], ["release/1"], ["release/1/2", "release"]),
        (["release/**"], ["release/1", "release/1/2"], ["release"]),
        (["**/fix"], ["a/fix", "a/b/fix"], ["fix"]),
        (["v?.*"], ["v1.0"], ["v10.0", "v/.0"]),
        (["*a*/b**c"], ["xax/b1/2c", "a/bc"], ["x/bc", "a/x/bc"]),
        (["a.c"], ["a.c"], ["abc"]),
        (["!wip/**"], ["main"], ["wip/x", "wip/"]),
        (["r/*", "!r/old"], ["r/new"], ["r/old", "main"]),
        (["!r/old", "r/*"], ["r/new"], ["r/old"]),
    ],
)
def test_globs(globs: list[str], matching: list[str], other: list[str]) -> None:
    """`*` stays within a part of the name, `**` doesn't, `!` excludes at any position."""
    assert [name for name in matching + other if matches(globs, name)] == matching


NAMES = st.text(alphabet="ab/.", min_size=1, max_size=12)


@given(NAMES)
def test_a_name_matches_itself_and_everything_but_not_its_exclusion(name: str) -> None:
    """A glob without wildcards is the name."""
    assert matches([name], name)
    assert matches(["**"], name)
    assert matches(["*"], name) == ("/" not in name)
    assert not matches([f"!{name}"], name)
    assert not matches(["**", f"!{name}"], name)


@given(name=NAMES, start=st.integers(0, 12), end=st.integers(0, 12))
def test_a_piece_can_be_left_to_a_wildcard(name: str, start: int, end: int) -> None:
    """`**` stands for any piece of a name, `*` for any without a slash."""
    piece = name[start:end]
    if start <= end:
        assert matches([f"{name[:start]}**{name[end:]}"], name)
        if "/" not in piece:
            assert matches([f"{name[:start]}*{name[end:]}"], name)


def test_no_glob_takes_forever() -> None:
    """Backtracking would take exponential time."""
    assert not matches(["*a" * 100 + "b"], "a" * 1000)
    assert not matches(["**a" * 80 + "b"], "a/" * 500)


@given(st.text(max_size=40))
def test_any_text_is_a_trigger_or_refused(text: str) -> None:
    """A short form has no other result, and its trigger can be serialized and read back."""
    try:
        made = parse_trigger(text)
    except Invalid:
        return
    assert read_triggers([made.model_dump(mode="json")]) == (made,)


@pytest.mark.parametrize(
    ("message", "marker"),
    [
        ("Fix [skip ci]", "[skip ci]"),
        ("[CI skip] Fix", "[CI skip]"),
        ("Fix\n\nAll of it.\n\nSigned-off-by: Ada\nskip-checks: true\n", "skip-checks: true"),
        ("Fix\n\nskip-checks:true", "skip-checks:true"),
        ("Fix\r\n\r\nSkip-Checks : true\r\n", "Skip-Checks : true"),
        ("Fix\n\nskip-checks: true\n\nand more", None),
        ("Fix\nskip-checks: true", None),
        ("skip-checks: true", None),
        ("Fix skip ci", None),
    ],
)
def test_a_commit_message_can_prevent_runs(message: str, marker: str | None) -> None:
    """By a marker anywhere, or by a trailer; the reason names it."""
    verdict = matched_with(trigger(), message=message)
    expected = "branch main matches" if marker is None else f"the commit's message contains {marker}"
    assert (verdict.matched, verdict.reason) == (marker is None, expected)


@pytest.mark.parametrize(
    ("fields", "author", "message", "matched"),
    [
        ({"authors": ["*@example.org>"]}, "Ada <ada@Example.org>", "", True),
        ({"authors": ["*@example.org>"]}, "Ada <ada@example.com>", "", False),
        ({"authors": ["!*bot*"]}, "renovate[bot] <b@example.org>", "", False),
        ({"authors": ["renovate[bot] *"]}, "renovate[bot] <b@example.org>", "", True),
        ({"authors": ["renovate[bot] *"]}, "renovateb <b@example.org>", "", False),
        ({"authors": ["!*bot*"]}, "Ada <ada@example.org>", "", True),
        ({"messages": ["train:*"]}, "", "Train: larger batches\n\nmore", True),
        ({"messages": ["train:*"]}, "", "docs: a typo", False),
        ({"messages": ["*", "!wip*"]}, "", "WIP", False),
    ],
)
def test_who_wrote_what_can_be_a_condition(
    fields: dict[str, Any], author: str, message: str, *, matched: bool
) -> None:
    """By case-insensitive globs for the whole text."""
    assert matched_with(trigger(**fields), author=author, message=message).matched == matched


@pytest.mark.parametrize(
    ("fields", "from_fork", "reason"),
    [
        ({"on": ["push"]}, False, "the trigger runs only on push, and this is a pull request"),
        ({"on": ["pull_request"]}, False, "target branch main matches"),
        ({"on": ["pull_request"], "branches": ["dev"]}, False, "target branch main does not match dev"),
        ({"on": ["pull_request"], "forks": True}, True, "target branch main matches"),
        (
            {"on": ["pull_request"]},
            None,
            "the pull request is, or may be, from a fork, and the trigger does not set `forks`",
        ),
    ],
)
def test_pull_requests_are_matched_by_their_target(
    fields: dict[str, Any], *, from_fork: bool | None, reason: str
) -> None:
    """Pull requests from forks, whose authors may not push, run only with `forks`."""
    facts = PullRequestFacts(number="7", source="topic", target="main", from_fork=from_fork)
    assert matched_with(trigger(**fields), kind="pull_request", name="7", pull_request=facts).reason == reason


QUEUED = "gh-readonly-queue/release/1.x/pr-7-" + "a" * 40


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"on": ["merge_group"]}, "merge group for branch release/1.x matches"),
        ({"on": ["merge_group"], "branches": ["release/*"]}, "merge group for branch release/1.x matches"),
        (
            {"on": ["merge_group"], "branches": ["main"]},
            "merge group for branch release/1.x does not match main",
        ),
        (
            {"on": ["push", "pull_request"]},
            "the trigger runs only on push and pull_request, and this is a merge group",
        ),
    ],
)
def test_merge_groups_are_matched_by_their_target(fields: dict[str, Any], reason: str) -> None:
    """The name of the queue's own branch contains it."""
    assert matched_with(trigger(**fields), kind="merge_group", name=QUEUED).reason == reason


@pytest.mark.parametrize(
    ("fields", "matched"),
    [
        ({}, False),
        ({"branches": ["**"]}, False),
        ({"branches": ["!main"]}, False),
        ({"on": ["push", "merge_group"]}, False),
        ({"branches": ["gh-readonly-queue/**"]}, True),
    ],
)
def test_a_push_to_the_merge_queue_runs_nothing_unless_it_is_named(
    fields: dict[str, Any], *, matched: bool
) -> None:
    """Each group's branch is pushed too: with the event, it would run twice, mostly unintentionally."""
    verdict = matched_with(trigger(**fields), name=QUEUED, action="create")
    assert verdict.matched == matched
    assert matched or "is a branch of the merge queue: use `on: [merge_group]`" in verdict.reason
