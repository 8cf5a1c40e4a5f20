"""What the modules with pages share: the type of a route, and a check of the paths in addresses."""

from gateway.api.endpoints import Endpoint

PageRoute = tuple[str, str, Endpoint]
"""The path, the method, and the page."""


def inside(path: str, *, default: str = "/") -> str:
    """Return a path of the dashboard unchanged, and `default` for any URL that leads elsewhere."""
    is_path = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_path else default
