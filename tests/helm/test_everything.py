"""Every value is set in ci/everything-values.yaml, and none is dead."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from tests.helm.chart import CHART, Values, manifests, merged, objects, pods, read_values, render, value_sets

DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())

# The templates in which the values of a section show, besides the settings; by default, those of web pods.
WHERE = {
    "cloudnativepg": ["cloudnativepg"],
    "connections": ["connections", "serviceaccount"],
    "externalSecret": ["externalsecret"],
    "extraObjects": ["extraobjects"],
    "httpRoute": ["routes"],
    "ingress": ["routes"],
    "migration": ["migration", "serviceaccount"],
    "networkPolicy": ["networkpolicy"],
    "pod": ["web", "worker"],
    "podDisruptionBudget": ["disruption"],
    "rabbitmq": ["rabbitmq"],
    "secrets": ["web", "externalsecret"],
    "service": ["services"],
    "serviceAccount": ["web", "serviceaccount"],
    "serviceMonitor": ["servicemonitor"],
    "prometheusRule": ["prometheusrule"],
    "grafanaDashboard": ["dashboard"],
    "test": ["tests/webhooks", "serviceaccount"],
    "web": ["web", "autoscaling", "disruption", "serviceaccount"],
    "worker": ["worker", "autoscaling", "disruption", "serviceaccount"],
}

# Values that have no effect beside others that everything-values.yaml sets, with what has to change first.
INSTEAD = {
    "image.tag": "image: {digest: ''}",
    "web.replicas": "web: {autoscaling: {enabled: false}}",
    "worker.replicas": "worker: {autoscaling: {enabled: false}}",
    "worker.autoscaling.targetCPU": "worker: {autoscaling: {by: cpu}}",
    "worker.autoscaling.targetMemory": "worker: {autoscaling: {by: cpu}}",
    "podDisruptionBudget.maxUnavailable": "podDisruptionBudget: {minAvailable: ''}",
    "rabbitmq.enabled": "rabbitmq: {topology: false}",
    "service.type": """
        service: {externalTrafficPolicy: "", nodePort: 0, loadBalancerClass: "", loadBalancerSourceRanges: []}
        """,
    "cloudnativepg.backup.snapshotClass": "cloudnativepg: {backup: {method: volumeSnapshot}}",
}

# Values that are required beside others of everything-values.yaml: they get another value, not the default.
OTHER: dict[str, Any] = {
    "connections.existingSecret": "other",
    "externalSecret.storeRef.name": "other",
    "httpRoute.parentRefs": [{"name": "other"}],
    "networkPolicy.metrics.from": [{"podSelector": {}}],
    "rabbitmq.tls.secretName": "other",
    "ingress.hosts": ["other.example.com"],
    "packages.url": "gs://other",
    "pod.mounts": [{"mountPath": "/etc/pushgate/tls", "secret": "other"}],
    "cloudnativepg.backup.method": "volumeSnapshot",
    "cloudnativepg.backup.objectStore": "other",
}


def _leaves(values: Values, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that is no section, with its path."""
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield from _leaves(value, where)
        else:
            yield where, value


