"""The chart and the gateway: the gateway accepts the chart's settings; secrets go by reference only."""

import asyncio
import dataclasses
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aio_pika import connect
from annotated_types import Ge, Le

from gateway.cli.connections_file import WantedConnection, read_file
from gateway.cli.sources_file import WantedSource
from gateway.plan.source_rules import Rule
from gateway.plan.triggers import Trigger
from gateway.publish.topology import Topology
from gateway.settings import PREFIX, Settings, read_settings
from gateway.store import accept
from gateway.store.database import Database
from testing.broker import Broker
from testing.postgres import Postgres
from testing.records import arrival, connection, move
from tests.helm.chart import (
    NAMES,
    SCHEMA,
    Manifest,
    containers,
    manifests,
    merged,
    of_kind,
    pods,
    render,
    value_sets,
)
from tests.publish.runner import remove

SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
PLACEHOLDERS = {"database_url": "postgresql://user:password@host/database", "amqp_url": "amqp://host/"}


def _config_maps(name: str) -> dict[str, dict[str, str]]:
    return {one["metadata"]["name"]: one["data"] for one in of_kind(name, "ConfigMap")}


def _variables(container: Manifest) -> dict[str, str | None]:
    """Return the variables that a container gets; None for one of a Secret."""
    return {one["name"]: one.get("value") for one in container.get("env", [])}


def _settings_file(name: str, folder: Path) -> Path:
    """Write the rendered settings of this value set; files that they name in `mounts` are in the folder."""
    (text,) = (data["settings.yaml"] for data in _config_maps(name).values() if "settings.yaml" in data)
    path = folder / "settings.yaml"
    path.write_text(text.replace("/etc/pushgate/", f"{folder}/"))
    (folder / "tls").mkdir(exist_ok=True)
    (folder / "tls" / "ca.crt").touch()
    return path


def test_which_settings_are_secret_is_known() -> None:
    """The tests below use this list."""
    assert {"secret_key", "database_url", "amqp_url", "admin_token"} <= SECRETS


@pytest.mark.parametrize("name", NAMES)
def test_secrets_go_by_reference_only(name: str) -> None:
    """There is no Secret and no secret in a ConfigMap; a container gets each from a key of a Secret."""
    assert of_kind(name, "Secret") == []
    secret = {PREFIX + one.upper() for one in SECRETS}
    for data in _config_maps(name).values():
        for text in data.values():
            assert SECRETS & set(yaml.safe_load(text)) == set()
    for _, pod in pods(manifests(name)):
        for container in containers(pod):
            for one in container.get("env", []):
                kept = "secretKeyRef" in one.get("valueFrom", {})
                assert kept == (one["name"] in secret) or not one["name"].startswith(PREFIX), one


@pytest.mark.parametrize("name", NAMES)
def test_the_gateway_takes_what_the_chart_sets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each container that serves or migrates starts with existing and valid settings."""
    count = 0
    for _, pod in pods(of_kind(name, "Deployment", "StatefulSet", "Job")):
        for container in containers(pod):
            if container.get("args", [""])[0] not in {"serve", "migrate"}:
                continue
            with monkeypatch.context() as environment:
                for variable, value in _variables(container).items():
                    kept = PLACEHOLDERS.get(variable.removeprefix(PREFIX).lower(), "x" * 40)
                    environment.setenv(variable, kept if value is None else value)
                settings = read_settings(given={}, config=_settings_file(name, tmp_path))
            distributed = value_sets()[name].get("mode") == "distributed"
            assert distributed == settings.database.startswith("postgresql")
            count += 1
    assert count > 0


def test_values_become_the_settings_that_they_name(tmp_path: Path) -> None:
    """Lists, large numbers and paths arrive unchanged."""
    settings = read_settings(given={}, config=_settings_file("placed", tmp_path))
    assert (
        settings.amqp_lanes,
        settings.amqp_content_mode,
        settings.amqp_events,
        settings.body_limit,
        settings.reconcile_grace,
        settings.fetch_hosts,
        str(settings.amqp_ca_file),
        settings.mirror_budget,
    ) == (
        ("fast", "slow"),
        "structured",
        ("push.fetched",),
        26214400,
        20,
        ("github.com",),
        str(tmp_path / "tls" / "ca.crt"),
        10737418240,
    )


def test_further_variables_reach_git() -> None:
    """Proxies and certificate authorities: git gets them from the gateway's environment."""
    for _, pod in pods(of_kind("placed", "StatefulSet")):
        variables = _variables(pod["spec"]["containers"][0])
        assert [variables["HTTPS_PROXY"], variables["SSL_CERT_FILE"]] == [
            "http://proxy.example.com:3128",
            "/etc/pushgate/tls/ca.crt",
        ]


