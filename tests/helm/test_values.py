"""The values that the chart accepts, and those that it refuses with a helpful message."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm_python import HelmError

from gateway.settings import Settings
from tests.helm.chart import (
    CHART,
    OWN,
    SCHEMA,
    Values,
    manifests,
    merged,
    of_kind,
    pods,
    read_values,
    render,
    value_sets,
)

SHA = "sha256:" + "1" * 64


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema of an object, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _objects(value, f"{path}/{index}")


def test_no_object_is_open() -> None:
    """Every object of the schema refuses unknown keys or defines their form; except foreign ones."""
    open_ones = {path for path, schema in _objects(SCHEMA) if "additionalProperties" not in schema}
    assert open_ones == {"/properties/global", "/definitions/foreign"}


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema itself, in place of a reference to it."""
    while "properties" not in schema and ("$ref" in schema or "allOf" in schema):
        schema = (
            schema["allOf"][0] if "allOf" in schema else SCHEMA["definitions"][schema["$ref"].split("/")[-1]]
        )
    return schema


def _sections(
    values: Values, schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Values, dict[str, Any]]]:
    """Yield each section with fixed keys: its path, its defaults, and the schemas of its keys."""
    properties = _resolved(schema).get("properties")
    if properties is None:
        return
    yield ".".join(path), values, properties
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _sections(value, properties[key], (*path, key))


DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SECTIONS = list(_sections(DEFAULTS, SCHEMA))


@pytest.mark.parametrize("section", [path for path, _, _ in SECTIONS])
def test_unknown_keys_are_refused_everywhere(section: str) -> None:
    """A typing error in any section stops the installation, and is named."""
    values: Values = {"replicaCount": 2}
    for key in reversed([part for part in section.split(".") if part]):
        values = {key: values}
    with pytest.raises(HelmError, match="additional properties 'replicaCount' not allowed"):
        render(values)


# Maps in the form of Kubernetes, of which the chart sets a part.
OF_KUBERNETES = {"resources", "startupProbe", "livenessProbe", "readinessProbe", "strategy", "updateStrategy"}


def test_every_default_has_a_schema() -> None:
    """The schema has the keys that values.yaml contains, unless a map is empty or of Kubernetes."""
    for path, values, properties in SECTIONS:
        if values and not OF_KUBERNETES & set(path.split(".")):
            assert set(values) == set(properties) - {"global"}, path


