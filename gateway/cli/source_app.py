"""What `pushgate source` says about the GitHub App of a source, and how it waits for it."""

import os
import sys
import time
import webbrowser
from typing import Any

from gateway.cli.api_client import Client
from gateway.cli.output import escape, out

_POLL_SECONDS = 1.0
# An installation is usually noticed at once, because GitHub sends the browser to the page of the App.
_LIST_SECONDS = 10.0


def app_line(source: Any) -> str:
    """Return how far the App of a source is, and what is to be done."""
    app = source["app"]
    install = app["install_url"] or app["page"]
    lines = {
        "none": f"none: create it at {app['page']}",
        "pending": f"GitHub has created it, and a worker gets its key; see {app['page']}",
        "failed": f"not made: {app['reason']}: {app['page']}",
        "created": f"not installed yet: install it at {install}",
        "installed": "installed",
    }
    return lines[app["state"]]


def guide_to_app(source: Any) -> None:
    """Print how to make the App of a new source."""
    out.print(
        "\nNext: create a GitHub App, which has the webhook and obtains the tokens, on this page:\n  "
        + escape(source["app"]["page"]),
        soft_wrap=True,
    )


def wait_for_app(client: Client, source: Any, *, opens_browser: bool) -> None:
    """Open the page of the App, and print the progress until the App is installed, or until Ctrl-C."""
    if opens_browser and _has_display():
        webbrowser.open(source["app"]["page"])
    out.print("\nWaiting until the App is installed. Ctrl-C ends only this command.")
    try:
        _follow(client, f"/sources/{source['id']}")
    except KeyboardInterrupt:
        out.print(f"\n`pushgate source show {escape(source['name'])}` says what is left to do.")


def _follow(client: Client, path: str) -> None:
    shown, list_at = "none", 0.0
    while True:
        source = client.get(path)
        if source["app"] is None:
            out.print("The source has another identity now.")
            return
        state = source["app"]["state"]
        if state != shown:
            colour = {"failed": "yellow", "installed": "green"}.get(state, "default")
            out.print(f"[{colour}]App:[/{colour}] {escape(app_line(source))}", soft_wrap=True)
        if state == "installed":
            return
        if state == "created" and time.monotonic() >= list_at:
            client.send("POST", f"{path}/list", wait=0)
            list_at = time.monotonic() + _LIST_SECONDS
        shown = state
        time.sleep(_POLL_SECONDS)


def _has_display() -> bool:
    """Return whether a browser can open a window."""
    return sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
