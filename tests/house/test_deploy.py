"""The deployment files against the programs that read them.

rayservice.schema.json.xz is KubeRay's schema of a RayService (its $comment says which). The API
server prunes what a schema does not name, so here a name that it does not have is an error.
"""

import functools
import json
import lzma
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from serve.configuration.kinds import Kind, validated
from serve.gateway.health import STATUS_WAIT_S
from serve.on_ray.cluster import RAY_ENVIRONMENT
from serve.settings import ServeSettings
from serve.web.front import PROBED

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCHEMA = json.loads(
    lzma.decompress(Path(__file__).with_name("rayservice.schema.json.xz").read_bytes())
)
STAYS_INSIDE = (6379, 8265, 10001, 52365)  # GCS, dashboard, Ray client, agents: each runs code
PORTS = {"worker": (8000,), "head": ()}


@functools.cache
def documents():
    return list(yaml.safe_load_all((DEPLOY / "rayservice.yaml").read_text("utf-8")))


def of_kind(kind):
    return [each for each in documents() if each["kind"] == kind]


def ray_service():
    (found,) = of_kind("RayService")
    return found


def serve_config():
    return yaml.safe_load(ray_service()["spec"]["serveConfigV2"])


def pods():
    """Return the pod templates, head first."""
    cluster = ray_service()["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def closed(schema):
    """Return the schema with what it does not name forbidden, as nothing else would tell."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if inner.get("type") == "object" and "properties" in inner:
        inner.setdefault("additionalProperties", False)
    return inner


def part_of(schema, *path):
    """Return the schema of what lies at a path."""
    for name in path:
        schema = schema["items"] if name == "*" else schema["properties"][name]
    return schema


def faults(value, schema):
    found = jsonschema.Draft202012Validator(closed(schema)).iter_errors(value)
    return [f"{each.json_path}: {each.message}" for each in found]


def test_the_manifest_is_what_kuberay_takes():
    assert faults(ray_service(), SCHEMA) == []
    assert validated(DEPLOY / "rayservice.yaml") is Kind.ray_service
    # Were the check blind, these would pass too.
    for right, wrong in {
        "readOnlyRootFilesystem": "readOnlyRootFileSystem",
        "topologySpreadConstraints": "topologySpreadConstraint",
        "preStop": "prestop",
        "authOptions": "authOption",
    }.items():
        misspelt = json.loads(json.dumps(ray_service()).replace(f'"{right}"', f'"{wrong}"'))
        assert any(f"'{wrong}' was unexpected" in fault for fault in faults(misspelt, SCHEMA))


def test_the_other_documents_have_the_shapes_of_kubernetes():
    cluster = ("spec", "rayClusterConfig")
    rules = part_of(SCHEMA, *cluster, "networkPolicy", "worker", "ingressRules")
    volume = (*cluster, "headGroupSpec", "template", "spec", "volumes", "*")
    claim = part_of(SCHEMA, *volume, "ephemeral", "volumeClaimTemplate", "spec")
    selector = part_of(rules, "*", "from", "*", "podSelector")
    texts = {"type": "array", "items": {"enum": ["Ingress"]}}
    specs = {
        "NetworkPolicy": {"podSelector": selector, "policyTypes": texts, "ingress": rules},
        "PodDisruptionBudget": {"minAvailable": {"type": "integer"}, "selector": selector},
    }
    for each in documents():
        if each["kind"] == "RayService":
            continue
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        if each["kind"] == "PersistentVolumeClaim":
            assert faults(each["spec"], claim) == []
        else:
            assert faults(each["spec"], {"type": "object", "properties": specs[each["kind"]]}) == []


def labels(node_type):
    """Return the labels of a pod of the cluster: its template's and those KubeRay adds."""
    (found,) = {each["metadata"]["labels"]["app"] for each in pods()}
    return {"app": found, "ray.io/node-type": node_type, "ray.io/cluster": "any"}


def selects(selector, told):
    return selector["matchLabels"].items() <= told.items()


@pytest.mark.parametrize("node_type", ["head", "worker"])
def test_from_outside_only_what_has_business_reaches_a_pod(node_type):
    here = labels(node_type)
    policies = [p for p in of_kind("NetworkPolicy") if selects(p["spec"]["podSelector"], here)]
    assert policies  # a pod that no policy selects is open
    outside = {}
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            for peer in rule["from"]:
                assert peer
                own = "namespaceSelector" not in peer and selects(peer["podSelector"], here)
                if not own:
                    name = json.dumps(peer)
                    outside[name] = {port["port"] for port in rule["ports"]}
    operator = {name for name in outside if "kuberay-operator" in name}
    for name in operator:
        assert outside.pop(name) == {8265, 8000}
    assert len(operator) == (node_type == "head")
    reachable = set().union(*outside.values())
    assert reachable == {8080, *PORTS[node_type]}
    assert not reachable & set(STAYS_INSIDE)
    assert ray_service()["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_a_worker_that_is_evicted_leaves_another():
    worker = labels("worker")
    (budget,) = of_kind("PodDisruptionBudget")
    assert selects(budget["spec"]["selector"], worker)
    assert not selects(budget["spec"]["selector"], labels("head"))
    (group,) = ray_service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # At least one may always go, or nodes could not be emptied; and at least one stays.
    assert 1 <= budget["spec"]["minAvailable"] < group["minReplicas"]
    spread = group["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} >= {"kubernetes.io/hostname"}
    assert all(selects(each["labelSelector"], worker) for each in spread)
    application = serve_config()["applications"][0]
    settings = ServeSettings(**application["args"])
    limits = {each["name"]: each["max_replicas_per_node"] for each in application["deployments"]}
    assert limits == {"gateway": 1, "encoder": 1, "generator": 1}
    for part in (settings.gateway, settings.encoder, settings.generator):
        assert 2 <= part.replicas <= group["minReplicas"]
        assert part.num_cpus > 0  # else the head, which offers none, would do


def test_pods_are_confined_and_may_write_where_they_must():
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    (user,) = re.findall(r"^USER (\d+):\1$", image, re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user}" in image
    home = re.search(r"HOME=(\S+) MPLCONFIGDIR=(\S+)", image).groups()
    claims = {each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim")}
    for template in pods():
        spec = template["spec"]
        (container,) = spec["containers"]
        ids = [spec["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")]
        assert ids == 3 * [int(user)]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        volumes = {each["name"]: each for each in spec["volumes"]}
        mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
        assert "emptyDir" in mounts["/tmp"]
        assert all(folder == "/tmp" or folder.startswith("/tmp/") for folder in home)
        kept = mounts["/var/lib/m3"]["persistentVolumeClaim"]["claimName"]
        assert kept in claims
        assert {"privileged", "hostNetwork", "hostPath"}.isdisjoint(json.dumps(spec).split('"'))
    settings = ServeSettings(**serve_config()["applications"][0]["args"])
    for folder in (settings.log_dir, settings.registry):
        assert str(folder).startswith("/var/lib/m3/")


def test_ray_service_names_real_settings_and_a_real_builder():
    from ray.serve.schema import ServeDeploySchema

    config = serve_config()
    ServeDeploySchema(**config)
    application = config["applications"][0]
    settings = ServeSettings(**application["args"])
    module, _, builder = application["import_path"].partition(":")
    assert (module, builder) == ("serve.on_ray.app", "build_app")
    # Ray ends a request later than the gateway, which answers with a sentence.
    assert config["http_options"]["request_timeout_s"] > settings.request_timeout_s
    assert config["http_options"]["keep_alive_timeout_s"] == settings.keep_alive_s
    assert ray_service()["spec"]["rayClusterConfig"]["rayVersion"] == pinned("ray")


def test_every_node_has_the_environment_of_a_cluster_of_our_own():
    for template in pods():
        environment = template["spec"]["containers"][0]["env"]
        told = {each["name"]: each.get("value") for each in environment}
        assert told.items() >= RAY_ENVIRONMENT.items()


def test_a_pod_that_goes_lets_requests_end():
    settings = ServeSettings(**serve_config()["applications"][0]["args"])
    worker = pods()[1]["spec"]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert int(command[1]) > settings.request_timeout_s
    granted = worker["terminationGracePeriodSeconds"]
    assert granted > int(command[1]) + settings.drain_s


def test_ray_service_probes_what_answers_probes():
    probe = pods()[1]["spec"]["containers"][0]["readinessProbe"]
    port = serve_config()["http_options"]["port"]
    assert probe["httpGet"] == {"path": "/health/ready", "port": port}
    assert probe["httpGet"]["path"] in PROBED  # asked under the pod's address
    assert probe["timeoutSeconds"] > STATUS_WAIT_S


def test_prometheus_scrapes_what_the_service_exports():
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    kept = config["scrape_configs"][0]["metric_relabel_configs"][0]["regex"]
    assert "ray_m3_" in kept


def test_the_image_holds_every_package():
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY") and line.count(" ") == 2}
    assert copied == {"m3model", "router", "serve", "training"}


def pinned(name):
    constraints = (DEPLOY.parent / "constraints.txt").read_text("utf-8").splitlines()
    return next(line.split("==")[1] for line in constraints if line.startswith(f"{name}=="))
