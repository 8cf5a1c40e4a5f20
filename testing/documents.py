"""Write what is made from the code: references, documents for machines, examples of messages.

    python -m testing.documents

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
from gateway.messages.execution_cancelled import cancelled_schema
from gateway.messages.execution_request import schema
from gateway.messages.execution_status import status_schema
from gateway.publish.asyncapi import document
from gateway.publish.topology import Topology
from testing.chart_values import values_page
from testing.example import messages
from testing.grafana import dashboard
from testing.grafana_panels import ROWS
from testing.references import commands_page, metrics_table, settings_page
from testing.rights import rights_table
from testing.service import Command

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs"
EXAMPLES = ROOT / "gateway" / "messages" / "examples"
GUIDE = FOLDER / "message.md"
"""The guide for authors of runners: an example follows each comment such as `<!-- example: step -->`."""
DASHBOARD = ROOT / "helm" / "dashboards" / "pushgate.json"
"""The Grafana dashboard of the chart."""
PUBLIC_URL = "https://pushgate.example.com"
"""Where the gateway of the OpenAPI document in docs/ is."""
CHART_README = ROOT / "helm" / "README.md"
_GUIDE_WIDTH = 120


def main() -> None:
    """Write the references, the dashboard, the examples of messages with their guide, and the documents."""
    for page, text in references().items():
        _write_text(FOLDER / page, text)
    _write_text(CHART_README, values_page())
    _write(DASHBOARD, dashboard(ROWS))
    # First, because the schemas contain them.
    for name, examples in messages().items():
        _write(EXAMPLES / f"{name}.json", examples)
    _write_text(GUIDE, with_examples(GUIDE.read_text(encoding="utf-8")))
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
        "execution-status.schema.json": status_schema(),
        "execution-cancelled.schema.json": cancelled_schema(),
        "push-fetched.schema.json": event_schema("push.fetched"),
        "delivery-failed.schema.json": event_schema("delivery.failed"),
    }
    for name, content in documents.items():
        _write(FOLDER / name, content)


def references() -> dict[str, str]:
    """Return the pages for people that are made from the code, or contain a part that is, by their names."""
    return {
        "settings.md": settings_page(),
        "commands.md": commands_page(),
        "connect.md": _with_part("connect.md", "rights", rights_table()),
        "observability.md": _with_part("observability.md", "metrics", metrics_table()),
    }


def _with_part(name: str, part: str, text: str) -> str:
    """Return a page with this text between the two comments that name the part."""
    page = (FOLDER / name).read_text(encoding="utf-8")
    begin, end = f"<!-- {part}: made by `make documents` -->\n", f"<!-- end of {part} -->\n"
    start = page.index(begin) + len(begin)
    return f"{page[:start]}\n{text}\n{page[page.index(end, start) :]}"


def with_examples(guide: str) -> str:
    """Return the guide with the examples of execution requests that the planner makes now."""
    for example in messages()["execution-request"]:
        block = f"<!-- example: {example['execution']['kind']} -->\n\n```json\n"
        start = guide.index(block) + len(block)
        end = guide.index("\n```\n", start)
        guide = guide[:start] + _compact(example) + guide[end:]
    return guide


def _compact(value: Any, *, indent: str = "", used: int = 0) -> str:
    """Return JSON in which each list or object that fits in a line is in one line."""
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or len(indent) + used + len(text) <= _GUIDE_WIDTH:
        return text
    inner = f"{indent}  "
    if isinstance(value, dict):
        keys = {f"{json.dumps(key, ensure_ascii=False)}: ": item for key, item in value.items()}
        lines = [key + _compact(item, indent=inner, used=len(key) + 1) for key, item in keys.items()]
        brackets = "{}"
    else:
        lines = [_compact(item, indent=inner, used=1) for item in value]
        brackets = "[]"
    body = ",\n".join(f"{inner}{line}" for line in lines)
    return f"{brackets[0]}\n{body}\n{indent}{brackets[1]}"


def _write(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
