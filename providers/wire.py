"""Reading a payload: bytes in, a model of the few fields that matter out, or one documented error."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from providers.errors import Malformed, Undecodable
from providers.model import Delivery

_MOST_FORM_FIELDS = 16


class Wire(BaseModel):
    """A part of a payload: only the fields that are read; everything else is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _text(value: Any) -> Any:
    """Ids are numbers with some providers and versions, text with others; text is what we compare."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Id = Annotated[str, BeforeValidator(_text)]

Model = TypeVar("Model", bound=Wire)


def read(model: type[Model], delivery: Delivery) -> Model:
    """Read a delivery's JSON document, taken out of its form where it is in one.

    Raises `Undecodable` where it is no JSON, `Malformed` where its shape is not the documented one.
    """
    document = form_payload(delivery.content) if delivery.form else delivery.content
    try:
        return model.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Undecodable(f"the body is not JSON: {first['msg']}") from None
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Malformed(f"{where}: {first['msg']}") from None


def media_type(headers: Mapping[str, str]) -> str:
    """Return the lower-case media type of the Content-Type header without its parameters; "" for none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(headers: Mapping[str, str]) -> bool:
    """Say whether the body is an urlencoded form."""
    return media_type(headers) == "application/x-www-form-urlencoded"


def form_payload(body: bytes) -> bytes:
    """Return the JSON document that a form carries in its one field `payload`.

    Raises `Undecodable` where there is no such field or more than one.
    """
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MOST_FORM_FIELDS,
        )
    except ValueError as error:
        raise Undecodable(f"the form cannot be read: {error}") from None
    payloads = [value for name, value in fields if name == "payload"]
    if len(payloads) != 1:
        raise Undecodable(f"the form has {len(payloads)} fields named payload instead of one")
    return payloads[0].encode()
