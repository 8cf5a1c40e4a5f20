"""Rendering of the dashboard's pages: templates, links, and the headers that restrict what a page may do.

Pages are rendered here and work without scripts. The only script refreshes the page and its relative times,
and adds copy buttons. There are no foreign
scripts, no inline styles and no resources of other hosts, so the Content-Security-Policy forbids them.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gateway.dashboard.flashes import Flash, Flashes, Kind
from gateway.text.relative import relative
from gateway.text.sentences import WAITS, begin_sentence, provider_name

STATIC = Path(__file__).with_name("static")

SECTIONS = (
    ("overview", "Overview", "/"),
    ("deliveries", "Deliveries", "/deliveries"),
    ("executions", "Executions", "/executions"),
    ("dead-letters", "Dead letters", "/dead-letters"),
    ("connections", "Connections", "/connections"),
    ("sources", "Sources", "/sources"),
    ("identities", "Identities", "/identities"),
    ("notifications", "Notifications", "/notifications"),
)
"""The navigation: the name that a template sets as its `section`, the text, and the path."""

_FORMS = "form-action 'self'"
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        f" {_FORMS}; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # With no-referrer, browsers would also omit the origin of a form.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


class Renderer:
    """Renders the pages of a gateway that browsers reach at `base_url`."""

    def __init__(self, base_url: str, key: bytes) -> None:
        """Set up the templates; each is loaded when it is first used. The key signs flash messages."""
        self.base_url = base_url
        self.flashes = Flashes(key, base_url=base_url)
        self._root = urlsplit(base_url).path
        self._templates = Environment(
            loader=PackageLoader("gateway.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["duration"] = _duration
        self._templates.filters["json"] = partial(json.dumps, indent=2, ensure_ascii=False)
        self._templates.filters["relative"] = relative
        self._templates.filters["exact"] = _exact
        self._templates.filters["sentence"] = begin_sentence
        self._templates.filters["provider"] = provider_name
        self._templates.globals |= {
            "href": self._href,
            "asset": _asset,
            "waits": WAITS,
            "section": None,
            "sections": SECTIONS,
        }

    def page(self, template: str, status: int = 200, **facts: Any) -> Response:
        """Return the page that a template renders from these facts."""
        text = self._templates.get_template(template).render(
            now=datetime.now(UTC), flash=self.flashes.current, **facts
        )
        return HTMLResponse(text, status, _HEADERS)

    def page_with_form(self, template: str, server: str, **facts: Any) -> Response:
        """Return a page with a form for another server, which learns only the origin of the gateway."""
        answer = self.page(template, **facts)
        policy = answer.headers["content-security-policy"]
        answer.headers["content-security-policy"] = policy.replace(_FORMS, f"{_FORMS} {server}")
        # With same-origin, browsers would send the form with the origin "null".
        answer.headers["referrer-policy"] = "strict-origin"
        return answer

    def redirect(self, path: str, *, flash: str | None = None, kind: Kind = "good") -> Response:
        """Redirect the browser to another page, which it requests with GET, and which shows the `flash`."""
        answer = RedirectResponse(self._href(path), 303, _HEADERS)
        if flash is not None:
            self.flashes.keep(answer, Flash(flash, kind), now=datetime.now(UTC))
        return answer

    def _href(self, path: str, /, **query: str | None) -> str:
        """Return the link to a page, below the path of the public URL."""
        given = urlencode({name: value for name, value in query.items() if value})
        return f"{self._root}{path}{'?' if given else ''}{given}"


@lru_cache
def _asset(name: str) -> str:
    """Return the path of a file under static/; it changes with the file's content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


def _exact(instant: datetime) -> str:
    """Return an instant in UTC, to the second."""
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(span: timedelta) -> str:
    """Return a duration as text: 80 ms, 4.2 s, 3.0 min, 12 h, 3 days."""
    seconds = max(span.total_seconds(), 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, unit, maximum in ((1, "s", 60), (60, "min", 60), (3600, "h", 48)):
        if seconds < size * maximum:
            return f"{seconds / size:.1f} {unit}" if seconds < size * 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
