"""The rules of a source: which repositories are connected, and how."""

from typing import Any

import pytest

from gateway.errors import Invalid
from gateway.plan.source_rules import Rule, decide, manifests_to_find, read_rules

ML = {"match": ["ml-*", "!ml-old"], "project": "ml"}
RESEARCH = {"match": ["research/**"], "project": "{path}", "manifest": True, "yaml_path": "ml/valohai.yaml"}
ANY = {"manifest": True}


@pytest.mark.parametrize(
    ("rules", "path", "manifests", "expected"),
    [
        ([], "digits", {}, "the source has no rules"),
        ([{}], "digits", {}, "digits"),
        ([ML], "ml-digits", {}, "ml"),
        ([ML], "ML-Digits", {}, "ml"),
        ([ML], "ml-old", {}, "no rule matches ml-old"),
        ([ML], "digits", {}, "no rule matches digits"),
        ([ML], "research/ml-digits", {}, "no rule matches research/ml-digits"),
        ([{"match": ["!legacy-*"]}], "digits", {}, "digits"),
        ([{"match": ["!legacy-*"]}], "legacy-1", {}, "no rule matches legacy-1"),
        ([RESEARCH], "research/vision/digits", {"ml/valohai.yaml": True}, "research-vision-digits"),
        (
            [RESEARCH],
            "research/digits",
            {"ml/valohai.yaml": False},
            "research/digits has no ml/valohai.yaml on its default branch",
        ),
        ([RESEARCH, {}], "research/digits", {"ml/valohai.yaml": False}, "digits"),
        ([ML, ANY], "ml-digits", {}, "ml"),
        ([ANY, ML], "ml-digits", {"valohai.yaml": False}, "ml"),
        ([ANY], "digits", {"valohai.yaml": True}, "digits"),
        (
            [RESEARCH, ANY],
            "research/a",
            {"valohai.yaml": False, "ml/valohai.yaml": False},
            "research/a has no ml/valohai.yaml and no valohai.yaml on its default branch",
        ),
    ],
)
def test_the_first_rule_that_matches_decides(
    rules: list[dict[str, Any]], path: str, manifests: dict[str, bool], expected: str
) -> None:
    """`expected` is the project of the connection, or the reason why there is none."""
    read = read_rules(rules)
    assert set(manifests_to_find(read, path)) == set(manifests)
    decision = decide(read, path, manifests=manifests)
    assert (decision.rule.project_of(path) if decision.rule else decision.reason) == expected
    assert decision.lacks_manifest == (decision.rule is None and bool(manifests))


def test_rules_are_stored_in_the_form_in_which_they_are_read() -> None:
    """With all defaults, so that a later default changes no source."""
    [rule] = read_rules([{"triggers": [{"name": "train", "run": {"step": "train"}}]}])
    stored = rule.model_dump(mode="json")
    assert set(stored) == set(Rule.model_fields)
    assert read_rules([stored]) == (rule,)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"match": ["a b"]}, "rule 1: match.0: "),
        ({"match": ["!!a"]}, "rule 1: match.0: "),
        ({"project": "{owner}"}, "rule 1: project: .*may contain {name} and {path}, and no other braces"),
        ({"yaml_path": "../valohai.yaml"}, "rule 1: yaml_path: .*inside the repository"),
        ({"triggers": [{"name": "train"}]}, "rule 1: triggers.0.run: "),
        (
            {"triggers": [{"name": "a", "run": {"step": "a"}}, {"name": "a", "run": {"step": "b"}}]},
            "rule 1: .*a",
        ),
        ({"mathc": ["a"]}, "rule 1: mathc: there is no such field; do you mean match"),
    ],
)
def test_a_wrong_rule_is_one_sentence(rule: dict[str, Any], sentence: str) -> None:
    """It names the number of the rule and the field."""
    with pytest.raises(Invalid, match=sentence):
        read_rules([rule])
    with pytest.raises(Invalid, match="rules: a source has at most 100"):
        read_rules([{}] * 101)