def test_commands_in_a_pod_find_the_gateway() -> None:
    """They connect to 127.0.0.1, except for a gateway that listens only on IPv6."""
    for name, url in {"minimal": None, "both-routes": "http://[::1]:8080"}.items():
        for _, pod in pods(of_kind(name, "StatefulSet")):
            assert _variables(pod["spec"]["containers"][0]).get("PUSHGATE_URL") == url


def test_every_setting_of_the_values_is_one_of_the_gateway() -> None:
    """And none of them is a secret."""
    named = {re.sub("([A-Z])", r"_\1", one).lower() for one in SCHEMA["properties"]["settings"]["properties"]}
    assert named - set(Settings.model_fields) == set()
    assert named & SECRETS == set()
    secrets = {
        re.sub("([A-Z])", r"_\1", one).lower() for one in SCHEMA["properties"]["secrets"]["properties"]
    }
    assert secrets - SECRETS == set()


# Settings that the chart derives from other values, or that are fixed in a pod.
ELSEWHERE = {
    "host",
    "port",
    "public_url",
    "packages_url",
    "data_dir",
    "role",
    "workers",
    "hang_timeout",
    "log_format",
}
ONLY_FOR_TESTS = {"fetch_allow_http"}


def test_every_setting_of_the_gateway_can_be_a_value() -> None:
    """With the same bounds; except secrets, and those that the chart decides."""
    properties = SCHEMA["properties"]["settings"]["properties"]
    values = {re.sub("([A-Z])", r"_\1", one).lower(): schema for one, schema in properties.items()}
    assert set(Settings.model_fields) - SECRETS - ELSEWHERE - ONLY_FOR_TESTS == set(values)
    for name, schema in values.items():
        # The bound of a fetch is more than 0, and may be half a second.
        if schema.get("type") == "integer" and name != "fetch_timeout":
            own = Settings.model_fields[name].metadata
            low = next((one.ge for one in own if isinstance(one, Ge)), None)
            high = next((one.le for one in own if isinstance(one, Le)), None)
            assert (low, high) == (schema.get("minimum"), schema.get("maximum")), name


@pytest.mark.parametrize(
    ("name", "database", "broker"),
    [
        ("minimal", None, None),
        ("embedded", None, ("pushgate", "amqp-url")),
        ("production", ("pushgate", "database-url"), ("pushgate", "amqp-url")),
        ("external-secret", ("acme-pushgate", "database-url"), None),
        (
            "operators",
            ("acme-pushgate-pg-app", "uri"),
            ("acme-pushgate-rabbitmq-default-user", "connection_string"),
        ),
    ],
)
def test_secrets_come_from_where_they_are(
    name: str, database: tuple[str, str] | None, broker: tuple[str, str] | None
) -> None:
    """From the named Secret, from External Secrets, or from the operator's own Secret."""
    for _, pod in pods(of_kind(name, "Deployment", "StatefulSet")):
        references = {
            one["name"]: (one["valueFrom"]["secretKeyRef"]["name"], one["valueFrom"]["secretKeyRef"]["key"])
            for one in pod["spec"]["containers"][0]["env"]
            if "valueFrom" in one
        }
        assert (database, broker) == (
            references.get("PUSHGATE_DATABASE_URL"),
            references.get("PUSHGATE_AMQP_URL"),
        )


def test_what_external_secrets_makes_is_what_pods_ask_for() -> None:
    """The keys of its Secret are those that pods refer to."""
    (made,) = of_kind("external-secret", "ExternalSecret")
    keys = {(made["spec"]["target"]["name"], one["secretKey"]) for one in made["spec"]["data"]}
    asked = {
        (one["valueFrom"]["secretKeyRef"]["name"], one["valueFrom"]["secretKeyRef"]["key"])
        for _, pod in pods(of_kind("external-secret", "Deployment", "StatefulSet"))
        for one in pod["spec"]["containers"][0]["env"]
        if "valueFrom" in one
    }
    assert asked == keys


