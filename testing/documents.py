"""Write the machine-readable documents in docs/: `python -m testing.documents`.

Each one is made from the code, and a test compares it with the file. Read the difference as a consumer would
before you commit it.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

from gateway.messages.events import event_schema
from gateway.messages.execution_request import schema
from gateway.publish.asyncapi import document
from gateway.publish.topology import Topology
from testing.service import Command

FOLDER = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write the OpenAPI document, the AsyncAPI document and the JSON Schemas."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Command(Path(folder)) as service,
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
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (FOLDER / name).write_text(f"{text}\n", encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
