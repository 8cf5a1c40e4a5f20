"""Forms that pages of the dashboard post."""

from urllib.parse import parse_qs

from starlette.requests import Request

from gateway.errors import Invalid
from gateway.intake.body import BodyReader

_MAX_FIELDS = 10
# The sign-in form is decoded before the token is checked, so anybody can send it: keep it small.
_BODIES = BodyReader(limit=32 * 1024)


async def read_form(request: Request, *, max_fields: int = _MAX_FIELDS) -> dict[str, str]:
    """Return the fields of a form; of several with one name, the first. Raises `Invalid`."""
    body = await _BODIES.read(request.scope, request.receive)
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=max_fields)
    except ValueError:
        raise Invalid("the form has too many fields") from None
    return {name: values[0] for name, values in fields.items()}
