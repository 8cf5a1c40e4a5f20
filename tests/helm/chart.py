"""The chart, rendered by Helm's own library, and the value sets that the tests render."""

import functools
import json
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart, _native
from helm_python.chart import values_from_yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
KUBERNETES = [f"1.{minor}" for minor in range(30, 38)]
NAMESPACE = "hooks"
RELEASE = "acme"

# Kinds that every Kubernetes has.
OWN = {
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("batch/v1", "Job"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "ConfigMap"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
}

Manifest = dict[str, Any]
Values = dict[str, Any]


def read_values(text: str) -> Values:
    """Read values as Helm reads a `--values` file."""
    return values_from_yaml(text)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Return `base` overridden by `over`, as with two `--values` files."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


FILES = {
    path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))
}

# Overrides of one of the files.
VARIANTS = {
    "everything-off": (
        "embedded",
        """
        networkPolicy: {enabled: false}
        pod: {topologySpreadConstraints: []}
        serviceAccount: {create: false}
        ingress: {enabled: false}
        """,
    ),
    "both-routes": (
        "minimal",
        """
        publicUrl: ""
        listen: "::"
        httpRoute:
          enabled: true
          annotations: {team: ml}
          parentRefs: [{name: public, sectionName: https}]
          hostnames: [a.example.com, b.example.com]
          paths: [/hooks, /api]
        ingress: {enabled: true, hosts: [c.example.com, d.example.com], paths: [/hooks, /]}
        service: {type: LoadBalancer, port: 8443, annotations: {team: ml}}
        """,
    ),
    "placed": (
        "embedded",
        """
        fullnameOverride: hooks
        image: {repository: "registry.example.com:5000/ml/pushgate", tag: "2", pullSecrets: [pull]}
        packages: {url: "gs://packages", existingSecret: packages}
        settings:
          amqpCaFile: /etc/pushgate/tls/ca.crt
          amqpContentMode: structured
          amqpEvents: [push.fetched]
          amqpLanes: [fast, slow]
          bodyLimit: 26214400
          reconcileGrace: 20
        pod:
          env: {HTTPS_PROXY: "http://proxy.example.com:3128", SSL_CERT_FILE: /etc/pushgate/tls/ca.crt}
          mounts:
            - {mountPath: /etc/pushgate/tls, secret: amqp-tls}
            - {mountPath: /etc/pushgate/signers, configMap: signers}
          nodeSelector: {disk: ssd}
          tolerations: [{key: dedicated, operator: Equal, value: ml, effect: NoSchedule}]
          annotations: {team: ml}
          labels: {team: ml}
          priorityClassName: platform
        connections: {prune: true}
        serviceMonitor: {enabled: true}
        """,
    ),
    "with-what-a-platform-has": (
        "production",
        """
        httpRoute: {enabled: false}
        ingress:
          enabled: true
          hosts: [hooks.example.com]
          tls: [{secretName: hooks-tls, hosts: [hooks.example.com]}]
        networkPolicy:
          webhooks: {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress}}}]}
        serviceMonitor: {enabled: true, labels: {release: prometheus}}
        worker: {storage: {storageClass: fast}}
        pod:
          annotations: {sidecar.istio.io/inject: "false"}
          labels: {team: ml, app.kubernetes.io/part-of: platform}
          priorityClassName: platform
          user: platform
        """,
    ),
    "keda": (
        "production",
        "worker: {autoscaling: {enabled: true, by: pending, maxReplicas: 12, pendingPerReplica: 5}}",
    ),
    "by-cpu": (
        "production",
        """
        web: {autoscaling: {enabled: false}}
        worker: {autoscaling: {enabled: true, by: cpu}}
        podDisruptionBudget: {enabled: false}
        pod: {preStopSeconds: 0, mounts: [{mountPath: /etc/pushgate/database, secret: database-ca}]}
        """,
    ),
    "external-secret": (
        "production",
        """
        secrets:
          secretKey: {existingSecret: ""}
          databaseUrl: {existingSecret: ""}
          amqpUrl: {existingSecret: ""}
          adminToken: {existingSecret: ""}
        externalSecret:
          enabled: true
          storeRef: {name: vault, kind: ClusterSecretStore}
          data:
            secretKey: {key: ml/pushgate, property: secret-key}
            databaseUrl: {key: ml/pushgate, property: database-url}
            adminToken: {key: ml/pushgate-token}
        worker: {autoscaling: {enabled: true, by: pending}}
        """,
    ),
    "operators": (
        "production",
        """
        secrets: {databaseUrl: {existingSecret: ""}, amqpUrl: {existingSecret: ""}}
        cloudnativepg: {enabled: true, storage: {size: 50Gi, storageClass: fast}}
        pod: {mounts: [{mountPath: /etc/pushgate/database, secret: database-ca}]}
        rabbitmq: {enabled: true, topology: true, storage: {storageClass: fast}}
        settings: {amqpLanes: [fast], amqpQueue: acme.executions}
        """,
    ),
    "ordered": (
        "production",
        """
        secrets: {amqpUrl: {existingSecret: ""}}
        rabbitmq: {enabled: true, topology: true}
        settings: {amqpOrdered: 2}
        """,
    ),
}


@functools.cache
def value_sets() -> dict[str, Values]:
    """Return every value set by its name."""
    files = {name: read_values(path.read_text()) for name, path in FILES.items()}
    laid = {name: merged(files[base], read_values(text)) for name, (base, text) in VARIANTS.items()}
    return {**files, **laid}


NAMES = [*FILES, *VARIANTS]


@functools.cache
def _chart() -> Chart:
    return Chart.load(CHART)


def render(
    values: Values,
    *,
    kubernetes: str = KUBERNETES[-1],
    release: str = RELEASE,
    apis: tuple[str, ...] = (),
    chart: Chart | None = None,
) -> dict[str, str]:
    """Render the chart, or another one; texts by the template's path. Raises `HelmError` where Helm refuses.

    `apis` are those that the cluster has in addition to Kubernetes' own. The library's `render` has no
    parameter for the version of Kubernetes; the function that it calls has.
    """
    options = json.dumps(
        {"name": release, "namespace": NAMESPACE, "kube_version": kubernetes, "api_versions": list(apis)}
    )
    handle = (chart or _chart())._raw()  # noqa: SLF001 - see above
    rendered: dict[str, str] = json.loads(
        _native.call_string("helm_render", handle, json.dumps(values), options)
    )
    return rendered


class _Strict(yaml.CSafeLoader):
    """A loader like Helm's, which refuses equal keys: with PyYAML's own, the last one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"a key stands twice: {sorted(keys)}")
        return super().construct_mapping(node, deep)


@functools.cache
def _manifests(name: str, release: str) -> str:
    return json.dumps(objects(render(value_sets()[name], release=release)))


def objects(rendered: Mapping[str, str]) -> list[Manifest]:
    """Return the rendered objects. Raises `ValueError` for a repeated key."""
    texts = (text for path, text in rendered.items() if not path.endswith("NOTES.txt"))
    return [one for text in texts for one in yaml.load_all(text, _Strict) if one is not None]


def manifests(name: str, *, release: str = RELEASE) -> list[Manifest]:
    """Return the objects that this value set renders to."""
    found: list[Manifest] = json.loads(_manifests(name, release))
    return found


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    """Return the objects of these kinds."""
    return [one for one in manifests(name) if one["kind"] in kinds]


def pods(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield each pod or pod template by its owner's name, such as `Deployment/acme-pushgate-web`."""
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield where, one
        elif "template" in one.get("spec", {}):
            yield where, one["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
