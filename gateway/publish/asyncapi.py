"""The AsyncAPI document: all published messages, and the reports that are taken, from models and topology.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
https://github.com/asyncapi/bindings/tree/master/amqp
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.messages.events import EVENTS
from gateway.messages.execution_cancelled import ExecutionCancelled
from gateway.messages.execution_request import TYPE, ExecutionRequest
from gateway.messages.execution_status import STATUS_TYPE, ExecutionStatus
from gateway.messages.names import (
    EXECUTION_CANCELLED,
    EXECUTION_REQUEST_SCHEMA,
    EXECUTION_REQUEST_VERSION,
    EXECUTION_REQUESTED,
    EXECUTION_STATUS,
    EXECUTION_STATUS_SCHEMA,
    LANE_PREFIX,
    EventName,
    message_type,
    schema_name,
)
from gateway.messages.schema import Part, StandardSchema, examples
from gateway.publish.cloudevents import (
    CONTENT_TYPES,
    PARTITION_HEADER,
    REDRIVE,
    ContentMode,
    Stored,
    message,
)
from gateway.publish.topology import Topology
from gateway.store.events import StoredEvent
from gateway.store.executions import StoredRequest

_BINDING = {"bindingVersion": "0.3.0"}
_TRACE = {
    "type": "string",
    "description": "W3C trace context: one trace for a delivery, one span for each message",
}
_REDRIVE = {
    "type": "integer",
    "description": "how often an operator has republished this request; not in its first message",
}
_PROPERTIES = {
    "message_id": "the id: the same in every repetition",
    "correlation_id": "the delivery's id in Pushgate",
    "type": "the CloudEvents type",
    "app_id": "pushgate",
    "delivery_mode": "2, persistent",
    "timestamp": "the CloudEvents time, in whole seconds",
}
_EXAMPLE_COMMIT = "9d4f1e7c0b52a8c63f20d1e5a7b9c4d8e6f31a20"
_EXAMPLE_TIME = datetime(2026, 5, 4, 12, 31, tzinfo=UTC)
_PROJECT = {"description": "the platform's project; blanks, dots and wildcards in names become _"}
_TARGET = {"description": "the step, pipeline or task to be executed"}
_INFO = {
    "title": "Pushgate",
    "version": EXECUTION_REQUEST_VERSION,
    "description": "Messages that Pushgate publishes to RabbitMQ, and the reports that it takes from there. "
    "What it publishes are CloudEvents 1.0, persistent and confirmed. They are published at least once; a "
    "repetition has the same id. The messages of a connection are published in the order of its pushes.",
    "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
}
_BROKER = {
    "host": "{broker}",
    "protocol": "amqp",
    "protocolVersion": "0.9.1",
    "description": "RabbitMQ, 3.10 or newer",
    "variables": {"broker": {"description": "host and port of the broker that the gateway publishes to"}},
}
_REQUEST = "executionRequested"
_REPORT = "executionStatus"
_CANCELLATION = "executionCancelled"
_EVENTS: dict[EventName, str] = {"push.fetched": "pushFetched", "delivery.failed": "deliveryFailed"}


def document(
    *,
    topology: Topology,
    modes: Sequence[ContentMode] = ("binary", "structured"),
    events: Sequence[EventName] = tuple(EVENTS),
) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of a gateway with this topology, these content modes and events."""
    names = {
        _REQUEST: TYPE,
        _CANCELLATION: message_type(EXECUTION_CANCELLED),
        **{_EVENTS[event]: message_type(event) for event in events},
    }
    models: dict[str, type[Part]] = {
        _REQUEST: ExecutionRequest,
        _CANCELLATION: ExecutionCancelled,
        **{_EVENTS[event]: EVENTS[event] for event in events},
    }
    channels = {
        **_request_channels(topology, modes),
        _CANCELLATION: _cancellation_channel(topology, modes),
        **{_EVENTS[event]: _event_channel(event, topology, modes) for event in events},
        **_queues(topology, modes),
    }
    return {
        "asyncapi": "3.0.0",
        "info": _INFO,
        "defaultContentType": "application/json",
        "servers": {"broker": _BROKER},
        "channels": {**channels, "reports": _reports(topology)},
        "operations": {**_operations(channels), "receiveReports": _RECEIVE_REPORTS},
        "components": {
            "messages": {
                **{
                    _key(name, mode): _message(models[name], kind, mode)
                    for name, kind in names.items()
                    for mode in modes
                },
                _REPORT: _report(),
            },
            "schemas": _schemas(models.values()),
        },
    }


