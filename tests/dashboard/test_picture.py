"""The picture of the dashboard in the README: `make picture` takes it."""

import json
import os
import random
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import insert, select

from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.tables import deliveries, ref_updates
from testing.browser import running_browser, sign_in
from testing.git_host import GitHost
from testing.service import VALOHAI_YAML, Project, Service, wait_for

PICTURE = Path(__file__).parents[2] / "docs" / "dashboard.png"
MAX_BYTES = 200_000
NAMES = ("acme/digits", "acme/vision", "acme/forecast")
REPORTS = (("accepted", "running", "succeeded"), ("accepted", "running"), ("accepted", "running", "failed"))
PUSHES = (("Try a deeper network", "deeper"), ("Release", "release"), ("Train longer", "main"))
OUTCOMES = ("ran",) * 7 + ("nothing-matched",) * 4 + ("superseded", "duplicate", "failed")


@pytest.mark.skipif("PICTURE" not in os.environ, reason="only `make picture` takes the picture")
def test_the_picture_is_taken(tmp_path: Path) -> None:
    """Of the overview of a gateway with a day of deliveries; small enough for the README."""
    with (
        GitHost(tmp_path / "git") as host,
        Service(tmp_path / "data") as service,
        running_browser() as browser,
    ):
        for number, name in enumerate(NAMES):
            push(service, Project(host, tmp_path, name), REPORTS[number])
        with (
            closing(Database(f"sqlite:///{tmp_path}/data/pushgate.db")) as database,
            database.writing() as conn,
        ):
            spread_over_a_day(conn)
        with browser.new_context(
            base_url=service.url, viewport={"width": 1280, "height": 1000}, reduced_motion="reduce"
        ) as context:
            page = context.new_page()
            page.goto("/")
            sign_in(page)
            page.get_by_role("heading", name="The last 24 hours").wait_for()
            page.screenshot(path=PICTURE)
    assert PICTURE.stat().st_size < MAX_BYTES


def push(service: Service, project: Project, reports: tuple[str, ...]) -> None:
    """Push to a few branches of a repository; its runner reports these states."""
    connection = service.connect(project.url, "train@main", "evaluate@release", name=project.name)
    before = project.first
    for message, ref in (
        ("Try a deeper network", "deeper"),
        ("Release", "release"),
        ("Train longer", "main"),
    ):
        pushed = project.push(message, {"valohai.yaml": VALOHAI_YAML, "train.py": f"print({message!r})\n"})
        _, answer = service.deliver(connection, project.payload(before, pushed, f"refs/heads/{ref}"))
        service.settled(answer["delivery"])
        before = pushed
    execution = service.api.get("/executions", connection=connection["id"])["items"][0]
    for sequence, state in enumerate(reports):
        report(execution, state, sequence)
    wait_for(
        lambda: service.api.get(f"/executions/{execution['id']}")["state"] == reports[-1], "it is reported"
    )


def report(execution: Any, state: str, sequence: int) -> None:
    """Report a state as a runner does."""
    at = datetime.now(UTC).isoformat()
    body = {"id": execution["id"], "state": state, "at": at, "sequence": sequence}
    if state == "succeeded":
        body["summary"] = "accuracy 0.984 after 3 epochs"
    with urllib.request.urlopen(execution["message"]["status_url"], json.dumps(body).encode()):  # noqa: S310
        pass


def spread_over_a_day(conn: sqlalchemy.Connection) -> None:
    """Store deliveries of the last day like the newest one, with other outcomes."""
    chance, now = random.Random(22), datetime.now(UTC)  # noqa: S311 - a picture
    newest = select(deliveries).order_by(deliveries.c.id.desc()).limit(1)
    delivery = dict(conn.execute(newest).mappings().one())
    moved = select(ref_updates).where(ref_updates.c.delivery == delivery["id"])
    update = dict(conn.execute(moved).mappings().one())
    del update["seq"]
    for number, (received_at, outcome) in enumerate(_times(chance, now)):
        new = delivery_id(received_at)
        changes = {"id": new, "received_at": received_at, "outcome": outcome}
        conn.execute(
            insert(deliveries).values({**delivery, **changes, "provider_delivery_id": f"earlier-{number}"})
        )
        fetched_at = received_at + timedelta(seconds=chance.uniform(0.2, 0.9))
        settled_at = fetched_at + timedelta(seconds=chance.uniform(0.02, 0.2))
        earlier = {
            "delivery": new,
            "generation": -number - 1,
            "fetched_at": fetched_at,
            "settled_at": settled_at,
        }
        conn.execute(insert(ref_updates).values({**update, **earlier}))


def _times(chance: random.Random, now: datetime) -> Iterator[tuple[datetime, str]]:
    """Yield when deliveries were received, more of them by day, with their outcomes."""
    for hour in range(24, 0, -1):
        busy = 4 if 8 <= (now.hour - hour) % 24 <= 18 else 1
        for _ in range(chance.randrange(busy, 4 * busy)):
            yield now - timedelta(hours=hour, seconds=-chance.randrange(60, 3500)), chance.choice(OUTCOMES)
