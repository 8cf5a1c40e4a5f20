"""Reading a valohai.yaml: what is accepted, and what is refused with its position."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import PlanError
from gateway.plan.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestCache, read_manifest
from tests.plan.facts import MANIFEST

STEP = "- step:\n    name: a\n    image: b\n    command: c\n"


def refusal(text: bytes | str) -> str:
    """Return why a manifest is refused."""
    with pytest.raises(PlanError) as refused:
        read_manifest(text.encode() if isinstance(text, str) else text, path="valohai.yaml")
    return str(refused.value)


def test_steps_and_pipelines_are_found_by_name() -> None:
    """In the order of the file."""
    manifest = read_manifest(MANIFEST, path="ml/valohai.yaml")
    assert manifest.path == "ml/valohai.yaml"
    assert list(manifest.steps) == ["train", "evaluate"]
    assert list(manifest.pipelines) == ["nightly"]


def test_a_manifest_is_parsed_once_while_there_is_room() -> None:
    """The one that was used last is kept longest; its path is part of errors, and of what is cached."""
    length = read_manifest(STEP.encode(), path="v").length
    texts = [STEP.replace("name: a", f"name: {name}").encode() for name in "abc"]
    for cache in (ManifestCache(length=2 * length), ManifestCache(entries=2)):
        first, second = (cache.read(text, path="v") for text in texts[:2])
        assert cache.read(texts[0], path="v") is first
        cache.read(texts[2], path="v")
        assert cache.read(texts[0], path="v") is first
        assert cache.read(texts[1], path="v") is not second
        assert cache.read(texts[0], path="w").path == "w"
    assert ManifestCache(length=0).read(texts[0], path="v").steps.keys() == {"a"}


@pytest.mark.parametrize("text", [b"", b"# nothing yet\n", b"---\n", b"[]", b"null", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_steps(text: bytes) -> None:
    """That is not an error, as on the platform."""
    assert read_manifest(text, path="valohai.yaml").steps == {}


def test_items_of_unknown_kinds_are_ignored() -> None:
    """An item kind that the platform adds later does not affect the steps."""
    assert list(read_manifest(b"- novelty: {name: x}\n" + STEP.encode(), path="v").steps) == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("- a: [1\n]]", "line 2, column 2: did not find expected '-' indicator", id="syntax"),
        pytest.param("- a: b: c", "line 1, column 7: mapping values are not allowed", id="mapping"),
        pytest.param("step: {name: a}", "line 1, column 1: it has to be a list", id="no list"),
        pytest.param("just words", "line 1, column 1: it has to be a list", id="text"),
        pytest.param("---\n- {}\n---\n- {}", "line 3, column 1: but found another document", id="two"),
        pytest.param("- x", "line 1, column 3: 0: 'x' is not of type 'object'", id="no item"),
        pytest.param(
            "- step:\n    name: a\n    command: c\n",
            "line 2, column 5: 0/step: 'image' is a required property",
            id="no image",
        ),
        pytest.param(
            f"{STEP}    parameters:\n      - name: x\n        type: number\n",
            "line 7, column 15: 0/step/parameters/0/type: 'number' is not one of",
            id="parameter type",
        ),
        pytest.param(
            "- pipeline:\n    name: p\n    edges: []\n    nodes:\n      - {name: n, type: execution}\n",
            "line 5, column 9: 0/pipeline/nodes/0: 'step' is a required property",
            id="the schema that the node's type means",
        ),
        pytest.param(f"{STEP}{STEP}", "line 6, column 11: there are two step items named a", id="twin"),
        pytest.param(
            "- pipeline: {name: p, nodes: [], edges: []}\n- blueprint: {name: p, nodes: [], edges: []}\n",
            "line 2, column 21: there are two pipeline items named p",
            id="a blueprint is a pipeline",
        ),
        pytest.param("- !!python/object:os.system {}", "could not determine a constructor", id="objects"),
        pytest.param(
            "- &a [*a]", "line 1, column 7: the alias *a is inside the value that it refers to", id="loop"
        ),
        pytest.param("- *a", "line 1, column 3: the alias *a is inside", id="alias of nothing"),
        pytest.param(b"- \xff", "line 1, column 3: it is not UTF-8 text", id="latin"),
        pytest.param("- a".encode("utf-16"), "line 1, column 1: it is not UTF-8 text", id="utf-16"),
        pytest.param(
            b"- a\n- \x00", "line 2, column 3: it contains a character that YAML forbids", id="zero"
        ),
        pytest.param("- " + "9" * 5000, "line 1, column 3: a number of 5000 digits", id="digits"),
        pytest.param("- 1" + ":59" * 50000, "a number of 150001 digits", id="base sixty"),
        pytest.param(STEP + "    time-limit: soon\n", "is not a valid valohai.yaml", id="duration"),
        pytest.param(
            "- pipeline: {name: p, nodes: [], edges: [[a.b, c.d.e]]}\n", "must have 3 parts", id="edge"
        ),
        pytest.param("- {}\n" * 1001, "has 1001 items; at most 1000 are read", id="items"),
    ],
)
def test_an_error_is_reported_with_its_position(text: bytes | str, reason: str) -> None:
    """Each failure is one sentence that names the file and, if known, line and column."""
    reported = refusal(text)
    assert reported.startswith("valohai.yaml")
    assert reason in reported
    assert "\n" not in reported
    assert len(reported) < 400


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_depth_is_refused_before_it_can_harm_the_process(opening: str) -> None:
    """As many levels as a file can have would overflow the stack of libyaml's recursive composer."""
    reported = refusal((opening * 100_000)[:MAX_MANIFEST_BYTES])
    assert "nested more than 40 levels deep" in reported


