"""Forms that pages of the dashboard post."""

from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.requests import Request

from gateway.errors import Invalid
from gateway.intake.body import BodyReader

# The sign-in form is decoded before the token is checked, so anybody can send it: keep it small.
_SMALL, _MAX_FIELDS = BodyReader(limit=32 * 1024), 10
_LARGE, _MAX_FIELDS_OF_LARGE = BodyReader(limit=256 * 1024), 500


async def read_form(request: Request, *, max_fields: int = _MAX_FIELDS) -> dict[str, str]:
    """Return the fields of a small form; of several with one name, the first. Raises `Invalid`."""
    fields = await _fields(request, _SMALL, max_fields)
    return {name: values[0] for name, values in fields.items()}


async def read_large_form(request: Request) -> Mapping[str, list[str]]:
    """Return the fields of a form that a signed-in user has sent. Raises `Invalid`."""
    return await _fields(request, _LARGE, _MAX_FIELDS_OF_LARGE)


async def _fields(request: Request, bodies: BodyReader, max_fields: int) -> dict[str, list[str]]:
    body = await bodies.read(request.scope, request.receive)
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=max_fields)
    except ValueError:
        raise Invalid("the form has too many fields") from None
    if any("\0" in value for values in fields.values() for value in values):
        raise Invalid("the form contains a NUL character")
    return fields