def test_connections_are_a_file_that_the_gateway_reads() -> None:
    """Written as in docs/connect.md, with `on` as a bare word, which Helm's YAML reads as a boolean."""
    text = _config_maps("embedded")["acme-pushgate-connections"]["connections.yaml"]
    read = read_file(text.encode())
    [wanted], [source] = read.connections, read.sources or []
    (trigger,) = wanted.triggers
    assert (source.name, source.rules[0]["triggers"]) == ("acme", [trigger])
    assert (
        wanted.name,
        str(wanted.secret.file if wanted.secret else None),
        trigger["on"],
        trigger["run"],
    ) == ("digits", "/run/secrets/connections/digits", ["push"], {"step": "train"})
    jobs = {
        name: of_kind(name, "Job")[0]["spec"]["template"]["spec"]["containers"][0]
        for name in ("embedded", "placed")
    }
    apply = ["apply", "--file", "/etc/pushgate/connections/connections.yaml"]
    assert [one["args"] for one in jobs.values()] == [apply, [*apply, "--prune"]]
    assert {"/etc/pushgate/connections", "/run/secrets/connections", "/tmp"} == {  # noqa: S108 - the mounts' own names
        one["mountPath"] for one in jobs["embedded"]["volumeMounts"]
    }
    assert _variables(jobs["embedded"]) == {
        "PUSHGATE_URL": "http://acme-pushgate.hooks.svc:80",
        "PUSHGATE_ADMIN_TOKEN": None,
    }


def test_connections_have_the_keys_that_the_gateway_knows() -> None:
    """A file that the schema accepts is accepted by `pushgate apply`."""
    definitions = SCHEMA["definitions"]
    assert set(definitions["connection"]["properties"]) - set(WantedConnection.model_fields) == set()
    assert set(definitions["source"]["properties"]) == set(WantedSource.model_fields)
    assert set(definitions["rule"]["properties"]) == set(Rule.model_fields)
    assert set(definitions["trigger"]["properties"]) - {"true"} == set(Trigger.model_fields)


def test_workers_are_scaled_by_what_waits_for_one() -> None:
    """KEDA queries PostgreSQL, with the workers' URL."""
    (scaled,) = of_kind("keda", "ScaledObject")
    (by,) = of_kind("keda", "TriggerAuthentication")
    (trigger,) = scaled["spec"]["triggers"]
    assert ("acme-pushgate-worker", 12, "5", by["metadata"]["name"]) == (
        scaled["spec"]["scaleTargetRef"]["name"],
        scaled["spec"]["maxReplicaCount"],
        trigger["metadata"]["targetQueryValue"],
        trigger["authenticationRef"]["name"],
    )
    assert by["spec"]["secretTargetRef"] == [
        {"parameter": "connection", "name": "pushgate", "key": "database-url"}
    ]


