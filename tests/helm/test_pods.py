"""The pods of the chart: their rights, their volumes, how they start and end."""

import pytest

from tests.helm.chart import (
    FILES,
    NAMES,
    Manifest,
    containers,
    manifests,
    merged,
    objects,
    of_kind,
    pods,
    render,
    value_sets,
)


@pytest.mark.parametrize("name", NAMES)
def test_pods_are_restricted(name: str) -> None:
    """Each pod meets the restricted Pod Security Standard, and has a token of the cluster only on request.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    for _, pod in pods(manifests(name)):
        spec = pod["spec"]
        assert not spec["enableServiceLinks"]
        assert not spec["automountServiceAccountToken"] or name == "everything"
        assert (
            spec["securityContext"]["runAsNonRoot"],
            spec["securityContext"]["seccompProfile"],
        ) == (True, {"type": "RuntimeDefault"})
        assert {volume for one in spec["volumes"] for volume in one if volume != "name"} <= {
            "configMap",
            "csi",
            "emptyDir",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        for container in containers(pod):
            context = container["securityContext"]
            assert (
                context["allowPrivilegeEscalation"],
                context["readOnlyRootFilesystem"],
                context["runAsNonRoot"],
                context["capabilities"],
            ) == (False, True, True, {"drop": ["ALL"]})
            assert context.get("seccompProfile", {}).get("type", "RuntimeDefault") != "Unconfined"
            assert not context.get("privileged")
            assert not {"procMount", "seLinuxOptions", "appArmorProfile"} & context.keys()
            assert not any("hostPort" in port for port in container.get("ports", []))
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not {"sysctls", "seLinuxOptions", "appArmorProfile"} & spec["securityContext"].keys()


def _users(objects: list[Manifest]) -> set[str]:
    """Return the fields of any pod that name a user or a group."""
    contexts = [
        context
        for _, pod in pods(objects)
        for context in (pod["spec"]["securityContext"], *(one["securityContext"] for one in containers(pod)))
    ]
    return {field for one in contexts for field in one if field in {"runAsUser", "runAsGroup", "fsGroup"}}


@pytest.mark.parametrize("name", FILES)
def test_openshift_chooses_the_user(name: str) -> None:
    """Its restricted policy refuses pods with a user other than the namespace's; so no pod names one.

    https://docs.openshift.com/container-platform/latest/authentication/managing-security-context-constraints.html
    """
    own = {"runAsUser", "runAsGroup", "fsGroup"}
    values = value_sets()[name]
    openshift = ("security.openshift.io/v1",)
    assert _users(objects(render(merged(values, {"pod": {"user": "auto"}}), apis=openshift))) == set()
    assert _users(objects(render(merged(values, {"pod": {"user": "auto"}})))) == own
    assert _users(objects(render(merged(values, {"pod": {"user": "platform"}})))) == set()
    assert _users(objects(render(merged(values, {"pod": {"user": "image"}}), apis=openshift))) == own


@pytest.mark.parametrize("name", ["with-what-a-platform-has", "placed"])
def test_every_pod_has_the_labels_and_annotations_that_are_asked_for(name: str) -> None:
    """Also those of Jobs and of the test: meshes, policies and cost reports use them."""
    values = value_sets()[name]
    found = dict(pods(manifests(name)))
    assert {where.split("/")[0] for where in found} >= {"StatefulSet", "Job", "Pod"}
    for where, pod in found.items():
        metadata = pod["metadata"]
        assert values["pod"]["labels"].items() <= metadata["labels"].items(), where
        assert values["pod"]["annotations"].items() <= metadata["annotations"].items(), where


@pytest.mark.parametrize("name", NAMES)
def test_every_pod_has_an_account_that_is_there_before_it(name: str) -> None:
    """Not the namespace's default, which is shared; the migration runs before the release's own exists."""
    given = value_sets()[name].get("serviceAccount", {}).get("create", True)
    accounts = {one["metadata"]["name"]: one["metadata"] for one in of_kind(name, "ServiceAccount")}
    for where, pod in pods(manifests(name)):
        account = pod["spec"]["serviceAccountName"]
        assert (account in accounts) == given, where
        if where.endswith("-migrate") and given:
            (job,) = [one["metadata"] for one in of_kind(name, "Job") if one["metadata"]["name"] in where]
            hooks = accounts[account]["annotations"]
            assert hooks["helm.sh/hook"] == job["annotations"]["helm.sh/hook"]
            assert int(hooks["helm.sh/hook-weight"]) < int(job["annotations"]["helm.sh/hook-weight"])
        elif given:
            assert "helm.sh/hook" not in accounts[account].get("annotations", {})


@pytest.mark.parametrize("name", NAMES)
def test_volumes_and_mounts_agree(name: str) -> None:
    """Each mount is a volume of the pod or a claim of its set, and each volume is mounted."""
    claims = {
        f"StatefulSet/{one['metadata']['name']}": {
            claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]
        }
        for one in of_kind(name, "StatefulSet")
    }
    for where, pod in pods(manifests(name)):
        volumes = {one["name"] for one in pod["spec"]["volumes"]} | claims.get(where, set())
        mounted = {mount["name"] for one in containers(pod) for mount in one["volumeMounts"]}
        assert volumes == mounted, where


def _serving(name: str) -> dict[str, Manifest]:
    workloads = of_kind(name, "Deployment", "StatefulSet")
    return {where: pod["spec"]["containers"][0] for where, pod in pods(workloads)}


def test_embedded_is_one_pod_of_all_roles() -> None:
    """With no values: one pod, its data on a volume that outlives it."""
    assert {where: one["args"] for where, one in _serving("minimal").items()} == {
        "StatefulSet/acme-pushgate": ["serve", "--role", "all"]
    }
    (only,) = of_kind("minimal", "StatefulSet")
    assert (
        only["spec"]["replicas"],
        only["spec"]["persistentVolumeClaimRetentionPolicy"],
    ) == (1, {"whenDeleted": "Retain", "whenScaled": "Retain"})
    assert of_kind("minimal", "Job", "PodDisruptionBudget") == []


def test_distributed_has_web_and_worker_pods() -> None:
    """Web pods store nothing; each worker has its mirrors on its own volume."""
    assert {where: one["args"] for where, one in _serving("production").items()} == {
        "Deployment/acme-pushgate-web": ["serve", "--role", "web"],
        "StatefulSet/acme-pushgate-worker": ["serve", "--role", "worker"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_pods_are_probed_and_end_in_order(name: str) -> None:
    """Three probes; the grace period exceeds the removal from the endpoints plus the longest request."""
    for _, pod in pods(of_kind(name, "Deployment", "StatefulSet")):
        container, *_ = pod["spec"]["containers"]
        assert [
            container[probe]["httpGet"]["path"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        ] == ["/startupz", "/livez", "/readyz"]
        hook = container.get("lifecycle")
        waits = hook["preStop"]["sleep"]["seconds"] if hook else 0
        assert waits + 10 < pod["spec"]["terminationGracePeriodSeconds"]


def test_a_pod_that_is_not_to_wait_has_no_hook() -> None:
    """Kubernetes before 1.33 refuses a sleep of zero seconds."""
    for _, pod in pods(of_kind("by-cpu", "Deployment", "StatefulSet")):
        assert "lifecycle" not in pod["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("name", "path"), [("by-cpu", "database"), ("operators", "database"), ("placed", "tls")]
)
def test_what_is_mounted_is_there_for_the_migration_too(name: str, path: str) -> None:
    """The URL of the database may name a file; every container of the chart has what is mounted."""
    for _, pod in pods(of_kind(name, "Deployment", "StatefulSet", "Job")):
        for container in containers(pod):
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert f"/etc/pushgate/{path}" in mounted


def test_a_changed_setting_changes_the_pods() -> None:
    """The pod has the checksum of the settings, so that an upgrade restarts it."""
    checksums = {
        pod["metadata"]["annotations"]["checksum/settings"]
        for name in ("minimal", "embedded", "placed")
        for _, pod in pods(of_kind(name, "StatefulSet"))
    }
    assert len(checksums) == 3


def test_the_schema_is_migrated_before_new_pods_start() -> None:
    """By a hook if the database exists before the release, by each pod if the release makes it."""
    (job,) = of_kind("production", "Job")
    assert (
        job["metadata"]["annotations"]["helm.sh/hook"],
        job["spec"]["template"]["spec"]["containers"][0]["args"],
    ) == ("pre-install,pre-upgrade", ["migrate"])
    for name in ("operators", "external-secret"):
        assert of_kind(name, "Job") == []
        for _, pod in pods(of_kind(name, "Deployment", "StatefulSet")):
            assert [one["args"] for one in pod["spec"]["initContainers"]] == [["migrate"]]
