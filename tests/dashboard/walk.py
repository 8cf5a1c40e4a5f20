"""A gateway with records of every kind under long names, and the pages to which its links lead."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from starlette.routing import BaseRoute, Match, Route

from gateway.data_dir import open_data
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.uptime import Uptime
from gateway.roles.parts import shared_parts
from gateway.roles.web import build_web
from gateway.settings import Settings
from testing.git_host import GitHost
from testing.service import VALOHAI_YAML, Project, Service, wait_for
from tests.dashboard.getting import got

LONG = "an-unbroken-name-" + "x" * 120
# So many pages of one route are searched for links to others.
_MAX_SEARCHED = 3


class Links(HTMLParser):
    """The links of a page to other pages and files."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Keep what leads elsewhere."""
        self.found += [
            value for name, value in attrs if name in {"href", "src"} and value and not value.startswith("#")
        ]


@contextmanager
def busy_gateway(folder: Path) -> Iterator[Service]:
    """Start a gateway with records of every kind."""
    with GitHost(folder / "git") as host, Service(folder / "data") as service:
        fill(service, Project(host, folder))
        yield service


def fill(service: Service, project: Project) -> None:
    """Make records of every kind, with names that are as long as people and programs make them."""
    send = service.api.send
    connection = service.connect(project.url, "train@**", f"{LONG}@**", "train@other", name=LONG)
    manifest = VALOHAI_YAML.replace("name: train", f"name: {LONG}") + VALOHAI_YAML
    pushed = project.push(f"Train longer\n\n{LONG}", {"valohai.yaml": manifest})
    _, answer = service.deliver(connection, project.payload(project.first, pushed, f"refs/heads/{LONG}"))
    service.settled(answer["delivery"])
    _, answer = service.deliver(connection, project.payload(None, project.first, "refs/heads/missing"))
    service.settled(answer["delivery"])
    service.deliver(connection, b"{}", event=f"repository_vulnerability_alert_{'x' * 60}")
    service.deliver({**connection, "secret": "another secret"}, b"{}")
    nothing = service.connect(f"{project.url}/nowhere/{LONG}")
    service.deliver(nothing, project.payload(None, project.first))
    source = send(
        "POST",
        "/sources",
        {
            "provider": "github",
            "url": f"https://github.com/{LONG}",
            "rules": [
                {"match": [LONG], "triggers": [{"name": LONG, "branches": [LONG], "run": {"step": LONG}}]},
                {"match": ["!*"]},
            ],
            "name": f"source-{LONG}",
        },
    )
    service.deliver({**source, "path": f"/hooks/{source['id']}"}, project.payload(None, project.first))
    send("POST", "/identities", {"name": LONG, "provider": "github", "token": "t"})
    slack = {"name": f"channel-{LONG}", "kind": "slack", "url": f"https://hooks.slack.com/services/{LONG}"}
    send("POST", "/notification-channels", slack)
    wait_for(lambda: service.api.get("/deliveries", verdict="refused")["items"], "the refusal is recorded")


def page_routes(folder: Path) -> list[Route]:
    """Return the routes of the dashboard that a browser requests with GET, of a gateway that does not run."""
    settings = Settings(data_dir=folder)
    with open_data(settings) as opened:
        parts = shared_parts(settings, opened)
        web = build_web(
            parts,
            DeliveryWriter(parts.database, notify=parts.pushes.notify),
            RefusalLog(parts.database),
            Uptime(parts.database, notify=parts.pushes.notify),
            is_closing=lambda: False,
            disk_trouble=_no_trouble,
        )
        return [route for route in web.pages.routes() if isinstance(route, Route) and _is_page(route)]


def crawled(
    service: Service, routes: Sequence[Route], cookie: str
) -> tuple[dict[str, list[str]], Collection[str]]:
    """Follow links from the overview. Return the URLs by the path of their route, and the routes of files."""
    found: dict[str, list[str]] = {}
    files: set[str] = set()
    seen, waiting = {f"{service.url}/"}, [f"{service.url}/"]
    while waiting:
        url = waiting.pop(0)
        route = _route_of(routes, urlsplit(url).path)
        if route is None or len(found.setdefault(route.path, [])) >= _MAX_SEARCHED:
            continue
        found[route.path].append(url)
        status, text, headers = got(url, cookie)
        assert status == 200, url
        if not headers["content-type"].startswith("text/html"):
            files.add(route.path)
            continue
        there = [urljoin(url, link) for link in Links(text).found]
        new = [
            link for link in dict.fromkeys(there) if link.startswith(f"{service.url}/") and link not in seen
        ]
        seen |= set(new)
        waiting += new
    return found, files


def _route_of(routes: Sequence[Route], path: str) -> Route | None:
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def _is_page(route: BaseRoute) -> bool:
    return isinstance(route, Route) and "GET" in (route.methods or ())


async def _no_trouble() -> None:
    return None