def test_what_waits_for_a_worker_is_counted_by_connections_that_one_can_work_on(postgres: Postgres) -> None:
    """Not by ref updates, of which a storm has thousands, and without postponed ones."""
    (scaled,) = of_kind("keda", "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    database = Database(postgres.database())
    database.migrate()
    for one in ("storm", "put off", "single", "idle"):
        connection(database, one, created_at=datetime.now(UTC))
    storm = [move("a" * 40, "b" * 40, ref=f"refs/heads/{number}") for number in range(20)]
    with database.writing() as conn:
        accept.record(conn, [arrival(*storm, connection="storm")])
        for one in ("put off", "single"):
            accept.record(conn, [arrival(move("a" * 40, "b" * 40), connection=one)])
        conn.exec_driver_sql(
            "UPDATE leases SET due_at = now() + interval '1 day' WHERE connection = 'put off'"
        )
        assert conn.exec_driver_sql(trigger["metadata"]["query"]).scalar() == 2
    database.close()


async def _declare(channel: Any, objects: list[Manifest]) -> set[tuple[str, str, str]]:
    """Declare objects as the Messaging Topology Operator does; return (source, destination, key) bindings."""
    exchanges, queues, bindings = {}, {}, set()
    for one in sorted(objects, key=lambda one: ["Exchange", "Queue", "Binding"].index(one["kind"])):
        spec = one["spec"]
        if one["kind"] == "Exchange":
            exchanges[spec["name"]] = await channel.declare_exchange(
                spec["name"], spec["type"], durable=spec["durable"], arguments=spec.get("arguments")
            )
        elif one["kind"] == "Queue":
            arguments = {"x-queue-type": spec["type"], **spec.get("arguments", {})}
            queues[spec["name"]] = await channel.declare_queue(
                spec["name"], durable=spec["durable"], arguments=arguments
            )
        else:
            bound = {"queue": queues, "exchange": exchanges}[spec["destinationType"]][spec["destination"]]
            await bound.bind(exchanges[spec["source"]], spec["routingKey"])
            bindings.add((spec["source"], spec["destination"], spec["routingKey"]))
    return bindings


def _bindings(topology: Topology) -> set[tuple[str, str, str]]:
    """Return the bindings that a topology has, as source, destination and key."""
    bindings = {
        (topology.dead_exchange, topology.dead_queue, "#"),
        (topology.exchange, topology.report_queue, "execution.status.#"),
    }
    for name, key in topology.queues.items():
        hashed = topology.hash_exchange(name)
        bindings.add((topology.exchange, hashed if topology.ordered else name, key))
        bindings |= {(hashed, partition, "1") for partition in topology.partitions(name)}
    return bindings


@pytest.mark.parametrize("ordered", [0, 2])
def test_the_topology_is_the_one_that_the_gateway_would_declare(broker: Broker, ordered: int) -> None:
    """On a broker with the operator's objects the gateway's declarations make no difference."""
    asyncio.run(_compare_topologies(broker, ordered))


async def _compare_topologies(broker: Broker, ordered: int) -> None:
    name = f"chart-{uuid.uuid4().hex}"
    settings = {"amqpExchange": name, "amqpQueue": name, "amqpLanes": ["fast"], "amqpOrdered": ordered}
    values = merged(value_sets()["operators"], {"settings": settings})
    objects = list(yaml.safe_load_all(render(values)["pushgate/templates/rabbitmq.yaml"]))
    topology = Topology(exchange=name, queue=name, lanes=("fast",), ordered=ordered)
    try:
        async with await connect(broker.url) as connection, connection.channel() as channel:
            bindings = await _declare(
                channel,
                [one for one in objects if one and one["kind"] not in {"RabbitmqCluster", "Policy"}],
            )
            await dataclasses.replace(topology, passive=True).establish(connection)
            await topology.establish(connection)
            assert bindings == _bindings(topology)
    finally:
        await remove(broker, topology)


@pytest.mark.parametrize("queue", [None, "Push_Gate.runs"])
def test_consumers_may_hold_messages_as_long_as_where_the_gateway_declares(queue: str | None) -> None:
    """By a policy, which can be added to existing queues; it applies to these queues only."""
    settings = {"amqpQueue": queue} if queue else {}
    values = merged(value_sets()["ordered"], {"settings": {**settings, "amqpLanes": ["fast"]}})
    objects = yaml.safe_load_all(render(values)["pushgate/templates/rabbitmq.yaml"])
    [policy] = [one["spec"] for one in objects if one and one["kind"] == "Policy"]
    topology = Topology(queue=queue or "pushgate.executions", lanes=("fast",), ordered=2)
    assert policy["definition"] == {"consumer-timeout": topology.consumer_timeout}
    for name in topology.queues:
        for one in (name, *topology.partitions(name)):
            assert re.search(policy["pattern"], one)
    assert not re.search(policy["pattern"], f"{topology.queue}-of-others")


@pytest.mark.parametrize("queue", ["Push_Gate.runs", "runs of: ünïcode", "q" * 255])
def test_objects_are_named_as_kubernetes_has_it_whatever_a_queue_is_called(queue: str) -> None:
    """The broker accepts nearly any name; and two queues never share an object."""
    settings = {"amqpQueue": queue, "amqpLanes": ["fast", "slow"]}
    values = merged(value_sets()["operators"], {"settings": settings})
    objects = [one for one in yaml.safe_load_all(render(values)["pushgate/templates/rabbitmq.yaml"]) if one]
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert [name for _, name in names if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,251}[a-z0-9])?", name)] == []
    assert len(set(names)) == len(names)
    assert f"{queue}.slow" in {one["spec"].get("name") for one in objects}


def test_a_cluster_of_ordered_requests_has_the_plugin() -> None:
    """Without it the broker does not support the exchange's type."""
    plugins = {
        name: of_kind(name, "RabbitmqCluster")[0]["spec"].get("rabbitmq") for name in ("operators", "ordered")
    }
    assert plugins == {
        "operators": None,
        "ordered": {"additionalPlugins": ["rabbitmq_consistent_hash_exchange"]},
    }


def test_a_topology_of_the_operators_is_not_declared_again(tmp_path: Path) -> None:
    """Pushgate then only checks it."""
    assert not read_settings(given={}, config=_settings_file("operators", tmp_path)).amqp_declare
