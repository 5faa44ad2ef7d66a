"""The deployment files against the programs that read them."""

from pathlib import Path

import yaml

from serve.gateway.health import STATUS_WAIT_S
from serve.on_ray.cluster import RAY_ENVIRONMENT
from serve.settings import ServeSettings
from serve.web.front import PROBED

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_ray_service_names_real_settings_and_a_real_builder():
    from ray.serve.schema import ServeDeploySchema

    manifest = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text("utf-8"))
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema(**config)
    application = config["applications"][0]
    settings = ServeSettings(**application["args"])
    module, _, builder = application["import_path"].partition(":")
    assert (module, builder) == ("serve.on_ray.app", "build_app")
    # Ray ends a request later than the gateway, which answers with a sentence.
    assert config["http_options"]["request_timeout_s"] > settings.request_timeout_s
    assert config["http_options"]["keep_alive_timeout_s"] == settings.keep_alive_s
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == pinned("ray")


def test_every_node_has_the_environment_of_a_cluster_of_our_own():
    cluster = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text("utf-8"))["spec"]
    groups = cluster["rayClusterConfig"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        environment = group["template"]["spec"]["containers"][0]["env"]
        told = {each["name"]: each.get("value") for each in environment}
        assert told.items() >= RAY_ENVIRONMENT.items()


def test_a_pod_that_goes_lets_requests_end():
    manifest = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text("utf-8"))
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    settings = ServeSettings(**config["applications"][0]["args"])
    worker = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert int(command[1]) > settings.request_timeout_s
    granted = worker["terminationGracePeriodSeconds"]
    assert granted > int(command[1]) + settings.drain_s


def test_ray_service_probes_what_answers_probes():
    manifest = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text("utf-8"))
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    worker = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    probe = worker["containers"][0]["readinessProbe"]
    assert probe["httpGet"] == {"path": "/health/ready", "port": config["http_options"]["port"]}
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