_RECEIVE_REPORTS = {
    "action": "receive",
    "title": "Take reports of runners",
    "summary": "Runners publish reports to the exchange; the gateway acknowledges each once it is stored.",
    "channel": {"$ref": "#/channels/reports"},
    "messages": [{"$ref": f"#/channels/reports/messages/{_REPORT}"}],
    "bindings": {"amqp": {"ack": True, **_BINDING}},
}


def _reports(topology: Topology) -> dict[str, Any]:
    """Return the queue of the runners' reports."""
    queue = {"name": topology.report_queue, "durable": True, "exclusive": False, "autoDelete": False}
    return {
        "address": topology.report_queue,
        "title": f"The queue {topology.report_queue}",
        "description": f"Receives what runners publish to {topology.exchange} about executions. What cannot"
        f" be read goes to {topology.dead_queue}.",
        "messages": {_REPORT: {"$ref": f"#/components/messages/{_REPORT}"}},
        "bindings": {"amqp": {"is": "queue", "queue": queue, **_BINDING}},
        "x-arguments": topology.report_arguments,
        "x-bound-to": {"exchange": topology.exchange, "routingKey": f"{EXECUTION_STATUS}.#"},
    }


def _report() -> dict[str, Any]:
    """Return the message with a report. A CloudEvent in structured mode is taken as well."""
    return {
        "name": STATUS_TYPE,
        "title": ExecutionStatus.__name__,
        "summary": f"{ExecutionStatus.__doc__} The body alone, or a CloudEvent in either mode.",
        "contentType": CONTENT_TYPES["binary"],
        "payload": {"$ref": f"#/components/schemas/{ExecutionStatus.__name__}"},
        "examples": [
            {"name": f"report-{number}", "payload": body}
            for number, body in enumerate(examples(EXECUTION_STATUS_SCHEMA), 1)
        ],
        "bindings": {"amqp": {"messageType": STATUS_TYPE, **_BINDING}},
    }


def _request_channels(topology: Topology, modes: Sequence[ContentMode]) -> dict[str, Any]:
    words = f"{EXECUTION_REQUESTED}.{{project}}.{{target}}"
    parameters = {"project": _PROJECT, "target": _TARGET}
    lane: dict[str, Any] = {"description": "the priority lane that the trigger names"}
    if topology.lanes:
        lane["enum"] = list(topology.lanes)
    return {
        "executionRequests": {
            "address": words,
            "title": "Execution requests",
            "description": "One for each trigger that matches a push. A request that no queue accepts "
            "is reported as an error and stays in the store.",
            "messages": _references(_REQUEST, modes),
            "parameters": parameters,
            "bindings": _routed(topology),
        },
        "executionRequestsOfLane": {
            "address": f"{LANE_PREFIX}.{{lane}}.{words}",
            "title": "Execution requests of a priority lane",
            "description": f"Requests of triggers that name a lane; its queue is {topology.queue}.{{lane}}.",
            "messages": _references(_REQUEST, modes),
            "parameters": {"lane": lane, **parameters},
            "bindings": _routed(topology),
        },
    }


def _cancellation_channel(topology: Topology, modes: Sequence[ContentMode]) -> dict[str, Any]:
    return {
        "address": f"{EXECUTION_CANCELLED}.{{project}}",
        "title": EXECUTION_CANCELLED,
        "description": f"{ExecutionCancelled.__doc__} Each runner binds a queue of its own, stops the "
        "execution if it has it, and reports how it ended; it ignores what it does not have.",
        "messages": _references(_CANCELLATION, modes),
        "parameters": {"project": _PROJECT},
        "bindings": _routed(topology),
    }


