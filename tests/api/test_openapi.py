"""The OpenAPI document: it is valid for other tools, and the REST API answers accordingly."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from testing.service import Project, Service

IN_DOCS = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_document_is_valid_and_the_one_in_docs(service: Service) -> None:
    """By an independent validator. If it differs: write the served document to the file, and review it."""
    with urllib.request.urlopen(f"{service.url}/openapi.json") as answer:  # noqa: S310 - our own gateway
        served = json.load(answer)
    assert served == json.loads(IN_DOCS.read_text())
    validate(served)
    served["paths"]["/api/v1/connections"]["get"]["responses"] = {"fine": {}}
    with pytest.raises(OpenAPIValidationError):
        validate(served)


def held(value: Any, method: str, path: str, status: int) -> None:
    """Check an answer against the document."""
    document = json.loads(IN_DOCS.read_text())
    answer = document["paths"][f"/api/v1{path}"][method.lower()]["responses"][str(status)]
    schema = answer["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_answers_are_as_it_says(service: Service, project: Project) -> None:
    """For each operation that answers with JSON, on records with a value in every field."""
    made = service.connect(project.url, "train@*", "other@*", follows=["**"], networks=["127.0.0.0/8"])
    held(made, "POST", "/connections", 201)
    with pytest.raises(jsonschema.ValidationError):
        held({**made, "secrets": None}, "POST", "/connections", 201)
    connection = f"/connections/{made['id']}"
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(made, project.payload(project.first, pushed))
    delivery = service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    for path, shown in (
        ("/connections", "/connections"),
        ("/connections/{id}", connection),
        ("/connections/{id}/refs", f"{connection}/refs"),
        ("/deliveries", "/deliveries?limit=1"),
        ("/deliveries/{id}", f"/deliveries/{delivery['id']}"),
        ("/executions", "/executions"),
        ("/executions/{id}", f"/executions/{execution['id']}"),
        ("/explain", f"/explain?what={pushed}"),
    ):
        held(service.api.get(shown), "GET", path, 200)
    for method, path, sent, status in (
        ("PATCH", "/connections/{id}", connection, 200),
        ("POST", "/connections/{id}/rotate-secret", f"{connection}/rotate-secret", 200),
        ("POST", "/connections/{id}/fetch", f"{connection}/fetch", 202),
        ("POST", "/connections/{id}/plan", f"{connection}/plan", 200),
        ("POST", "/deliveries/{id}/replay", f"/deliveries/{delivery['id']}/replay", 202),
    ):
        held(service.api.send(method, sent), method, path, status)
