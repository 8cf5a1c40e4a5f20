"""Payloads that are not what the provider documents: every field gone, null, or of another type."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from providers import PROVIDERS
from providers.errors import Malformed
from providers.model import Actor, Event, RefUpdate, Repository, VerifiedRequest
from providers.normalize import is_from_fork
from testing.corpus import Case, as_json, cases

GONE = object()
# JSON as text, since Python's own encoder would not write some of it.
STRANGE = [
    *(
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e999",
        "NaN",
        '""',
        '"x"',
        '"0"',
        "[]",
        "{}",
        "[null]",
        '[{"id":1}]',
    ),
    *('{"href":"x"}', '"\\u0000"', '"\\ud800"', '"a\\u2028b"', "9" * 5_000, "1" + "0" * 4_000, "[" * 300),
    *('"' + "a" * 5_000 + '"', '"' + "0" * 40 + '"', '"--upload-pack=x"', '"javascript:alert(1)"'),
]

# Which ref has moved from where to where, and by which event: a push needs only this.
_OWNED = r"ref|before|after"
_BITBUCKET_REF = r"(\.(old|new)(\.(type|name|target(\.hash)?))?)?"
_SERVER_CHANGE = r"(\.(ref(\.id)?|fromHash|toHash))?"
ESSENTIAL = {
    # Only the action distinguishes a new merge group from a removed one.
    "github": _OWNED + r"|action|merge_group(\.(head_ref|head_sha|base_sha))?",
    "gitlab": _OWNED + r"|event_name|changes(\.0(\.\w+)?)?",
    "bitbucket": rf"push(\.changes(\.0{_BITBUCKET_REF})?)?",
    "bitbucket-server": rf"changes(\.0{_SERVER_CHANGE})?",
    "azure-devops": r"eventType|resource(\.refUpdates(\.0(\.\w+)?)?)?",
    "gitea": _OWNED + "|ref_type|sha",
    "forgejo": _OWNED + "|ref_type|sha",
    "gogs": _OWNED + "|ref_type|sha",
    "generic": r"updates(\.0(\.\w+)?)?",
}

CASES = [case for case in cases() if case.body.startswith(b"{")]
PUSHES = [case for case in CASES if case.name == "push"]
FEW = [GONE, "null", "[7]", '{"id":{}}']
MOVES = [case for case in CASES if case.expected.get("updates")]
# All values except invalid JSON, and JSON deeper or longer than any parser reads.
ODD = [GONE, "7", "[7]", '{"id":{}}', *(one for one in STRANGE if len(one) < 4_000 and one != "[" * 300)]


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything in a document; of a list only the first item."""
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value[:1]))
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


def changed(document: Any, path: tuple[str | int, ...], new: Any) -> str:
    """Return the document as JSON with the JSON text `new` at the path, or without anything there."""
    [(_, text)] = variants(document, path, [new])
    return text


def variants(document: Any, path: tuple[str | int, ...], values: list[Any]) -> Iterator[tuple[Any, str]]:
    """Yield each value with the document as JSON that has this JSON text at the path, or nothing there."""

    def copy(value: Any, rest: tuple[str | int, ...], *, gone: bool) -> Any:
        if not rest:
            return "@"
        if isinstance(value, list):
            return [
                copy(one, rest[1:], gone=gone) if index == rest[0] else one for index, one in enumerate(value)
            ]
        kept = {key: one for key, one in value.items() if key != rest[0] or len(rest) > 1 or not gone}
        return {key: copy(one, rest[1:], gone=gone) if key == rest[0] else one for key, one in kept.items()}

    # Written once for all values: most of the time of a test would go into writing the same document again.
    before, _, after = json.dumps(copy(document, path, gone=False), ensure_ascii=False).partition('"@"')
    for new in values:
        if new is GONE:
            yield new, json.dumps(copy(document, path, gone=True), ensure_ascii=False)
        else:
            yield new, f"{before}{new}{after}"


def parsed(case: Case, body: str, delivery: VerifiedRequest | None = None) -> Event | None:
    """Return the parsed event, None if the body is malformed; another exception is a failure."""
    verified = replace(delivery or case.verify(), content=body.encode())
    try:
        event = case.provider.parse(verified)
    except Malformed:
        return None
    assert isinstance(event, Event)
    return event


def ids(updates: tuple[RefUpdate, ...]) -> list[tuple[str, str | None, str | None]]:
    """Return the fields that a worker uses."""
    return [(update.ref, update.before, update.after) for update in updates]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_field_may_be_gone_or_of_another_type(case: Case) -> None:
    """It gives an Event that every database can hold, or Malformed, and never another exception."""
    document, delivery, seen = json.loads(case.body), case.verify(), set[Event]()
    for path in paths(document):
        for _, body in variants(document, path, [GONE, *STRANGE]):
            event = parsed(case, body, delivery)
            if event is not None and event not in seen:
                seen.add(event)
                assert "\\u0000" not in json.dumps(as_json(event))
                assert "javascript:" not in ((event.repository and event.repository.web_url) or "")