@pytest.mark.parametrize(
    ("base", "text", "sentence"),
    [
        (
            "minimal",
            "web: {replicas: 2}",
            "mode embedded keeps its state in SQLite, which only one pod can use",
        ),
        (
            "minimal",
            "worker: {replicas: 2}",
            "mode embedded keeps its state in SQLite, which only one pod can use",
        ),
        ("minimal", "web: {autoscaling: {enabled: true}}", "switch autoscaling off"),
        ("minimal", "worker: {autoscaling: {enabled: true, by: pending}}", "switch autoscaling off"),
        ("minimal", "secrets: {databaseUrl: {existingSecret: db}}", "a database is named, but mode embedded"),
        ("minimal", "mode: distributed", "mode distributed needs PostgreSQL"),
        ("production", "secrets: {secretKey: {existingSecret: ''}}", "mode distributed needs one secret key"),
        ("production", "packages: {url: ''}", "mode distributed needs an object store"),
        ("production", "packages: {url: 'file:///packages'}", "at '/packages/url'"),
        (
            "embedded",
            "secrets: {adminToken: {existingSecret: ''}}",
            "connections.items and sources are applied over the REST API",
        ),
        (
            "embedded",
            "connections: {existingSecret: ''}",
            "the webhook secrets of connections.items and sources are files",
        ),
        (
            "embedded",
            "connections: {items: [{name: a, provider: github, url: u, project: p, secret: plain}]}",
            "at '/connections/items/0/secret'",
        ),
        ("minimal", "externalSecret: {enabled: true}", "set externalSecret.storeRef.name"),
        ("minimal", "rabbitmq: {topology: true}", "set rabbitmq.enabled too"),
        ("minimal", "ingress: {enabled: true}", "set ingress.hosts"),
        ("minimal", "httpRoute: {enabled: true}", "set httpRoute.parentRefs"),
        ("minimal", "pod: {mounts: [{mountPath: /x, secret: a, configMap: b}]}", "at '/pod/mounts/0'"),
        ("minimal", "settings: {secretKey: hidden}", "additional properties 'secretKey' not allowed"),
        ("minimal", "publicUrl: hooks.example.com", "at '/publicUrl'"),
        ("minimal", "nameOverride: Hooks", "at '/nameOverride'"),
        ("minimal", f"fullnameOverride: {'a' * 37}", "at '/fullnameOverride'"),
        ("minimal", "pod: {env: {PUSHGATE_PORT: '80'}}", "invalid propertyName 'PUSHGATE_PORT'"),
        ("minimal", "pod: {preStopSeconds: 16}", "raise pod.terminationGracePeriodSeconds"),
        (
            "production",
            "web: {autoscaling: {minReplicas: 10}}",
            "web.autoscaling.minReplicas is more than web.autoscaling.maxReplicas",
        ),
        ("minimal", "mode: cluster", "at '/mode'"),
        (
            "minimal",
            "pod: {labels: {app.kubernetes.io/name: web}}",
            "Kubernetes sets app.kubernetes.io/name itself",
        ),
        ("minimal", "pod: {labels: {helm.sh/chart: a}}", "sets helm.sh/chart itself"),
        (
            "minimal",
            "pod: {labels: {batch.kubernetes.io/job-name: a}}",
            "sets batch.kubernetes.io/job-",
        ),
        ("minimal", "pod: {labels: {team: two words}}", "at '/pod/labels/team'"),
        ("minimal", "pod: {labels: {'two words': ml}}", "invalid propertyName 'two words'"),
        ("minimal", "pod: {nodeSelector: {disk: 'a/b'}}", "at '/pod/nodeSelector/disk'"),
        (
            "minimal",
            "serviceMonitor: {labels: {app.kubernetes.io/instance: a}}",
            "serviceMonitor.labels: ",
        ),
        (
            "minimal",
            "pod: {annotations: {helm.sh/hook: test}}",
            "pod.annotations: the chart sets helm.sh/hook",
        ),
        (
            "minimal",
            "pod: {annotations: {checksum/settings: a}}",
            "pod.annotations: the chart sets checksum/",
        ),
        ("minimal", "pod: {annotations: {'two words': a}}", "invalid propertyName 'two words'"),
        (
            "minimal",
            "worker: {storage: {size: 40Gi}}",
            "for settings.mirrorBudget (53687091200 bytes)",
        ),
        (
            "minimal",
            "worker: {storage: {size: 50Gi}}",
            "for settings.mirrorBudget (53687091200 bytes)",
        ),
        ("minimal", "worker: {storage: {size: 53G}}", "worker.storage.size (53G) has no room"),
        ("minimal", "settings: {mirrorBudget: 107374182400}", "no room for settings.mirrorBudget (10737418"),
        (
            "minimal",
            "worker: {resources: {limits: {memory: 256Mi}}}",
            "worker.resources asks for more memory (384Mi) than its limit (256Mi)",
        ),
        (
            "production",
            "web: {resources: {requests: {cpu: 2500m}}}",
            "asks for more cpu (2500m)",
        ),
        ("minimal", "pod: {mounts: [{mountPath: /tmp/, secret: a}]}", "something is mounted at /tmp already"),
        (
            "minimal",
            "pod: {mounts: [{mountPath: /x, secret: a}, {mountPath: /x, secret: b}]}",
            "something is mounted at /x already",
        ),
        (
            "minimal",
            "{settings: {amqpCaFile: /etc/tls/ca.crt}, pod: {mounts: [{mountPath: /etc/tl, secret: a}]}}",
            "settings.amqpCaFile names /etc/tls/ca.crt, which is in no pod",
        ),
        (
            "minimal",
            "pod: {topologySpreadConstraints: [{topologyKey: a}]}",
            "at '/pod/topologySpreadConstraints/0'",
        ),
        ("minimal", "pod: {priorityClassName: High Priority}", "at '/pod/priorityClassName'"),
        ("minimal", "pod: {user: '10001'}", "at '/pod/user'"),
        (
            "production",
            "{serviceMonitor: {enabled: true}, networkPolicy: {metrics: {from: []}}}",
            "networkPolicy lets nobody scrape workers",
        ),
        ("minimal", "user: platform", "user is now pod.user: move it there"),
        ("minimal", "podLabels: {team: ml}", "podLabels is now pod.labels"),
        ("minimal", "topologySpread: {enabled: false}", "is now pod.topologySpreadConstraints"),
        ("minimal", "commonLabels: {helm.sh/chart: a}", "commonLabels: "),
        ("minimal", "worker: {pod: {labels: {app.kubernetes.io/name: a}}}", "worker.pod.labels: "),
        (
            "minimal",
            "test: {pod: {workloadAnnotations: {helm.sh/hook: a}}}",
            "test.pod.workloadAnnotations: ",
        ),
        ("minimal", "migration: {pod: {preStopSeconds: 1}}", "invalid propertyName 'preStopSeconds'"),
        ("minimal", "pod: {env: {A: {valueFrom: {}, value: a}}}", "at '/pod/env/A'"),
        (
            "minimal",
            "podDisruptionBudget: {maxUnavailable: half}",
            "at '/podDisruptionBudget/maxUnavailable'",
        ),
        ("minimal", "service: {externalTrafficPolicy: Local}", "set service.type to NodePort or LoadBal"),
        ("minimal", "rabbitmq: {tls: {caSecretName: a}}", "its Secret in rabbitmq.tls.secretName"),
        ("minimal", "grafanaDashboard: {labels: {helm.sh/chart: a}}", "grafanaDashboard.labels: "),
        ("minimal", "service: {loadBalancerClass: a/b}", "set service.type to LoadBalancer"),
        (
            "production",
            "{web: {serviceAccount: {name: a}}, worker: {serviceAccount: {name: a}}}",
            "two are named a",
        ),
        (
            "minimal",
            "cloudnativepg: {enabled: true, backup: {enabled: true}}",
            "a database is named, but mode embedded",
        ),
        (
            "operators",
            "cloudnativepg: {backup: {enabled: true}}",
            "name the ObjectStore in cloudnativepg.backup.objectStore",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_installed(base: str, text: str, sentence: str) -> None:
    """Each refusal says what to set."""
    with pytest.raises(HelmError) as refused:
        render(merged(value_sets()[base], read_values(text)))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("size", ["51Gi", "54G", "0.1Ti", "60000000000", "60Gi"])
def test_storage_is_compared_by_what_it_holds(size: str) -> None:
    """In any unit."""
    assert render(read_values(f"worker: {{storage: {{size: {size}}}}}"))


def test_the_budget_that_storage_is_compared_with_is_the_gateways_own() -> None:
    """If none is set."""
    with pytest.raises(HelmError, match=f"mirrorBudget \\({Settings().mirror_budget} bytes\\)"):
        render(read_values("worker: {storage: {size: 1Gi}}"))


def test_labels_beside_the_charts_own_are_let_through() -> None:
    """Also those with the same beginning."""
    (pod,) = [pod for where, pod in pods(of_kind("with-what-a-platform-has", "Deployment"))]
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "platform"


def test_what_production_names_is_there_on_any_cluster() -> None:
    """Kubernetes' own kinds and a route of the Gateway API, and only secrets that the page creates.

    With a missing PriorityClass every pod is refused; with a missing StorageClass pods stay pending.
    """
    found = manifests("production")
    route = ("gateway.networking.k8s.io/v1", "HTTPRoute")
    assert {(one["apiVersion"], one["kind"]) for one in found} - OWN == {route}
    text = json.dumps(found)
    assert [
        word for word in ("priorityClassName", "storageClassName", "runtimeClassName") if word in text
    ] == []
    assert set(re.findall(r'"secretKeyRef": {"name": "(.*?)"', text)) == {"pushgate"}
    page = (CHART.parent / "docs" / "kubernetes.md").read_text()
    assert "kubectl create secret generic pushgate " in page
    assert '"secretRef"' not in text
    assert '"secretName": "pushgate' not in text


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("image: {}", "pushgate:0.1.0"),
        ("image: {tag: '2'}", "pushgate:2"),
        (f"image: {{tag: '2', digest: '{SHA}'}}", f"pushgate@{SHA}"),
    ],
)
def test_a_digest_counts_before_a_tag(text: str, image: str) -> None:
    """With neither, the chart's own version."""
    rendered = render(read_values(text))
    assert f'image: "{image}"' in rendered["pushgate/templates/worker.yaml"]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("publicUrl: https://a.example.com/pushgate", "https://a.example.com/pushgate"),
        (
            "httpRoute: {enabled: true, parentRefs: [{name: g}], hostnames: [b.example.com]}",
            "https://b.example.com",
        ),
        ("ingress: {enabled: true, hosts: [c.example.com]}", "http://c.example.com"),
        ("ingress: {enabled: true, hosts: [c.example.com], tls: [{secretName: c}]}", "https://c.example.com"),
        ("service: {port: 8443}", "http://acme-pushgate.hooks.svc:8443"),
        ("httpRoute: {enabled: true, parentRefs: [{name: g}]}", "http://acme-pushgate.hooks.svc:80"),
    ],
)
def test_webhook_urls_begin_with_what_is_exposed(text: str, url: str) -> None:
    """In the settings, and in the notes after the installation."""
    rendered = render(read_values(text))
    settings = yaml.safe_load(rendered["pushgate/templates/settings.yaml"])["data"]["settings.yaml"]
    assert url == yaml.safe_load(settings)["public_url"]
    notes = rendered["pushgate/templates/NOTES.txt"]
    assert f"    {url}/hooks/" in notes
    assert ("Set publicUrl" in notes) == (".svc:" in url)


def test_the_notes_contain_the_next_step() -> None:
    """How to test, how to connect the first repository, and what is missing."""
    notes = render(value_sets()["minimal"])["pushgate/templates/NOTES.txt"]
    assert "helm test acme --namespace hooks" in notes
    assert "statefulset/acme-pushgate" in notes
    assert "pushgate connect https://github.com/OWNER/NAME.git" in notes
    assert "There is no broker" in notes
    assert "There is no broker" not in render(value_sets()["production"])["pushgate/templates/NOTES.txt"]


def test_the_comparison_with_other_charts_names_values_that_exist() -> None:
    """In the column of this chart."""
    page = (CHART.parent / "docs" / "kubernetes.md").read_text()
    table = page.split("## Compared with other charts")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([^`/]+)`", row)}
    assert len(named) > 60
    for name in named:
        section: Any = DEFAULTS
        for key in name.split("."):
            section = section[key]
