"""Read a payload: bytes in, a model of the few necessary fields out, or a documented error."""

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasPath,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict  # pydantic reads typing's own only from Python 3.12 on

from providers.errors import Malformed, Undecodable
from providers.model import VerifiedRequest

_MAX_FORM_FIELDS = 16
# The size of one decoding step, during which no other thread runs.
_PIECE = 64 * 1024
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Half of a surrogate pair, from a provider that cuts text by UTF-16 units in the middle of an emoji. The
# first alternatives skip an escaped backslash and a whole pair.
_HALF_PAIR = re.compile(
    rb"\\\\|\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_NO_TEXT = rb"\u0000"


class Payload(BaseModel):
    """A part of a payload: only the fields that are read; everything else is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _NoneWhereWrong:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


class _StopsAtFirstError:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # A megabyte of wrong items has half a million errors, which take most of a second to collect.
        return {**handler(source), "fail_fast": True}


def _text(value: Any) -> Any:
    """Return an id as text: depending on provider and version, ids are numbers or text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


T = TypeVar("T")

# JSON allows NUL in text, PostgreSQL does not; and no name or address is longer.
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
Id = Annotated[Text, BeforeValidator(_text)]
Lenient = Annotated[T | None, _NoneWhereWrong()]
"""An optional value: None if it is missing or invalid."""
Count = Lenient[Annotated[int, Field(ge=0, lt=2**31)]]
Moment = Lenient[AwareDatetime]
Items = Annotated[tuple[T, ...], _StopsAtFirstError()]
"""A list of any length."""
CommitId = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$")]


def nested(first: str, *rest: str | int, default: Any = ...) -> Any:
    """Return a field at this path of the payload, which may be missing if a default is given."""
    return Field(default, validation_alias=AliasPath(first, *rest))


class Move(Payload):
    """A ref that has moved, under the most common field names; None means "did not exist"."""

    ref: Text
    before: Text | None
    after: Text | None


class Commit(TypedDict):
    """A commit in a push. A plain dict, because 2,000 models would cost more than everything else."""

    id: CommitId


Commits = Lenient[Items[Commit]]

Model = TypeVar("Model", bound=Payload)


def read(model: type[Model], request: VerifiedRequest) -> Model:
    """Read a request's JSON document, extracted from its form if necessary.

    Text with half of a surrogate pair counts as a field of the wrong type, not as broken JSON. Raises
    `Undecodable` if the document is not JSON, `Malformed` if it does not have the documented shape.
    """
    document = form_payload(request.content) if request.form else request.content
    try:
        return _validate(model, document)
    except Undecodable:
        mended = _HALF_PAIR.sub(lambda found: _NO_TEXT if found[1] else found[0], document)
        if mended == document:
            raise
    return _validate(model, mended)


def _validate(model: type[Model], document: bytes) -> Model:
    try:
        return model.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Undecodable(f"the body is not JSON: {first['msg']}") from None
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Malformed(f"{where}: {first['msg']}") from None


def ids(commits: tuple[Commit, ...] | None, *, newest_first: bool = False) -> tuple[str, ...]:
    """Return the ids of the commits that a payload lists, oldest first."""
    listed = tuple(commit["id"] for commit in commits or ())
    return listed[::-1] if newest_first else listed


def media_type(headers: Mapping[str, str]) -> str:
    """Return the lower-case media type of Content-Type without its parameters; "" if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(headers: Mapping[str, str]) -> bool:
    """Return whether the body is an urlencoded form."""
    return media_type(headers) == "application/x-www-form-urlencoded"


def form_payload(body: bytes) -> bytes:
    """Return the JSON document in a form's field `payload`.

    Raises `Undecodable` if there is no such field, or more than one.
    """
    fields = body.split(b"&", _MAX_FORM_FIELDS)
    if len(fields) > _MAX_FORM_FIELDS:
        raise Undecodable(f"the form has more than {_MAX_FORM_FIELDS} fields")
    pairs = (field.partition(b"=") for field in fields)
    payloads = [value for name, _, value in pairs if _unquote(name) == b"payload"]
    if len(payloads) != 1:
        raise Undecodable(f"the form has {len(payloads)} fields named payload instead of one")
    return _unquote(payloads[0])


def _unquote(quoted: bytes) -> bytes:
    """Undo percent-encoding."""
    return b"".join(map(_unquote_piece, _pieces(quoted)))


def _pieces(quoted: bytes) -> Iterator[bytes]:
    """Cut percent-encoded bytes into pieces, without splitting an escape."""
    start = 0
    while start < len(quoted):
        end = start + _PIECE
        escape = quoted.rfind(b"%", end - 2, end)
        if escape > start:
            end = escape
        yield quoted[start:end]
        start = end


def _unquote_piece(quoted: bytes) -> bytes:
    """Undo percent-encoding with the decoder for quoted-printable, which differs in the escape character.

    That decoder is written in C: 25 MB take a tenth of a second; urllib takes four, and gigabytes of memory.
    """
    if _BROKEN_ESCAPE.search(quoted):
        raise Undecodable("the form has a % that no two hex digits follow")
    return binascii.a2b_qp(quoted.replace(b"+", b" ").replace(b"=", b"=3D").replace(b"%", b"="))