def _at(values: Values, path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        assert key in found, f"{path} is not set"
        found = found[key]
    return found


def _with(values: Values, path: str, value: Any) -> Values:
    """Return the values with another one at this path, replaced as a whole."""
    key, _, rest = path.partition(".")
    return {**values, key: _with(values[key], rest, value) if rest else value}


LEAVES = dict(_leaves(DEFAULTS))


def test_every_value_is_set() -> None:
    """To something other than its default, unless the default switches something on, or is a choice."""
    everything = value_sets()["everything"]
    same = {path for path, default in LEAVES.items() if _at(everything, path) == default}
    assert {path for path in same if LEAVES[path] is not True} <= set(OTHER)


def _reduced(section: str, folder: Path) -> Chart:
    """Return the chart with few templates and no schema: with all, the test would take ten times as long."""
    shutil.copytree(CHART, folder, ignore=shutil.ignore_patterns("values.schema.json", "ci"))
    kept = {f"{name}.yaml" for name in ["settings", *WHERE.get(section, ["web"])]}
    for path in (folder / "templates").rglob("*.*"):
        if path.suffix != ".tpl" and str(path.relative_to(folder / "templates")) not in kept:
            path.unlink()
    return Chart.load(folder)


@pytest.mark.parametrize("section", sorted(DEFAULTS.keys() - {"mode"}))
def test_every_value_changes_the_manifests(section: str, tmp_path: Path) -> None:
    """Each one has an effect of its own: without it, something that is installed differs."""
    everything = value_sets()["everything"]
    chart = _reduced(section, tmp_path / "chart")
    rendered = render(everything, chart=chart)
    dead = []
    for path, default in LEAVES.items():
        if path.split(".")[0] != section:
            continue
        values = merged(everything, read_values(INSTEAD.get(path, "{}")))
        before = render(values, chart=chart) if path in INSTEAD else rendered
        changed = OTHER.get(path, default if _at(everything, path) != default else not default)
        if before == render(_with(values, path, changed), chart=chart):
            dead.append(path)
    assert dead == []


# Fields of a pod's spec that are values of the same name.
FIELDS = (
    "nodeSelector",
    "tolerations",
    "affinity",
    "priorityClassName",
    "schedulerName",
    "runtimeClassName",
    "hostUsers",
    "hostAliases",
    "dnsPolicy",
    "dnsConfig",
    "automountServiceAccountToken",
    "terminationGracePeriodSeconds",
)


def _pod_values(section: str) -> Values:
    """Return the values of the pods of a component: maps of both are joined, anything else is overridden."""
    shared, own = (_at(value_sets()["everything"], path) for path in ("pod", f"{section}.pod"))
    joined = {key: {**shared[key], **own[key]} if isinstance(own[key], dict) else own[key] for key in own}
    sidecars = shared["extraContainers"] if section in {"web", "worker"} else []
    return {**shared, "extraContainers": sidecars, **joined}


def test_every_pod_has_its_values() -> None:
    """Those of all pods, and those of its component."""
    found = [pod for _, pod in pods(manifests("everything"))]
    sections = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found}
    assert sorted(sections) == ["connections", "migration", "test", "web", "worker"]
    for section, pod in sections.items():
        values, spec = _pod_values(section), pod["spec"]
        assert {key: spec.get(key) or None for key in FIELDS} == {key: values[key] or None for key in FIELDS}
        assert values["labels"].items() <= pod["metadata"]["labels"].items()
        assert values["annotations"].items() <= pod["metadata"]["annotations"].items()
        assert values["securityContext"].items() <= spec["securityContext"].items()
        assert [one["topologyKey"] for one in spec["topologySpreadConstraints"]] == [
            one["topologyKey"] for one in values["topologySpreadConstraints"]
        ]
        main, *others = spec["containers"]
        assert (others, spec["initContainers"]) == (values["extraContainers"], values["extraInitContainers"])
        assert values["containerSecurityContext"].items() <= main["securityContext"].items()
        variables = {
            one["name"]: one.get("value", {"valueFrom": one.get("valueFrom")}) for one in main["env"]
        }
        assert values["env"].items() <= variables.items()
        for key, name in {"envFrom": "envFrom", "extraVolumeMounts": "volumeMounts"}.items():
            assert all(one in main[name] for one in values[key])
        assert all(one in spec["volumes"] for one in values["extraVolumes"])
        assert {one["mountPath"] for one in values["mounts"]} <= {
            one["mountPath"] for one in main["volumeMounts"]
        }


def test_every_object_has_the_common_labels_and_annotations() -> None:
    """And every pod; except the objects that the values themselves contain."""
    everything = value_sets()["everything"]
    own = [one for one in manifests("everything") if not one["metadata"]["name"].endswith("further")]
    for metadata in [one["metadata"] for one in [*own, *(pod for _, pod in pods(own))]]:
        assert everything["commonLabels"].items() <= metadata["labels"].items(), metadata
        assert everything["commonAnnotations"].items() <= metadata["annotations"].items(), metadata


def test_every_component_has_an_account_of_its_own() -> None:
    """Named after it, or as the values say; so a role of the cloud can be given to one of them."""
    accounts = {
        name: {pod["spec"]["serviceAccountName"] for _, pod in pods(manifests(name))}
        for name in ("embedded", "production", "everything")
    }
    assert accounts == {
        "embedded": {"acme-pushgate", "acme-pushgate-connections", "acme-pushgate-test"},
        "production": {f"acme-pushgate-{one}" for one in ("web", "worker", "migrate", "test")},
        "everything": {f"pushgate-{one}" for one in ("web", "git", "schema", "apply", "probe")},
    }


def test_a_deployment_that_is_recreated_has_no_rolling_update() -> None:
    """Of the defaults, because the API server refuses both."""
    values = merged(value_sets()["production"], {"web": {"strategy": {"type": "Recreate"}}})
    [web] = [one for one in objects(render(values)) if one["kind"] == "Deployment"]
    assert web["spec"]["strategy"] == {"type": "Recreate"}


def test_snapshots_of_the_database_need_no_class() -> None:
    """The section is there all the same: CloudNativePG refuses backups of a cluster without it."""
    backup = {"enabled": True, "method": "volumeSnapshot"}
    values = merged(value_sets()["operators"], {"cloudnativepg": {"backup": backup}})
    [cluster] = [one for one in objects(render(values)) if one["kind"] == "Cluster"]
    assert cluster["spec"]["backup"] == {"volumeSnapshot": {}}