@pytest.mark.parametrize("case", MOVES, ids=str)
def test_a_descriptive_field_never_costs_a_push(case: Case) -> None:
    """Links, people, messages, names, the repository itself: if missing or odd, the refs are the same."""
    document, delivery = json.loads(case.body), case.verify()
    expected = ids(case.parse().updates)
    descriptive = [
        path
        for path in paths(document)
        if not re.fullmatch(ESSENTIAL[case.provider_name], ".".join(map(str, path)))
    ]
    assert len(descriptive) >= (0 if case.provider_name == "generic" else 10)
    for path in descriptive:
        for new, body in variants(document, path, ODD if case in PUSHES else FEW):
            event = parsed(case, body, delivery)
            assert event is not None, (path, new)
            assert ids(event.updates) == expected, (path, new)


@pytest.mark.parametrize("case", MOVES, ids=str)
def test_refs_and_ids_alone_carry_a_push(case: Case) -> None:
    """A body with nothing else gives the same moves."""
    document = json.loads(case.body)
    for path in sorted(paths(document), key=len, reverse=True):
        if not re.fullmatch(ESSENTIAL[case.provider_name], ".".join(map(str, path))) and 0 not in path:
            document = json.loads(changed(document, path, GONE))
    event = parsed(case, json.dumps(document))
    assert event is not None
    assert ids(event.updates) == ids(case.parse().updates)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.expected.get("pull_request", {}).get("action")], ids=str
)
def test_a_pull_request_of_an_unnamed_repository_may_be_from_a_fork(case: Case) -> None:
    """If one of the two repositories is not named, they may differ."""
    document = json.loads(case.body)
    ours = {
        "gitlab": ["project", "project_id", "object_attributes.target_project_id"],
        "azure-devops": ["resource.repository"],
        "bitbucket-server": ["pullRequest.toRef.repository"],
    }.get(case.provider_name, ["repository"])
    for path in ours:
        document = json.loads(changed(document, tuple(path.split(".")), GONE))
    event = parsed(case, json.dumps(document))
    assert event is not None
    assert event.pull_request is not None
    known = case.expected["pull_request"]
    assert (event.pull_request.number, event.pull_request.source) == (known["number"], known["source"])
    if case.provider_name != "azure-devops":  # whose own field says that it is from a fork
        assert event.pull_request.from_fork is not False


@pytest.mark.parametrize("case", [case for case in PUSHES if case.provider_name != "generic"], ids=str)
@pytest.mark.parametrize(
    "new", [GONE, "null", "[]", '"acme/digits"', "{}"], ids=["gone", "null", "list", "text", "empty"]
)
def test_a_push_that_names_no_repository_is_carried(case: Case, new: Any) -> None:
    """`"repository": null` was a crash in Argo CD (CVE-2025-59537); here it counts as the connection's."""
    document = json.loads(case.body)
    for path in (("project",), ("project_id",), ("repository",), ("resource", "repository")):
        document = json.loads(changed(document, path, new)) if path in paths(document) else document
    event = parsed(case, json.dumps(document))
    assert event is not None
    assert ids(event.updates) == ids(case.parse().updates)
    assert event.repository is None or new == '"acme/digits"'


@pytest.mark.parametrize("case", PUSHES, ids=str)
@pytest.mark.parametrize(
    "ref",
    [
        "",
        "main",
        "--upload-pack=touch /tmp/x",
        "-c",
        "refs/heads/../x",
        "refs/heads/..",
        "refs/heads/x.lock",
        "refs/heads/.x",
        "refs/heads/a//b",
        "refs/heads/a b",
        "refs/heads/a~1",
        "refs/heads/a^{commit}",
        "refs/heads/a:b",
        "refs/heads/a?*[",
        "refs/heads/a@{1}",
        "refs/heads/a\\b",
        "refs/heads/a\u0000b",
        "refs/heads/a\nb",
        "refs/heads/" + "a" * 5_000,
        "refs/heads/",
        "+refs/heads/main:refs/heads/main",
    ],
    ids=lambda ref: ascii(ref)[:30],
)
def test_a_ref_that_git_would_not_take_is_malformed(case: Case, ref: str) -> None:
    """No option, path, refspec or control character is ever accepted as a ref."""
    where: dict[str, tuple[str | int, ...]] = {
        "bitbucket": ("push", "changes", 0, "new", "name"),
        "bitbucket-server": ("changes", 0, "ref", "id"),
        "azure-devops": ("resource", "refUpdates", 0, "name"),
        "generic": ("updates", 0, "ref"),
    }
    text = json.dumps(ref.removeprefix("refs/heads/") if case.provider_name == "bitbucket" else ref)
    event = parsed(case, changed(json.loads(case.body), where.get(case.provider_name, ("ref",)), text))
    if case.provider_name == "bitbucket" and event is not None:
        # Names there are short: one that looks like an option is just a branch name.
        assert [update.ref for update in event.updates] == ["refs/heads/" + ref.removeprefix("refs/heads/")]
    else:
        assert event is None


