"""Forms of the dashboard: from the fields of a page to the body of a request to the REST API, and back.

The API's models describe and check the fields, so that a form accepts what the API accepts. All problems are
shown at once, each beside its field, and what was entered stays; only secrets are not sent back.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.api.conditions import tag_of
from gateway.dashboard.form_values import listed, mapping_lines, parsed_mapping
from gateway.errors import Changed, Fault, Invalid
from gateway.text.sentences import begin_sentence
from gateway.text.validation import faults, model_in

Answer = TypeVar("Answer")
Values = Mapping[str, Sequence[str]]
"""The fields of a form that was sent; a checkbox that is not checked is missing."""
Kind = Literal[
    "text", "long-text", "secret", "long-secret", "lines", "mapping", "check", "choice", "choices", "moment"
]
Empty = Literal["omit", "null", "keep"]
"""What an empty field means: it is left out of the request, or it is null there, or it is an empty text."""

_SECRETS = {"secret", "long-secret"}
CHECKED = "1"
"""What a checkbox sends."""
# Replacements of pydantic's messages that refer to its own types.
_WORDS: Mapping[str, str] = {
    "missing": "it is required",
    "string_too_short": "it must not be empty",
    "too_short": "it must not be empty",
    "string_type": "it is required",
    "model_type": "it is required",
}
# Words of the API's descriptions that mean something else on a page.
_OF_PAGES: Mapping[str, str] = {
    "no answer contains it": "no page shows it",
    "which only this answer contains": "which is shown once",
    "whose public half the answer contains": "whose public half is shown",
}
_CHANGED = "Somebody has changed this since the form was opened: open it again, and repeat your changes."


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """A field of a form.

    `name` is the path of its value in the body of the request, such as `mail.host`. `help` is, by default,
    the description of that value in the API. `choices` maps values to the texts that are shown.
    """

    name: str
    label: str
    kind: Kind = "text"
    help: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    empty: Empty = "omit"
    required: bool = False
    example: str = ""

    @property
    def id(self) -> str:
        """The id of its element in the page."""
        return "field-" + self.name.replace(".", "-")

    @property
    def is_secret(self) -> bool:
        """Whether its value is never sent to the browser."""
        return self.kind in _SECRETS

    def value(self, given: Sequence[str]) -> Any:
        """Return the value in the body of the request; None for an empty text. Raises `ValueError`."""
        return list(given) if self.kind == "choices" else _READ[self.kind](given[0] if given else "")

    def shown(self, value: Any) -> Sequence[str]:
        """Return a value of a record as the field would send it."""
        if value is None or self.is_secret:
            return ()
        if self.kind == "choices":
            return [str(one) for one in value]
        return (_SHOWN.get(self.kind, str)(value),)


def _pasted(text: str) -> str | None:
    return text.replace("\r\n", "\n") if text.strip() else None


_READ: Mapping[Kind, Callable[[str], Any]] = {
    "text": lambda text: text.strip() or None,
    "choice": lambda text: text.strip() or None,
    "secret": lambda text: text or None,
    "long-text": _pasted,
    "long-secret": _pasted,
    "lines": listed,
    "mapping": parsed_mapping,
    "check": lambda text: text == CHECKED,
    # Browsers send an instant without a zone; the label says that it is UTC.
    "moment": lambda text: f"{text}Z" if text else None,
}
_SHOWN: Mapping[Kind, Callable[[Any], str]] = {
    "lines": lambda values: "\n".join(str(one) for one in values),
    "mapping": mapping_lines,
    "check": lambda value: CHECKED if value else "",
    "moment": lambda instant: instant.strftime("%Y-%m-%dT%H:%M:%S"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form whose fields are those of a model of the API.

    `places` maps paths in the model to the fields beside which their problems are shown. `items` names the
    list of the request of which the form is one item.
    """

    model: type[BaseModel]
    fields: Sequence[FormField]
    places: Mapping[str, str] = field(default_factory=dict)
    items: str | None = None

    def filled(self, values: Values) -> "Filled":
        """Return the form as it was sent."""
        return Filled(form=self, values=values)

    def of(self, record: Mapping[str, Any]) -> "Filled":
        """Return the form with the values of a record, in which the paths of the fields are looked up."""
        return Filled(
            form=self, values={one.name: one.shown(_looked_up(record, one.name)) for one in self.fields}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledField:
    """A field with its value and its problems, for the template."""

    field: FormField
    values: Sequence[str]
    problems: Sequence[str]
    help: str | None

    @property
    def text(self) -> str:
        """The text to show in it; nothing of a secret."""
        return "" if self.field.is_secret or not self.values else self.values[0]

    @property
    def is_checked(self) -> bool:
        """Whether a checkbox is checked."""
        return bool(self.values) and self.values[0] == CHECKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A form with values, and with the problems that were found in them; `general` are those of no field."""

    form: Form
    values: Values
    problems: dict[str, list[str]] = field(default_factory=dict)
    general: list[str] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether problems were found."""
        return bool(self.problems or self.general)

    @property
    def has_secrets(self) -> bool:
        """Whether secrets were entered, which the page does not have any more."""
        return any(one.is_secret and any(self.values.get(one.name, ())) for one in self.form.fields)

    def has_problem(self, names: Sequence[str]) -> bool:
        """Return whether one of these fields has a problem."""
        return any(name in self.problems for name in names)

    @property
    def fields(self) -> Sequence[FilledField]:
        """The fields, for the template."""
        return [
            FilledField(
                field=one,
                values=self.values.get(one.name, ()),
                problems=self.problems.get(one.name, ()),
                help=_described(self.form.model, one.name) if one.help is None else one.help,
            )
            for one in self.form.fields
        ]

    def __getitem__(self, name: str) -> FilledField:
        """Return a field, for the template. Raises `KeyError`."""
        return next(one for one in self.fields if one.field.name == name)

    def __contains__(self, name: str) -> bool:
        """Return whether the form has a field."""
        return any(one.name == name for one in self.form.fields)

    def text(self, name: str) -> str:
        """Return the text of a field that was sent, also of one that is none of the form's."""
        return next(iter(self.values.get(name, ())), "").strip()

    def body(self) -> dict[str, Any]:
        """Return the body of the request; values that cannot be read become problems."""
        body: dict[str, Any] = {}
        for one in self.form.fields:
            try:
                value = one.value(self.values.get(one.name, ()))
            except ValueError as error:
                self._add(one.name, _sentence(str(error)))
                continue
            if value is None and one.empty == "omit":
                continue
            inner = body
            *path, last = one.name.split(".")
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = "" if value is None and one.empty == "keep" else value
        return body

    async def send(
        self,
        endpoint: Callable[[Request], Awaitable[Answer]],
        request: Request,
        body: Mapping[str, Any],
        **query: str,
    ) -> Answer | None:
        """Return the answer of an endpoint of the API to this body; None if there are problems.

        A form with a `version` changes only this version of its record.
        """
        self.check(body)
        if self.is_wrong:
            return None
        conditional = api_request(request, body, version=self.text("version"), **query)
        return await self.accepted(endpoint(conditional))

    async def accepted(self, answer: Awaitable[Answer]) -> Answer | None:
        """Return an answer of the API; None if it is a refusal, which becomes problems."""
        try:
            return await answer
        except Changed:
            self.general.append(_CHANGED)
        except Invalid as error:
            self.refuse(error)
        return None

    def check(self, body: Any) -> None:
        """Add the problems that the model finds in a body, all of them."""
        try:
            self.form.model.model_validate_json(json.dumps(body))
        except ValidationError as error:
            self.refuse(Invalid.of(faults(error, self.form.model, words=_WORDS)))

    def refuse(self, error: Invalid) -> None:
        """Add what the API has refused, each beside its field."""
        for fault in error.faults or (_fault(error),):
            path = ".".join(str(part) for part in self._inner(fault.path))
            place = self._place(path)
            self._add(path, _sentence(fault.detail if place is None else _without(fault, path)))

    def _inner(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """Return a path in the request as a path in the form, which may be that of one item of a list."""
        return path[2:] if path[:1] == (self.form.items,) else path

    def _add(self, path: str, problem: str) -> None:
        place = self._place(path)
        found = self.general if place is None else self.problems.setdefault(place, [])
        if problem not in found:
            found.append(problem)

    def _place(self, path: str) -> str | None:
        """Return the field that shows the problems of a path in the model, if one does."""
        names = {one.name for one in self.form.fields}
        while path:
            place = self.form.places.get(path, path)
            if place in names:
                return place
            path = path.rpartition(".")[0]
        return None


def version_of(record: BaseModel) -> str:
    """Return the version of a record, for the field `version` of a form that changes it."""
    return tag_of(record, b"")


def api_request(
    request: Request,
    body: Mapping[str, Any] | None = None,
    *,
    of: str | None = None,
    version: str = "",
    **query: str,
) -> Request:
    """Return a request to the API with this body, about the record of a page's path, or of another id.

    With a `version`, it changes only this version of the record.
    """
    content = json.dumps(body or {}).encode()
    path_params = request.path_params if of is None else {"id": of}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    if version:
        headers.append((b"if-match", version.encode("latin-1", "replace")))
    changed = {"headers": headers, "query_string": urlencode(query).encode(), "path_params": path_params}
    return Request({**request.scope, **changed}, receive)


def _looked_up(record: Mapping[str, Any], path: str) -> Any:
    found: Any = record
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _described(model: type[BaseModel], path: str) -> str | None:
    """Return what the API says about a field, as a sentence; None about one that it does not have."""
    inner: type[BaseModel] | None = model
    description = None
    for part in path.split("."):
        if inner is None or part not in inner.model_fields:
            return None
        info = inner.model_fields[part]
        description, inner = info.description, model_in(info.annotation)
    return None if description is None else _sentence(description)


def _fault(error: Invalid) -> Fault:
    """Return the fault of an error that has none: its message may begin with the name of a field."""
    where, colon, _ = str(error).partition(": ")
    is_name = bool(colon) and " " not in where
    return Fault(str(error), tuple(where.split(".")) if is_name else ())


def _without(fault: Fault, path: str) -> str:
    """Return the detail of a fault without the name of the field, beside which it is shown."""
    before, found, after = fault.detail.partition(f"{path}: ")
    return after if found and (not before or before.endswith(": ")) else fault.detail


def _sentence(text: str) -> str:
    """Return a description of the API, or an error, as a sentence on a page."""
    for of_api, of_pages in _OF_PAGES.items():
        text = text.replace(of_api, of_pages)
    text = text.strip()
    return f"{begin_sentence(text)}{'' if text.endswith(('.', '…', '!', '?')) else '.'}"
