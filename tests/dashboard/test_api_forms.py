"""From the fields of a form to the body of a request, and back, without a page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.schemas import NewConnection
from gateway.dashboard.api_forms import Filled, Form, FormField
from gateway.dashboard.form_values import mapping_lines, parsed_mapping
from gateway.dashboard.trigger_form import form_of_trigger, trigger_body
from gateway.errors import Invalid
from gateway.plan.triggers import Trigger
from providers.recognition import likely_provider

ATOMS = (
    st.text(max_size=12) | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
)
FORM = Form(
    model=NewConnection,
    fields=(
        FormField(name="url", label="URL", empty="keep"),
        FormField(name="project", label="Project", empty="keep"),
        FormField(name="follows", label="Branches", kind="lines"),
        FormField(name="credentials.password", label="Password", kind="secret"),
    ),
    places={"credentials": "credentials.password"},
)


@given(st.dictionaries(st.text(min_size=1, max_size=12), ATOMS | st.lists(ATOMS, max_size=3), max_size=5))
def test_names_with_values_are_read_back_as_they_were(values: dict[str, object]) -> None:
    """Also numbers written as text, line feeds, colons and quotes."""
    assert parsed_mapping(mapping_lines(values)) == values


@pytest.mark.parametrize("text", ["epochs", ": 1", '"epochs" 1', "a: 1\na: 2"])
def test_a_line_that_is_none_is_named(text: str) -> None:
    """By its number, so that it is found in a long field."""
    with pytest.raises(ValueError, match=r"Line [12]: "):
        parsed_mapping(text)


def test_a_trigger_is_the_same_after_its_form() -> None:
    """With every field: a form that is saved unchanged changes nothing."""
    trigger = Trigger.model_validate(
        {
            "name": "train",
            "on": ["push", "tag", "pull_request"],
            "branches": ["main", "!old/*"],
            "tags": ["v*"],
            "paths": ["train/", "!*.md"],
            "authors": ["*ada*"],
            "messages": ["!*wip*"],
            "forks": True,
            "run": {"step": "train"},
            "parameters": {"epochs": 10, "rate": 0.5, "label": "10", "layers": [1, "2", True]},
            "inputs": {"data": ["s3://a/b", "s3://a/c"]},
            "environment": "gpu",
            "required": True,
            "lane": "fast",
            "policy": "latest",
            "lost_after_hours": 1.5,
        }
    ).model_dump(mode="json")
    form = form_of_trigger(trigger)
    body = trigger_body(form)
    assert not form.is_wrong
    assert Trigger.model_validate(body).model_dump(mode="json") == trigger


def test_all_problems_are_shown_beside_their_fields() -> None:
    """Those that the model finds, and those that the API refuses; no value of a secret is shown."""
    form = FORM.filled({"url": [""], "follows": ["main\n["], "credentials.password": ["c4nary"]})
    form.check(form.body())
    assert set(form.problems) == {"url", "project", "follows"}
    form.refuse(Invalid("credentials: user and password are for https; an ssh URL requires a key"))
    assert form.problems["credentials.password"] == [
        "User and password are for https; an ssh URL requires a key."
    ]
    form.refuse(Invalid("the store is full: nothing was done"))
    assert form.general == ["Provider: it is required.", "The store is full: nothing was done."]
    assert form["credentials.password"].text == ""
    assert form.has_secrets
    assert "c4nary" not in str([(one.problems, one.text, one.help) for one in form.fields])


def test_an_empty_field_is_left_out_or_null_or_empty() -> None:
    """As its declaration says."""
    fields = [FormField(name=f"a.{empty}", label="A", empty=empty) for empty in ("omit", "null", "keep")]
    form = Filled(form=Form(model=NewConnection, fields=fields), values={})
    assert form.body() == {"a": {"null": None, "keep": ""}}


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://github.com/acme/digits.git", "github"),
        ("git@gitlab.com:acme/digits.git", "gitlab"),
        ("https://gitlab.acme.example/a/b.git", "gitlab"),
        ("https://bitbucket.org/acme/digits.git", "bitbucket"),
        ("https://git.acme.example/scm/ML/digits.git", "bitbucket-server"),
        ("ssh://git@git.acme.example:7999/ml/digits.git", "bitbucket-server"),
        ("https://dev.azure.com/acme/ml/_git/digits", "azure-devops"),
        ("git@ssh.dev.azure.com:v3/acme/ml/digits", "azure-devops"),
        ("https://tfs.acme.example/tfs/c/p/_git/digits", "azure-devops"),
        ("https://codeberg.org/acme/digits.git", "forgejo"),
        ("https://known.example/acme/digits.git", "gogs"),
        ("https://git.acme.example/acme/digits.git", None),
        ("https://[", None),
    ],
)
def test_the_provider_is_recognized_by_the_url(url: str, provider: str | None) -> None:
    """By its host, by the form of its path, or by what is known of the host."""
    assert likely_provider(url, {"known.example": "gogs"}) == provider
