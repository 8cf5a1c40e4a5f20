"""The published specifications: JSON Schema of each message, AsyncAPI, and OpenAPI."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api import openapi
from gateway.api.openapi import Operation
from gateway.api.root_paths import SCHEMA_NAMES
from gateway.errors import NotFound
from gateway.messages.events import EVENTS, event_schema
from gateway.messages.execution_cancelled import cancelled_schema
from gateway.messages.execution_request import schema
from gateway.messages.execution_status import status_schema
from gateway.messages.names import EventName
from gateway.publish.asyncapi import document
from gateway.publish.cloudevents import ContentMode
from gateway.publish.topology import Topology

SCHEMAS = dict(
    zip(
        SCHEMA_NAMES,
        (schema(), status_schema(), cancelled_schema(), *map(event_schema, EVENTS)),
        strict=True,
    )
)
"""The JSON Schema of each message's body, by the name under which it is served."""

_BY_ID = {schema["$id"].rpartition("/")[2].removesuffix(".json"): schema for schema in SCHEMAS.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The endpoints of the documents, which contain no secrets and need no token."""

    topology: Topology
    mode: ContentMode
    events: Sequence[EventName]
    operations: Sequence[Operation]
    base_url: str

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/schemas/{name}.json", self.show_schema, methods=["GET"]),
            Route("/asyncapi.json", self.show_document, methods=["GET"]),
            Route("/openapi.json", self.show_operations, methods=["GET"]),
        ]

    async def show_schema(self, request: Request) -> Response:
        """`GET /schemas/{name}.json`: the JSON Schema of a message's body."""
        name = request.path_params["name"]
        # The `$id` of a schema, which messages name, ends with its version.
        schema = SCHEMAS.get(name) or _BY_ID.get(name)
        if schema is None:
            raise NotFound(f"unknown schema {name}: choose {', '.join(SCHEMAS)}")
        return JSONResponse(schema, media_type="application/schema+json")

    async def show_document(self, _request: Request) -> Response:
        """`GET /asyncapi.json`: the AsyncAPI document of what this gateway publishes."""
        described = document(topology=self.topology, modes=(self.mode,), events=self.events)
        return JSONResponse(described, media_type="application/vnd.aai.asyncapi+json;version=3.0.0")

    async def show_operations(self, _request: Request) -> Response:
        """`GET /openapi.json`: the OpenAPI document of the REST API."""
        described = openapi.document(self.operations, version=version("pushgate"), base_url=self.base_url)
        return JSONResponse(described)