@pytest.mark.parametrize(
    "object_id", ["HEAD", "a" * 39, "a" * 41, "g" * 40, "a" * 63, "", "-" * 40, " " + "a" * 39]
)
def test_what_is_no_object_id_is_malformed(object_id: str) -> None:
    """Only 40 or 64 hex digits are valid: the id becomes an argument of git."""
    case = next(case for case in PUSHES if case.provider_name == "github")
    assert parsed(case, changed(json.loads(case.body), ("after",), json.dumps(object_id))) is None


@pytest.mark.parametrize(
    "ref", ["refs/heads", "refs/tags", "refs/notes/commits", "refs/pull/7/head", "refs/stash"]
)
@pytest.mark.parametrize("case", [case for case in PUSHES if case.provider_name == "github"], ids=str)
def test_a_ref_that_is_neither_a_branch_nor_a_tag_moves_nothing(case: Case, ref: str) -> None:
    """Git accepts its name, so the delivery is well-formed, with a reason why nothing runs."""
    event = parsed(case, changed(json.loads(case.body), ("ref",), json.dumps(ref)))
    assert event is not None
    assert (event.updates, event.note) == ((), f"{ref} is neither a branch nor a tag")


def test_object_ids_are_returned_in_lower_case() -> None:
    """So that the same commit is the same everywhere."""
    case = next(case for case in PUSHES if case.provider_name == "github")
    event = parsed(case, changed(json.loads(case.body), ("after",), '"' + "AB" * 20 + '"'))
    assert event is not None
    assert event.updates[0].after == "ab" * 20


MANY = {
    "bitbucket": ("push", "changes"),
    "bitbucket-server": ("changes",),
    "azure-devops": ("resource", "refUpdates"),
}


@pytest.mark.parametrize("name", ["bitbucket", "bitbucket-server", "azure-devops", "generic"])
def test_each_of_5000_changes_in_one_delivery_counts(name: str) -> None:
    """Other receivers read only the first change of a push."""
    case = next(case for case in PUSHES if case.provider_name == name)
    document = json.loads(case.body)
    listed = document
    for key in MANY.get(name, ("updates",)):
        listed = listed[key]
    text = json.dumps(listed[0])
    listed[:] = [json.loads(text.replace("main", f"branch-{number}")) for number in range(5_000)]
    event = parsed(case, json.dumps(document))
    assert event is not None
    assert [update.name for update in event.updates] == [f"branch-{number}" for number in range(5_000)]


@pytest.mark.parametrize("name", ["bitbucket", "bitbucket-server", "azure-devops", "generic"])
def test_a_megabyte_of_wrong_changes_is_one_error(name: str) -> None:
    """Half a million errors would take most of a second to collect."""
    case = next(case for case in PUSHES if case.provider_name == name)
    path = MANY.get(name, ("updates",))
    with pytest.raises(Malformed) as raised:
        case.parse(changed(json.loads(case.body), path, "[" + "1," * 500_000 + "1]").encode())
    assert ".0: " in str(raised.value)


def test_github_lists_at_most_2048_commits() -> None:
    """It does not send the total: at the limit the list counts as cut."""
    case = next(case for case in PUSHES if case.provider_name == "github")
    document = json.loads(case.body)
    for number, truncated in ((2047, False), (2048, True)):
        document["commits"] = [{"id": f"{index:040x}"} for index in range(number)]
        event = parsed(case, json.dumps(document))
        assert event is not None
        assert [(len(update.commits), update.truncated) for update in event.updates] == [(number, truncated)]


def test_a_count_that_no_database_holds_is_left_out() -> None:
    """`total_commits_count` is decoration, and a column of 32 bits."""
    case = next(case for case in PUSHES if case.provider_name == "gitlab")
    for new in ("-1", str(2**31), "9" * 4_000):
        event = parsed(case, changed(json.loads(case.body), ("total_commits_count",), new))
        assert event is not None
        assert [(update.total, update.truncated) for update in event.updates] == [(None, None)]


def by_name(name: str) -> Case:
    """Return the case with this name, such as gitea/push."""
    return next(case for case in CASES if str(case) == name)


@pytest.mark.parametrize("name", ["gitea", "forgejo"])
def test_giteas_create_reports_the_same_as_the_push_beside_it(name: str) -> None:
    """So a new branch is one update, in whichever order the two arrive."""
    create, push = by_name(f"{name}/new-branch-companion"), by_name(f"{name}/new-branch")
    assert ids(create.parse().updates) == ids(push.parse().updates)


