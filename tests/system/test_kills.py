"""SIGKILL at random moments under load: each delivery answered with 202 is published, under one id.

`make soak` does a thousand rounds; `make test` a few.
"""

import asyncio
import json
import os
import random
import threading
import urllib.request
import uuid
from collections import defaultdict
from pathlib import Path

from gateway.cli.api_client import ApiError
from testing.broker import Broker
from testing.service import Project, Service, wait_for
from tests.publish.runner import Runner

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "4"))
PUSHES = 6


def test_killed_again_and_again_nothing_is_lost_and_nothing_has_two_ids(
    tmp_path: Path, project: Project, broker: Broker
) -> None:
    """A consumer counts; the seed is printed, so that a failure can be reproduced."""
    seed = int(os.environ.get("SOAK_SEED", uuid.uuid4().int % 10**6))
    print(f"seed {seed}, {ROUNDS} rounds")  # noqa: T201 - pytest shows it where the test fails
    dice = random.Random(seed)  # noqa: S311 - to be had again, not to be secret
    queue = f"kills-{uuid.uuid4().hex}"
    service = Service(tmp_path / "data", AMQP_URL=broker.url, AMQP_EXCHANGE=queue, AMQP_QUEUE=queue)
    with service:
        connection = service.connect(project.url, "train@main")
    before, answered = project.first, []
    for number in range(ROUNDS):
        commits = [
            project.tree.commit(f"Round {number}, {one}", {"train.py": f"{number} {one}"})
            for one in range(PUSHES)
        ]
        project.tree.push()
        service.start()
        killing = threading.Timer(dice.uniform(0.01, 0.6), service.kill)
        killing.start()
        for commit in commits:
            try:
                status, _ = service.deliver(connection, project.payload(before, commit))
            except ApiError:
                break  # killed during the request: GitHub would show a failed delivery
            if status == 202:
                answered.append(commit)
            before = commit
        killing.join()
    with service:
        wait_for(lambda: _is_done(service), "everything is published", seconds=60 + ROUNDS)
        ids = asyncio.run(_arrived(broker, queue))
    assert set(answered) <= set(ids)
    assert {commit: len(found) for commit, found in ids.items()} == dict.fromkeys(ids, 1)


def _is_done(service: Service) -> bool:
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        lines = answered.read().decode().splitlines()
    return {"pushgate_pending_ref_updates 0.0", "pushgate_pending_requests 0.0"} <= set(lines)


async def _arrived(broker: Broker, queue: str) -> dict[str, set[str]]:
    """Return the ids of the requests for each commit."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    async with Runner(broker.url) as runner:
        for message in await runner.rest(queue):
            ids[json.loads(message.body)["commit"]["id"]].add(message.message_id or "")
    return dict(ids)
