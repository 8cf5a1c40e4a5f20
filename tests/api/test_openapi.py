"""The OpenAPI document: it is valid for other tools, and the REST API answers accordingly."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from testing.corpus import CORPUS
from testing.documents import PUBLIC_URL
from testing.service import Project, Service

IN_DOCS = Path(__file__).parents[2] / "docs" / "openapi.json"
SCHEMA = "#/components/schemas/"


def document() -> Any:
    """Return the document in docs/."""
    return json.loads(IN_DOCS.read_text(encoding="utf-8"))


def test_the_document_is_valid_and_the_one_in_docs(service: Service) -> None:
    """By an independent validator. If it differs: write the served document to the file, and review it."""
    with urllib.request.urlopen(f"{service.url}/openapi.json") as answer:  # noqa: S310 - our own gateway
        served = json.load(answer)
    assert [server["url"] for server in served["servers"]] == [service.url]
    served["servers"][0]["url"] = PUBLIC_URL
    assert served == document()
    validate(served)
    served["paths"]["/api/v1/connections"]["get"]["responses"] = {"fine": {}}
    with pytest.raises(OpenAPIValidationError):
        validate(served)


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each object in the document, but for those in examples."""
    if isinstance(value, list):
        for inner in value:
            yield from parts(inner)
    if isinstance(value, dict):
        yield value
        for key, inner in value.items():
            if key != "examples":
                yield from parts(inner)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the operations: path, method, description."""
    paths = document()["paths"]
    return [(path, method, each) for path, item in paths.items() for method, each in item.items()]


def test_everything_has_a_description() -> None:
    """Each property, parameter, operation, tag and response; a shape that is referred to has its own."""
    found = document()

    def described(part: Any) -> bool:
        if "$ref" in part and "description" not in part:
            part = reduce(getitem, part["$ref"].split("/")[1:], found)
        return bool(part.get("description"))

    shapes = found["components"]["schemas"].items()
    # A constant is described by the variants that it tells apart.
    lacking = [
        (name, key)
        for name, shape in shapes
        for key, part in shape.get("properties", {}).items()
        if not described(part) and "const" not in part and not {"oneOf", "anyOf"} & set(part)
    ]
    lacking += [(name, "itself") for name, shape in shapes if not described(shape)]
    for path, method, operation in operations():
        parameters = operation.get("parameters", ())
        lacking += [(path, each["name"]) for each in parameters if not described(each)]
        lacking += [(path, status) for status, each in operation["responses"].items() if not described(each)]
        assert operation["summary"][0].isupper(), (path, method)
    assert lacking == []
    tags = [tag["name"] for tag in found["tags"] if described(tag)]
    assert {tag for _, _, operation in operations() for tag in operation["tags"]} == set(tags)
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))


def test_requests_and_answers_have_the_fields_that_clients_type() -> None:
    """Generators take a default for a required field; in an answer each field is always there."""
    shapes = document()["components"]["schemas"]
    assert [part for part in parts(shapes) if "default" in part] == []
    assert shapes["NewConnection"]["required"] == ["provider", "url", "project"]
    assert shapes["NewTrigger"]["required"] == ["name", "run"]
    for name in ("Trigger", "ConnectionView", "DeliveryView", "ExecutionView", "ExecutionRequest"):
        assert shapes[name]["required"] == list(shapes[name]["properties"]), name
    assert shapes["ConnectionView"]["properties"]["triggers"]["items"] == {"$ref": SCHEMA + "Trigger"}
    assert shapes["NewConnection"]["properties"]["triggers"]["items"] == {"$ref": SCHEMA + "NewTrigger"}
    assert shapes["ExecutionView"]["properties"]["message"]["$ref"] == SCHEMA + "ExecutionRequest"
    listed = document()["paths"]
    queries = {
        each["name"]: each["schema"]
        for path in ("deliveries", "executions", "packages/{id}")
        for each in listed[f"/api/v1/{path}"]["get"]["parameters"]
    }
    for name, shape, view in (
        ("verdict", "Verdict", "DeliveryView"),
        ("state", "ExecutionState", "ExecutionView"),
        ("format", "PackageFormat", "ConnectionView"),
    ):
        assert queries[name] == {"$ref": SCHEMA + shape}
        field = "package_format" if name == "format" else name
        assert shapes[view]["properties"][field]["$ref"] == SCHEMA + shape
        assert len(shapes[shape]["enum"]) > 1


def test_examples_are_valid() -> None:
    """Each example of a shape or a field is what its schema describes."""
    found = document()
    examples = [(part, example) for part in parts(found) for example in part.get("examples", ())]
    assert len(examples) > 10
    for schema, example in examples:
        conform(example, schema, found)


def conform(value: Any, schema: dict[str, Any], found: Any) -> None:
    """Check a value against a schema of the document."""
    jsonschema.Draft202012Validator({**schema, "components": found["components"]}).validate(value)


def held(value: Any, method: str, path: str, status: int, base: str = "/api/v1") -> None:
    """Check an answer against the document."""
    found = document()
    answer = found["paths"][base + path][method.lower()]["responses"][str(status)]
    if "$ref" in answer:
        answer = reduce(getitem, answer["$ref"].split("/")[1:], found)
    [content] = answer["content"].values()
    conform(value, content["schema"], found)


def asked(
    method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> tuple[int, bytes, Message]:
    """Send a request; return the status, the body and the headers of the answer."""
    request = urllib.request.Request(url, body, dict(headers), method=method)  # noqa: S310 - our own gateway
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Service]:
    """Start a gateway that takes only small webhooks."""
    with Service(tmp_path / "data", BODY_LIMIT="10000") as service:
        yield service


def test_errors_are_as_it_says(small: Service, project: Project) -> None:
    """Each answer has a status and a shape that its operation documents, whatever is wrong."""
    service = small
    made = service.connect(project.url, "train@*")
    api, known = f"{service.url}/api/v1", {"authorization": f"Bearer {service.admin_token}"}
    new = {"provider": "github", "url": project.url, "project": "digits"}
    cases: list[tuple[str, str, str, dict[str, Any] | None, int]] = [
        ("GET", "/connections/{id}", "/connections/none", None, 404),
        ("GET", "/executions", "/executions?delivery=none", None, 404),
        ("GET", "/deliveries", "/deliveries?verdict=fine", None, 422),
        ("POST", "/connections", "/connections", new, 409),
        ("POST", "/connections", "/connections", {**new, "triggers": [{"name": "train"}]}, 422),
        ("GET", "/explain", "/explain?what=none", None, 404),
    ]
    for method, path, sent, body, status in cases:
        found = asked(method, api + sent, known, None if body is None else json.dumps(body).encode())
        assert found[0] == status, sent
        held(json.loads(found[1]), method, path, status)
    # Answered by the announced length: a client that still sends may lose the answer.
    found = asked("POST", f"{api}/connections", {**known, "content-length": "2000000"}, b"{}")
    assert found[0] == 413
    held(json.loads(found[1]), "POST", "/connections", 413)
    for _ in range(11):
        status, answer, headers = asked("GET", f"{api}/connections", {"authorization": "Bearer wrong"})
        held(json.loads(answer), "GET", "/connections", status)
    assert (status, "Retry-After" in headers) == (429, True)
    hook = "/hooks/{connection}"
    refusals: list[tuple[str, bytes, dict[str, str], int]] = [
        (made["path"], b"{", {}, 400),
        (made["path"], b"{}", {"content_type": "text/plain"}, 415),
        (made["path"], b"{}", {"content_encoding": "gzip"}, 415),
        (made["path"], b"{}", {"x_hub_signature_256": "sha256=00"}, 401),
        ("/hooks/none", b"{}", {}, 404),
        (made["path"], b"{}", {"content_length": "10001"}, 413),
        (made["path"], project.payload(None, project.first), {}, 202),
    ]
    for path, content, changes, status in refusals:
        answered = service.deliver({**made, "path": path}, content, **changes)
        assert answered[0] == status
        held(answered[1], "POST", hook, status, base="")
    status, answer = service.deliver(made, b'{"zen": "Design for failure."}', event="ping")
    assert status == 200
    held(answer, "POST", hook, 200, base="")


def test_packages_are_as_it_says(service: Service, project: Project) -> None:
    """A file, a part of it, nothing new, and every refusal has its status, content type and headers."""
    made = service.connect(project.url, "train@*")
    _, answer = service.deliver(made, project.payload(None, project.first))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    package = execution["message"]["package"]
    url = f"{service.url}/api/v1/packages/{package['id']}"
    known = {"authorization": f"Bearer {service.admin_token}"}
    etag = f'"{package["sha256"]}"'
    item = document()["paths"]["/api/v1/packages/{id}"]
    for method, sent, headers, status in (
        ("GET", url, known, 200),
        ("GET", url, {**known, "accept": "application/octet-stream"}, 200),
        ("GET", url, {**known, "range": "bytes=0-9"}, 206),
        ("GET", url, {**known, "if-none-match": etag}, 304),
        ("GET", url, {**known, "range": "bytes=999999-"}, 416),
        ("GET", f"{url}?expires=1&signature=none", {}, 403),
        ("GET", f"{url}?format=zip", known, 404),
        ("GET", f"{url}?name=x", known, 422),
        ("GET", url, {}, 401),
        ("HEAD", url, known, 200),
        ("HEAD", url, {**known, "if-none-match": etag}, 304),
        ("HEAD", url, {}, 401),
    ):
        found = asked(method, sent, headers)
        assert found[0] == status, (sent, headers)
        described = item[method.lower()]["responses"][str(status)]
        if status >= 400 and method == "GET":
            held(json.loads(found[1]), "GET", "/packages/{id}", status)
        if status < 400:
            assert [name for name in described["headers"] if name not in found[2]] == [], status
        if status in {200, 206} and method == "GET":
            kind = headers.get("accept", "application/gzip")
            assert found[2]["content-type"] == kind
            assert kind in described["content"]
            assert len(found[1]) == (package["size"] if status == 200 else 10)


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
    # About other repositories, and so without ref updates; each has its own detail.
    for case, event in (("pull-request-opened", "pull_request"), ("repository-renamed", "repository")):
        body = (CORPUS / "github" / case / "body").read_bytes()
        _, answer = service.deliver(made, body, event=event)
        other = service.api.get(f"/deliveries/{answer['delivery']}")
        assert other["detail"] is not None
        held(other, "GET", "/deliveries/{id}", 200)
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
        ("POST", "/connections/{id}/check", f"{connection}/check", 200),
        ("POST", "/connections/{id}/plan", f"{connection}/plan", 200),
        ("POST", "/deliveries/{id}/replay", f"/deliveries/{delivery['id']}/replay", 202),
    ):
        held(service.api.send(method, sent), method, path, status)
