"""GitHub's own examples and GitHub's own signer, from npm: fetched here, never committed.

They are MIT-licensed: https://github.com/octokit/webhooks and https://github.com/octokit/webhooks-methods.js
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from providers import github
from testing.corpus import NOW, SECRET
from testing.npm import installed

EXAMPLES = "@octokit/webhooks-examples@7.6.1"
METHODS = "@octokit/webhooks-methods@6.0.0"
SIGN = """
const { sign, verify } = await import(process.argv[1]);
let input = "";
for await (const chunk of process.stdin) input += chunk;
const { secret, bodies, signatures } = JSON.parse(input);
const theirs = [], taken = [];
for (const [index, body] of bodies.entries()) {
  theirs.push(await sign(secret, body));
  taken.push(await verify(secret, body, signatures[index]));
}
console.log(JSON.stringify({ theirs, taken }));
"""


@pytest.fixture(scope="module")
def packages(request: pytest.FixtureRequest) -> Path:
    """Return the folder of GitHub's packages."""
    return installed(request.config.cache, EXAMPLES, METHODS) / "@octokit"


@pytest.fixture(scope="module")
def examples(packages: Path) -> list[tuple[str, Any]]:
    """Give GitHub's examples, github.com's and Enterprise Server's: the event's name and the payload."""
    return [
        (event["name"], payload)
        for index in sorted(packages.glob("webhooks-examples/*/index.json"))
        for event in json.loads(index.read_bytes())
        for payload in event["examples"]
    ]


def test_every_example_of_github_goes_through(examples: list[tuple[str, Any]]) -> None:
    """Pushes have updates, pings are pings, and every other event is an Event without updates."""
    seen: dict[str, int] = {}
    for name, payload in examples:
        body = json.dumps(payload).encode()
        headers = github.sign(event=name, body=body, secret=SECRET, delivery="d1", now=NOW)
        delivery = github.verify(headers=headers, body=body, secrets=[SECRET], auth={}, now=NOW)
        event = github.parse(delivery)
        seen[name] = seen.get(name, 0) + 1
        if name == "push":
            assert event.kind == "push"
            assert [update.ref for update in event.updates] == [payload["ref"]]
        elif event.kind == "merge_group":
            assert [update.after for update in event.updates] == [payload["merge_group"]["head_sha"]]
        else:
            assert event.updates == ()
            assert event.kind == {"ping": "ping"}.get(name, event.kind)
    assert {"push", "create", "delete", "ping", "pull_request", "repository"} <= set(seen)
    assert sum(seen.values()) > 500


def test_octokit_and_we_take_what_the_other_signs(packages: Path, examples: list[tuple[str, Any]]) -> None:
    """GitHub's own library verifies our signatures, and signs as we do."""
    signer = packages / "webhooks-methods" / "dist-node" / "index.js"
    bodies = [json.dumps(payload, ensure_ascii=False) for _, payload in examples[::25]] + ["{}", "ä模🚀"]
    signatures = [
        github.sign(event="push", body=body.encode(), secret=SECRET, delivery="d1", now=NOW)[
            "x-hub-signature-256"
        ]
        for body in bodies
    ]
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", SIGN, signer.as_uri()],
        input=json.dumps({"secret": SECRET.decode(), "bodies": bodies, "signatures": signatures}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"theirs": signatures, "taken": [True] * len(bodies)}