def _event_channel(event: EventName, topology: Topology, modes: Sequence[ContentMode]) -> dict[str, Any]:
    return {
        "address": f"{event}.{{project}}",
        "title": event,
        "description": f"{EVENTS[event].__doc__} Published if PUSHGATE_AMQP_EVENTS names {event}. "
        "Bind a queue of your own: without a queue, the broker drops the event.",
        "messages": _references(_EVENTS[event], modes),
        "parameters": {"project": _PROJECT},
        "bindings": _routed(topology),
    }


def _queues(topology: Topology, modes: Sequence[ContentMode]) -> dict[str, Any]:
    """Return the queues to consume from: for execution requests, for each lane, and for dead letters."""
    found = {}
    for lane, (queue, key) in zip((None, *topology.lanes), topology.queues.items(), strict=True):
        name = "executions" if lane is None else f"executions-{lane}"
        description = (
            f"Receives execution requests{f' of the lane {lane}' if lane else ''}. A message that is "
            f"rejected, or whose delivery fails more than {topology.delivery_limit} times, goes to "
            f"{topology.dead_queue}. Acknowledge a request once it is recorded, and before it runs: the "
            "broker delivers a message again that a consumer holds longer than the queue's time-out."
        )
        exchange, arguments = topology.exchange, topology.arguments
        if not topology.ordered:
            found[name] = _queue(queue, description, modes, exchange=exchange, key=key, arguments=arguments)
        for number, partition in enumerate(topology.partitions(queue), 1):
            found[f"{name}-{number}"] = _queue(
                partition,
                f"{description} One consumer at a time; each connection's requests stay in one partition. "
                "The end of a run, in the runner's own journal, releases the next request.",
                modes,
                exchange=topology.hash_exchange(queue),
                key="1",
                arguments=topology.partition_arguments,
            )
    found["deadLetters"] = _queue(
        topology.dead_queue,
        "Keeps the messages that consumers rejected or failed on, with the reason in the header x-death.",
        modes,
        exchange=topology.dead_exchange,
        key="#",
        arguments=topology.dead_arguments,
    )
    return found


def _queue(
    name: str,
    description: str,
    modes: Sequence[ContentMode],
    *,
    exchange: str,
    key: str,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False}
    return {
        "address": name,
        "title": f"The queue {name}",
        "description": description,
        "messages": _references(_REQUEST, modes),
        "bindings": {"amqp": {"is": "queue", "queue": queue, **_BINDING}},
        "x-arguments": arguments,
        "x-bound-to": {"exchange": exchange, "routingKey": key},
    }


def _routed(topology: Topology) -> dict[str, Any]:
    exchange = {"name": topology.exchange, "type": "topic", "durable": True, "autoDelete": False}
    return {"amqp": {"is": "routingKey", "exchange": exchange, **_BINDING}}


