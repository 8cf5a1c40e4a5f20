"""This version opens the databases of earlier ones, and completes what was in flight.

Every earlier schema is made by its own migrations, and its rows are written as it has them. If you add a
migration, the previously newest schema is tested automatically. If that schema holds something new that
can be in flight, add it to `in_flight`, from that revision on.
"""

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import zstandard
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, insert, text

from gateway.crypto.keyring import Keyring
from gateway.store.database import Database
from gateway.store.migrate import migrations
from testing.broker import Broker
from testing.service import Project, Service, wait_for
from tests.publish.runner import Runner

KEY, SECRET = "s" * 32, "the webhook secret"
SOON = timedelta(seconds=2)


def in_flight(revision: str, project: Project, commit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the rows of a connection made under a revision, by table.

    Its first push was planned and not published. The second, to `commit`, was being worked on when the
    process died.
    """
    now = datetime.now(UTC)
    name = f"of-{revision}"
    yield (
        "connections",
        {
            "id": name,
            "name": project.name,
            "provider": "github",
            "url": project.url,
            "project": "digits",
            "auth": {},
            "triggers": [{"name": "train@main", "branches": ["main"], "run": {"step": "train"}}],
            "yaml_path": "valohai.yaml",
            "created_at": now,
            "updated_at": now,
        },
    )
    sealed = Keyring(KEY).seal(SECRET.encode(), context=f"connection {name}")
    yield "secrets", {"connection": name, "sealed": sealed, "created_at": now}
    moves = [(None, project.first, "planned"), (project.first, commit, "pending")]
    for number, (before, after, state) in enumerate(moves):
        body = project.payload(before, after)
        yield (
            "deliveries",
            {
                "id": f"{name}-{number}",
                "connection": name,
                "source": "webhook",
                "event": "push",
                "provider_delivery_id": f"guid-{number}",
                "received_at": now,
                "verdict": "accepted",
                "headers": {},
                "body": zstandard.compress(body),
            },
        )
        yield (
            "ref_updates",
            {
                "seq": int(revision) * 10 + number,
                "connection": name,
                "delivery": f"{name}-{number}",
                "ref": "refs/heads/main",
                "kind": "branch",
                "name": "main",
                "before": before,
                "after": after,
                "action": "update" if before else "create",
                "commits": [after],
                "generation": number + 1,
                "state": state,
            },
        )
    yield (
        "refs",
        {
            "connection": name,
            "ref": "refs/heads/main",
            "before": project.first,
            "after": commit,
            "generation": 2,
            "delivery": f"{name}-1",
        },
    )
    message = json.dumps({"connection": name, "commit": {"id": project.first}}).encode()
    has_bodies_apart = revision >= "0009"
    yield (
        "executions",
        {
            "id": f"request-{name}",
            "connection": name,
            "delivery": f"{name}-0",
            "ref_update": int(revision) * 10,
            "project": "digits",
            "trigger": "train@main",
            "target": "train",
            "subject": project.name,
            "state": "pending",
            "planned_at": now,
            **({"seq": int(revision) * 10} if has_bodies_apart else {"body": message}),
        },
    )
    if has_bodies_apart:
        yield "execution_bodies", {"execution": int(revision) * 10, "body": message}
    dead = {"owner": "a worker that died", "expires_at": now + SOON}
    yield "leases", {"connection": name, "attempts": 0, "due_at": now, **dead}
    if revision >= "0002":
        table = "reconciliations" if revision >= "0014" else "sweeps"
        yield table, {"connection": name, "due_at": now, "asked": True, "asked_by": f"{name}-1"}


def earlier_revisions(conn: sqlalchemy.Connection) -> list[str]:
    """Return all revisions but the newest, in their order."""
    script = ScriptDirectory.from_config(migrations(conn))
    return [one.revision for one in script.walk_revisions()][:0:-1]


def made_by_earlier_versions(database: Database, project: Project, commit: str) -> list[str]:
    """Bring a database through all earlier schemas, with a connection made in each; return those."""
    with database.reading() as conn:
        revisions = earlier_revisions(conn)
    for revision in revisions:
        database.migrate(revision)
        with database.writing() as conn:
            for name, row in in_flight(revision, project, commit):
                # Following its foreign keys would read most of the schema for each row.
                alone = Table(name, MetaData(), autoload_with=conn, resolve_fks=False)
                conn.execute(insert(alone).values(row))
    if not database.is_embedded:
        with database.writing() as conn:
            for table in ("ref_updates", "executions"):
                query = f"SELECT setval('{table}_seq_seq', max(seq)) FROM {table}"  # noqa: S608 - ours
                conn.execute(text(query))
    return [f"of-{revision}" for revision in revisions]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_earlier_versions_left_in_flight_is_carried_to_its_end(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, project: Project, broker: Broker
) -> None:
    """Leases are taken over, pending updates planned, requests published, in order; secrets are readable."""
    data = tmp_path / "data"
    data.mkdir()
    url = f"sqlite:///{data / 'pushgate.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").database()
    second = project.push("The second model", {"train.py": "print(2)\n"})
    with closing(Database(url)) as database:
        names = made_by_earlier_versions(database, project, second)
    assert len(names) >= 4

    queue = f"upgrade-{uuid.uuid4().hex}"
    settings = {"AMQP_URL": broker.url, "AMQP_EXCHANGE": queue, "AMQP_QUEUE": queue}
    with Service(data, DATABASE_URL=url, SECRET_KEY=KEY, **settings) as service:

        def verdicts(before: str, after: str) -> set[str]:
            endpoints = [{"path": f"/hooks/{name}", "secret": SECRET} for name in names]
            body = project.payload(before, after)
            return {service.deliver(endpoint, body)[1]["verdict"] for endpoint in endpoints}

        assert verdicts(project.first, second) == {"duplicate"}
        for asking in (f"{name}-1" for name in names if name >= "of-0002"):
            wait_for(partial(_was_compared, service, asking), "the reconciliation that it asked for is done")
        # Only now: a reconciliation that is asked for waits for no webhook, and would have found this push
        # first.
        third = project.push("The third model", {"train.py": "print(3)\n"})
        assert verdicts(second, third) == {"accepted"}

        def published() -> bool:
            found = service.api.get("/executions", state="published", limit=200)["items"]
            return len(found) == 3 * len(names)

        wait_for(published, "everything is published")
        messages = [json.loads(body) for body in asyncio.run(arrived(broker, queue))]
    commits = {name: [one["commit"]["id"] for one in messages if one["connection"] == name] for name in names}
    assert commits == {name: [project.first, second, third] for name in names}


def _was_compared(service: Service, delivery: str) -> bool:
    return str(service.api.get(f"/deliveries/{delivery}")["reason"]).startswith("all refs were compared")


async def arrived(broker: Broker, queue: str) -> list[bytes]:
    """Return the bodies of all messages, in the order of their arrival."""
    async with Runner(broker.url) as runner:
        return [one.body for one in await runner.rest(queue)]
