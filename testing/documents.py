"""Write the machine-readable documents in docs/, and the examples in them: `python -m testing.documents`.

Each one is made from the code, and a test compares it with the file. Read the difference as a consumer would
before you commit it.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from gateway.messages.events import event_schema
from gateway.messages.execution_request import schema
from gateway.publish.asyncapi import document
from gateway.publish.topology import Topology
from testing.example import messages
from testing.service import Command

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs"
EXAMPLES = ROOT / "gateway" / "messages" / "examples"
PUBLIC_URL = "https://pushgate.example.com"
"""Where the gateway of the OpenAPI document in docs/ is."""


def main() -> None:
    """Write the examples of messages, the OpenAPI document, the AsyncAPI document and the JSON Schemas."""
    # First, because the schemas contain them.
    for name, examples in messages().items():
        _write(EXAMPLES / f"{name}.json", examples)
    with (
        tempfile.TemporaryDirectory() as folder,
        Command(Path(folder), PUBLIC_URL=PUBLIC_URL) as service,
        urllib.request.urlopen(f"{service.url}/openapi.json") as answer,  # noqa: S310 - our own gateway
    ):
        openapi = json.load(answer)
    documents = {
        "openapi.json": openapi,
        "asyncapi.json": document(topology=Topology()),
        "execution-request.schema.json": schema(),
        "push-fetched.schema.json": event_schema("push.fetched"),
        "delivery-failed.schema.json": event_schema("delivery.failed"),
    }
    for name, content in documents.items():
        _write(FOLDER / name, content)


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
