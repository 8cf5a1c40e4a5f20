"""The rendered chart: valid for every supported Kubernetes, and consistent."""

import functools
import json
from collections import Counter
from typing import Any

import pytest
from helm_python.chart import lint
from jsonschema import Draft202012Validator
from kubernetes_validate import utils as schemas
from referencing import Registry, Resource

from tests.helm.chart import (
    CHART,
    FILES,
    KUBERNETES,
    NAMES,
    OWN,
    manifests,
    of_kind,
    pods,
    render,
    value_sets,
)

# Kinds of operators, whose schemas Kubernetes doesn't have.
CUSTOM = {
    ("external-secrets.io/v1", "ExternalSecret"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("postgresql.cnpg.io/v1", "Cluster"),
    ("postgresql.cnpg.io/v1", "ScheduledBackup"),
    ("rabbitmq.com/v1beta1", "Binding"),
    ("rabbitmq.com/v1beta1", "Exchange"),
    ("rabbitmq.com/v1beta1", "Policy"),
    ("rabbitmq.com/v1beta1", "Queue"),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"),
}


@functools.cache
def _folder(kubernetes: str) -> str:
    assert kubernetes in {schemas.major_minor(version) for version in schemas.all_versions()}
    return f"kubernetes-json-schema/v{kubernetes}.0-local-strict"


@functools.cache
def _definitions(kubernetes: str) -> Registry[Any]:
    contents = schemas.schema_contents(f"{_folder(kubernetes)}/_definitions.json", kubernetes)
    definitions: Resource[Any] = Resource.from_contents(contents)
    registry: Registry[Any] = Registry()
    return definitions @ registry


@functools.cache
def _validator(kind: str, api_version: str, kubernetes: str) -> Draft202012Validator:
    group, _, version = api_version.rpartition("/")
    suffix = f"{group.split('.')[0]}-{version}" if group else version
    schema = schemas.schema_contents(f"{_folder(kubernetes)}/{kind.lower()}-{suffix}.json", kubernetes)
    return Draft202012Validator(schema, registry=_definitions(kubernetes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kubernetes", [KUBERNETES[0], KUBERNETES[-1]])
def test_helm_lints_every_value_set(name: str, kubernetes: str) -> None:
    """`helm lint --strict` reports only that there is no icon. Newer versions deprecate more."""
    report = lint(CHART, value_sets()[name], strict=True, kube_version=f"v{kubernetes}.0")
    assert ([one["error"] for one in report["messages"]], report["errors"]) == (["icon is recommended"], [])


def test_the_version_of_kubernetes_makes_no_difference() -> None:
    """So the tests below check the same objects against each version."""
    assert "KubeVersion" not in "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    for name in FILES:
        assert len({json.dumps(render(value_sets()[name], kubernetes=one)) for one in KUBERNETES[::7]}) == 1


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_every_object_is_valid(kubernetes: str) -> None:
    """Each object of each value set is valid, with no unknown field, or of an operator's kind."""
    seen: set[str] = set()
    wrong: list[str] = []
    for name in NAMES:
        for one in manifests(name):
            key = (one["apiVersion"], one["kind"])
            if key in CUSTOM or repr(one) in seen:
                continue
            seen.add(repr(one))
            validator = _validator(one["kind"], one["apiVersion"], kubernetes)
            wrong += [
                f"{name} {key} {found.json_path}: {found.message}" for found in validator.iter_errors(one)
            ]
    assert wrong == []


def test_a_field_that_is_not_there_is_found() -> None:
    """The schemas are strict: a typing error deep in a pod does not pass."""
    (workload,) = of_kind("minimal", "StatefulSet")
    workload["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    (found,) = _validator("StatefulSet", "apps/v1", KUBERNETES[0]).iter_errors(workload)
    assert "readinesProbe" in found.message


def test_every_kind_is_rendered_by_some_value_set() -> None:
    """The value sets cover every template."""
    kinds = {(one["apiVersion"], one["kind"]) for name in NAMES for one in manifests(name)}
    assert kinds == OWN | CUSTOM


@pytest.mark.parametrize("name", NAMES)
def test_names_are_given_once(name: str) -> None:
    """No two objects of a kind have the same name."""
    names = Counter((one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in manifests(name))
    assert {key for key, count in names.items() if count > 1} == set()


# The longest name of an object: less than the API's limit if a controller makes labels of it.
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
LONGEST = {"StatefulSet": 52, "Job": 63, "Service": 63, "RabbitmqCluster": 45, "Cluster": 50}
# As long as Helm allows for a release, and equal except for the last letter.
LONG_RELEASES = ["a" * 52 + last for last in "bc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_long_name_of_a_release_is_no_trouble(name: str) -> None:
    """Names stay within the limits, and two releases in one namespace have none in common."""
    both = []
    for release in LONG_RELEASES:
        objects = manifests(name, release=release)
        for one in objects:
            assert len(one["metadata"]["name"]) <= LONGEST.get(one["kind"], 253), one["metadata"]["name"]
        both.append({(one["kind"], one["metadata"]["name"]) for one in objects})
    assert name in {"placed", "everything"} or both[0] & both[1] == set()  # whose names are fixed


def test_a_second_release_picks_no_pod_of_the_first() -> None:
    """In the same namespace: its Services, budgets, policies and workloads have selectors of their own."""
    labels = [pod["metadata"]["labels"] for _, pod in pods(manifests("production"))]
    for one in manifests("production", release="window"):
        if one["kind"] in {"Deployment", "StatefulSet", "Service", "PodDisruptionBudget", "ServiceMonitor"}:
            selector = one["spec"]["selector"]
            assert not any(_picks(selector.get("matchLabels", selector), found) for found in labels)
        if one["kind"] == "NetworkPolicy":
            assert not any(_picks(one["spec"]["podSelector"]["matchLabels"], found) for found in labels)


def _picks(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def _lasting(name: str) -> dict[str, dict[str, str]]:
    """Labels of the permanent pods, by their owners."""
    workloads = of_kind(name, "Deployment", "StatefulSet")
    return {where: pod["metadata"]["labels"] for where, pod in pods(workloads)}


@pytest.mark.parametrize("name", NAMES)
def test_selectors_pick_exactly_their_pods(name: str) -> None:
    """A workload, a Service and a disruption budget each pick the pods of one workload, and a Job's never."""
    all_pods = {where: pod["metadata"]["labels"] for where, pod in pods(manifests(name))}
    for one in of_kind(name, "Deployment", "StatefulSet", "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        picked = [
            w for w, labels in all_pods.items() if _picks(selector.get("matchLabels", selector), labels)
        ]
        assert len(picked) == 1, (one["kind"], one["metadata"]["name"], picked)
        assert picked[0] in _lasting(name)
        if one["kind"] in {"Deployment", "StatefulSet"}:
            assert picked == [f"{one['kind']}/{one['metadata']['name']}"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_referred_to_is_there(name: str) -> None:
    """Scale targets, services, headless services, service accounts and monitored services exist."""
    present = {(one["kind"], one["metadata"]["name"]) for one in manifests(name)}
    for one in of_kind(name, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in present
    for one in of_kind(name, "StatefulSet"):
        assert ("Service", one["spec"]["serviceName"]) in present
    for one in of_kind(name, "HTTPRoute"):
        assert ("Service", one["spec"]["rules"][0]["backendRefs"][0]["name"]) in present
    for one in of_kind(name, "Ingress"):
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert ("Service", path["backend"]["service"]["name"]) in present
    for _, pod in pods(manifests(name)):
        account = pod["spec"].get("serviceAccountName", "default")
        assert account == "default" or ("ServiceAccount", account) in present
    for one in of_kind(name, "ServiceMonitor"):
        selector = one["spec"]["selector"]["matchLabels"]
        services = [s for s in of_kind(name, "Service") if _picks(selector, s["metadata"]["labels"])]
        monitored = {
            where
            for service in services
            for where, labels in _lasting(name).items()
            if _picks(service["spec"]["selector"], labels)
        }
        assert (len(services), monitored) == (len(monitored), set(_lasting(name)))


def test_lists_have_the_defaults_of_the_api_server() -> None:
    """Argo CD takes those that it adds for a difference, and the release is never in sync."""
    [route] = of_kind("everything", "HTTPRoute")
    assert all({"group", "kind"} <= parent.keys() for parent in route["spec"]["parentRefs"])
    [backend] = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["group"], backend["kind"], backend["weight"]) == ("", "Service", 1)
    [secret] = of_kind("everything", "ExternalSecret")
    defaults = {"conversionStrategy": "Default", "decodingStrategy": "None", "metadataPolicy": "None"}
    assert all(defaults.items() <= one["remoteRef"].items() for one in secret["spec"]["data"])
    [cluster] = of_kind("everything", "Cluster")
    assert cluster["spec"]["plugins"][0]["enabled"] is True


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_that_is_scaled_names_no_number_of_its_own(name: str) -> None:
    """An upgrade doesn't undo the autoscaler's decision."""
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]
        for one in of_kind(name, "HorizontalPodAutoscaler", "ScaledObject")
    }
    for one in of_kind(name, "Deployment", "StatefulSet"):
        assert ("replicas" in one["spec"]) == (one["metadata"]["name"] not in scaled)


def _ports(section: Any) -> list[int]:
    return section.get("ports", []) if isinstance(section, dict) else []


@pytest.mark.parametrize("name", NAMES)
def test_network_policies_deny_by_default(name: str) -> None:
    """A policy selects every pod for both directions; only git and webhooks are open to the world."""
    policies = of_kind(name, "NetworkPolicy")
    if not value_sets()[name].get("networkPolicy", {}).get("enabled", True):
        assert policies == []
        return
    for where, pod in pods(manifests(name)):
        for direction in ("Ingress", "Egress"):
            assert any(
                direction in one["spec"]["policyTypes"]
                and _picks(one["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
                for one in policies
            ), (where, direction)
    own = {
        port for section in value_sets()[name].get("networkPolicy", {}).values() for port in _ports(section)
    }
    ports = {
        rule_port["port"]
        for one in policies
        for rule in one["spec"].get("egress", [])
        for rule_port in rule["ports"]
    }
    assert ports <= {22, 53, 443, 5432, 5671, 5672, 8080} | own
    assert all(rule["ports"] for one in policies for rule in one["spec"].get("ingress", []))