def test_a_file_may_have_256_kib() -> None:
    """That size is read, and one byte more is refused."""
    assert read_manifest(b"#" * MAX_MANIFEST_BYTES, path="v").steps == {}
    assert (
        refusal(b"#" * (MAX_MANIFEST_BYTES + 1))
        == f"valohai.yaml has {MAX_MANIFEST_BYTES + 1} bytes; at most {MAX_MANIFEST_BYTES} are read"
    )


@pytest.mark.parametrize("kind", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_cannot_multiply_without_end(kind: str) -> None:
    """Nine times nine times nine values, by sequences or by merges, are counted before they are expanded."""
    bomb = "- &a0 {x: 1}\n" + "".join(
        f"- &a{level} {kind.format(','.join([f'*a{level - 1}'] * 9))}\n" for level in range(1, 20)
    )
    assert "its aliases expand to too much text" in refusal(bomb)


def test_one_long_text_cannot_be_repeated_without_end() -> None:
    """Characters count, because every schema violation contains a copy of the value."""
    assert "its aliases expand to too much text" in refusal(f"- &a {'x' * 200_000}\n" + "- *a\n" * 10_000)


def test_a_moderate_use_of_aliases_is_accepted() -> None:
    """People share parameters between steps."""
    text = STEP + "    parameters: &p\n      - {name: x, default: y}\n"
    text += STEP.replace("name: a", "name: second") + "    parameters: *p\n"
    assert list(read_manifest(text.encode(), path="v").steps["second"].parameters) == ["x"]


@pytest.mark.parametrize("template", ["{value.__class__}", "{v!r}", "{value:>99999999}", "{0}", "{", "{name"])
@pytest.mark.parametrize("key", ["pass-as", "pass-true-as", "pass-false-as"])
def test_a_pass_as_reaches_nothing_but_name_and_value(key: str, template: str) -> None:
    """The platform's parser passes it to str.format, which can read attributes of objects."""
    text = f"{STEP}    parameters:\n      - name: x\n        type: flag\n        {key}: '{template}'\n"
    assert "a pass-as may contain {name}, {value}, {v} and no other braces" in refusal(text)


def manifest_or_refusal(text: bytes) -> None:
    """Read a file, and fail on any error except `PlanError`."""
    with suppress(PlanError):
        assert isinstance(read_manifest(text, path="v"), Manifest)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_refused(text: bytes) -> None:
    """There is no other result."""
    manifest_or_refusal(text)


@given(st.text(alphabet="-?:,[]{}#&*!|>'\"%@` \n\tab1.<~=_", max_size=120))
def test_any_punctuation_is_a_manifest_or_refused(text: str) -> None:
    """The same with the characters that mean something to YAML."""
    manifest_or_refusal(text.encode())


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
_KEYS = (
    st.sampled_from(
        [
            *("step", "task", "pipeline", "blueprint", "endpoint", "deployment", "name", "image", "command"),
            *("parameters", "inputs", "mounts", "type", "default", "nodes", "edges", "targets", "resources"),
            *("cpu", "devices", "time-limit", "override", "multiple", "choices", "widget"),
        ]
    )
    | _SCALARS
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=300)
@given(st.lists(st.dictionaries(_KEYS, _VALUES, max_size=3), max_size=4))
def test_any_values_are_a_manifest_or_refused(items: object) -> None:
    """The same with well-formed YAML that has the platform's keys in the wrong places."""
    manifest_or_refusal(yaml.safe_dump(items).encode())


@given(st.data())
def test_a_good_file_with_a_piece_missing_is_a_manifest_or_refused(data: st.DataObject) -> None:
    """The same with small changes to a valid file."""
    start = data.draw(st.integers(0, len(MANIFEST)))
    end = data.draw(st.integers(start, min(len(MANIFEST), start + 40)))
    manifest_or_refusal(MANIFEST[:start] + data.draw(st.binary(max_size=3)) + MANIFEST[end:])