@pytest.mark.parametrize("name", ["github/create", "github/delete", "gogs/new-branch-companion"])
def test_a_companion_that_reports_less_than_the_push_counts_for_nothing(name: str) -> None:
    """Otherwise one change would be two updates."""
    event = by_name(name).parse()
    assert (event.kind, event.updates) == ("other", ())
    assert "beside" in event.note


@pytest.mark.parametrize("name", ["gitea/deleted-branch", "gogs/deleted-branch", "gogs/deleted-tag"])
def test_a_delete_without_any_id_is_still_a_delete(name: str) -> None:
    """Gitea and Gogs do not say where a deleted branch stood."""
    update = by_name(name).parse().updates[0]
    assert (update.action, update.before, update.after) == ("delete", None, None)


def test_every_provider_is_known_here() -> None:
    """A tenth provider has to list its essential fields here."""
    assert set(ESSENTIAL) == set(PROVIDERS)


@pytest.mark.parametrize("header", ["", "Repository Update Hook", "System Hook", "A Hook of the Future"])
@pytest.mark.parametrize(
    "name",
    ["system-push", "system-repository-update-many-refs", "system-merge-request", "system-project-rename"],
)
def test_where_gitlabs_header_is_unknown_the_body_says_what_it_is(header: str, name: str) -> None:
    """The header of older servers names the event of a system hook, in varying words."""
    case = by_name(f"gitlab/{name}")
    delivery = VerifiedRequest(event=header, id=None, secret=0, content=case.body)
    assert as_json(case.provider.parse(delivery)) == case.expected


@pytest.mark.parametrize(
    ("person", "expected"),
    [
        ({"displayName": "Ada", "uniqueName": "ada@example.com"}, Actor(name="Ada", email="ada@example.com")),
        ({"displayName": "Ada", "uniqueName": "ACME\\ada"}, Actor(name="Ada")),
        ({"uniqueName": "ACME\\ada"}, Actor(name="ACME\\ada")),
        (
            {"displayName": "", "uniqueName": "ada@example.com"},
            Actor(name="ada@example.com", email="ada@example.com"),
        ),
        ({"displayName": "Ada"}, Actor(name="Ada")),
        ({}, None),
    ],
)
def test_azure_names_the_pusher_in_either_of_two_fields(person: Any, expected: Actor | None) -> None:
    """The display name is what people know; a service account may have only the other one."""
    case = by_name("azure-devops/push")
    event = parsed(case, changed(json.loads(case.body), ("resource", "pushedBy"), json.dumps(person)))
    assert event is not None
    assert event.pusher == expected


@pytest.mark.parametrize(
    "name", ["merge-request-opened", "merge-request-updated-from-fork", "system-merge-request"]
)
def test_an_older_gitlabs_merge_request_names_its_project_by_the_target(name: str) -> None:
    """`project` has no id there, but a fork is still recognized."""
    case = by_name(f"gitlab/{name}")
    document = json.loads(case.body)
    document["object_attributes"]["target_project_id"] = document["project"].pop("id")
    event = parsed(case, json.dumps(document))
    assert event == case.parse()


@pytest.mark.parametrize(
    ("path", "new", "expected"),
    [
        ("merge_group.base_sha", GONE, [("create", None, "2e7d2c03")]),
        ("merge_group.base_sha", '"x"', [("create", None, "2e7d2c03")]),
        ("merge_group.head_sha", '"' + "0" * 40 + '"', []),
        ("merge_group.head_sha", GONE, None),
        ("merge_group.head_ref", '"refs/heads/main/pr-7"', None),
        ("merge_group.head_ref", '"refs/heads/gh-readonly-queue/pr-7"', None),
        ("merge_group.base_ref", GONE, [("update", "ca978112", "2e7d2c03")]),
    ],
)
def test_a_merge_group_needs_its_branch_and_its_head(path: str, new: Any, expected: Any) -> None:
    """Its base only determines the changed paths."""
    case = by_name("github/merge-group-checks-requested")
    event = parsed(case, changed(json.loads(case.body), tuple(path.split(".")), new))
    moves = event and [
        (one.action, one.before and one.before[:8], (one.after or "")[:8]) for one in event.updates
    ]
    assert moves == expected


def test_a_repository_that_is_named_without_an_id_may_be_the_source() -> None:
    """Then it is unknown whether a pull request is from a fork."""
    ours = Repository(full_name="acme/digits")
    assert is_from_fork(source_id="1", ours=ours) is None
    assert is_from_fork(source_id=None, ours=replace(ours, id="1")) is None
    assert is_from_fork(source_id="1", ours=replace(ours, id="1")) is False
    assert is_from_fork(source_id="2", ours=replace(ours, id="1")) is True