def _operations(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the gateway does with each channel: publish to routing keys, and so fill queues."""
    return {f"send{key[0].upper()}{key[1:]}": _operation(key, channel) for key, channel in channels.items()}


def _operation(key: str, channel: Mapping[str, Any]) -> dict[str, Any]:
    is_queue = channel["bindings"]["amqp"]["is"] == "queue"
    amqp = {"deliveryMode": 2, "mandatory": key not in _EVENTS.values(), "timestamp": True, **_BINDING}
    return {
        "action": "send",
        "title": f"Fill the queue {channel['address']}" if is_queue else f"Publish {channel['title']}",
        "summary": "The exchange routes messages of the gateway to this queue, from which runners consume."
        if is_queue
        else "The gateway publishes messages with this routing key.",
        "channel": {"$ref": f"#/channels/{key}"},
        "messages": [{"$ref": f"#/channels/{key}/messages/{name}"} for name in channel["messages"]],
        "bindings": {"amqp": {"deliveryMode": 2, **_BINDING} if is_queue else amqp},
    }


def _references(name: str, modes: Sequence[ContentMode]) -> dict[str, Any]:
    return {_key(name, mode): {"$ref": f"#/components/messages/{_key(name, mode)}"} for mode in modes}


def _key(name: str, mode: ContentMode) -> str:
    return name if mode == "binary" else f"{name}Structured"


def _message(model: type[Part], kind: str, mode: ContentMode) -> dict[str, Any]:
    data = {"$ref": f"#/components/schemas/{model.__name__}"}
    attributes = _attributes(kind)
    optional = {REDRIVE: _REDRIVE} if model is ExecutionRequest else {}
    if mode == "binary":
        headers = _object(
            {**{f"ce-{name}": schema for name, schema in attributes.items()}, "traceparent": _TRACE},
            {f"ce-{name}": {**schema, "type": "string"} for name, schema in optional.items()},
        )
        payload: dict[str, Any] = data
    else:
        headers = _object({PARTITION_HEADER: attributes["partitionkey"], "traceparent": _TRACE})
        content = {"type": "string", "const": CONTENT_TYPES["binary"]}
        payload = _object({**attributes, "datacontenttype": content, "data": data}, optional)
    return {
        "name": kind,
        "title": model.__name__,
        "summary": f"{model.__doc__} CloudEvents in {mode} mode.",
        "contentType": CONTENT_TYPES[mode],
        "headers": headers,
        "payload": payload,
        "examples": [_example(kind, body, mode) for body in examples(_schema_of(kind))],
        "bindings": {"amqp": {"messageType": kind, **_BINDING}},
        "x-properties": _PROPERTIES,
    }


def _schema_of(kind: str) -> str:
    return EXECUTION_REQUEST_SCHEMA if kind == TYPE else schema_name(_name_of(kind))


def _name_of(kind: str) -> str:
    """Return the name of an event by its type."""
    return next(name for name in (EXECUTION_CANCELLED, *EVENTS) if message_type(name) == kind)


def _example(kind: str, body: Mapping[str, Any], mode: ContentMode) -> dict[str, Any]:
    """Return a message as it is published, with the body of an example."""
    stored = _stored(kind, body)
    made = message(stored, public_url="https://push.example", mode=mode)
    name = body["execution"]["kind"] if isinstance(stored, StoredRequest) else stored.name
    return {
        "name": f"{name}-{mode}".replace(".", "-"),
        "summary": f"{stored.subject}, in {mode} mode",
        "headers": dict(made.headers),
        "payload": json.loads(made.body),
    }


def _stored(kind: str, body: Mapping[str, Any]) -> Stored:
    commit = body.get("commit", _EXAMPLE_COMMIT)
    repository = body.get("repository", {"name": "acme/churn"})
    common: dict[str, Any] = {
        "seq": 1,
        **{name: body[name] for name in ("id", "connection", "delivery", "project")},
        "subject": f"{repository['name']}@{commit['id'] if isinstance(commit, dict) else commit}",
        "body": json.dumps(body, ensure_ascii=False).encode(),
    }
    if kind != TYPE:
        return StoredEvent(name=_name_of(kind), settled_at=_EXAMPLE_TIME, **common)
    return StoredRequest(
        ref_update=1,
        trigger=body["trigger"],
        target=body["execution"]["name"],
        planned_at=_EXAMPLE_TIME,
        **common,
    )


def _attributes(kind: str) -> dict[str, Any]:
    """Return the schemas of the CloudEvents attributes, by their names."""
    return {
        "specversion": {"type": "string", "const": "1.0"},
        "id": {"type": "string", "description": "the same in every repetition: drop ids that you have seen"},
        "source": {"type": "string", "format": "uri", "description": "the connection in the REST API"},
        "type": {"type": "string", "const": kind},
        "subject": {"type": "string", "description": "repository and commit"},
        "time": {"type": "string", "format": "date-time", "description": "when the message was planned"},
        "dataschema": {"type": "string", "format": "uri", "description": "the $id of the data's JSON Schema"},
        "partitionkey": {"type": "string", "description": "the connection: its messages belong together"},
        "traceparent": _TRACE,
    }


def _object(required: dict[str, Any], optional: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _schemas(models: Iterable[type[Part]]) -> dict[str, Any]:
    """Return the schemas of the models and of their parts, by name."""
    _, definitions = models_json_schema(
        [*((model, "serialization") for model in models), (ExecutionStatus, "validation")],
        ref_template="#/components/schemas/{model}",
        schema_generator=StandardSchema,
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas
