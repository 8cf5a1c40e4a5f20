"""JSON Web Tokens that we sign.

https://www.rfc-editor.org/rfc/rfc7519
"""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any


def signed(header: Mapping[str, Any], claims: Mapping[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """Return a token. `sign` signs with the algorithm that the header names."""
    content = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{content}.{base64url(sign(content.encode()))}"


def base64url(content: bytes) -> str:
    """Return the form that tokens have binary parts in."""
    return urlsafe_b64encode(content).rstrip(b"=").decode()
